"""Small models of every kind and rows with padding, for the tests of exlstm.hf."""

import torch

import exlstm
from exlstm.hf import from_lm

VOCAB = 29
KINDS = "msMal"


def build(pattern=KINDS, dtype=torch.float64, **options):
    config = exlstm.lm_from_pattern(pattern, vocab_size=VOCAB, width=32)
    torch.manual_seed(3)
    return exlstm.LM(exlstm.LMConfig(**{**vars(config), **options})).to(dtype).eval()


def both(pattern=KINDS, dtype=torch.float64, **options):
    """An LM and the model of transformers that shares its weights."""
    lm = build(pattern, dtype, **options)
    return lm, from_lm(lm)


def tokens(*shape, seed=0):
    return torch.randint(VOCAB, shape, generator=torch.Generator().manual_seed(seed))


def padded(rows, columns, pad=0):
    """(input_ids, attention_mask): row i holds the tokens rows[i] in the columns columns[i]."""
    width = 1 + max(max(place) for place in columns)
    input_ids, mask = torch.full((len(rows), width), pad), torch.zeros(len(rows), width, dtype=torch.long)
    for row, (line, place) in enumerate(zip(rows, columns, strict=True)):
        input_ids[row, list(place)] = line
        mask[row, list(place)] = 1
    return input_ids, mask
