"""Log-probabilities of tokens: of the rows of a step at once, and of the tokens of a prompt.

B rows  M rows that ask  L positions  D model width  C classes (vocabulary)
"""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from exlstm.infer.requests import PromptLogprob, TopLogprobs

NUMBERS = 1 << 24  # logits that are held at a time


def log_probabilities(logits_BC: Tensor) -> Tensor:
    """Natural logarithms of the model's own distribution, in float32 or wider."""
    wide_BC = logits_BC if logits_BC.dtype is torch.float64 else logits_BC.float()
    return wide_BC.log_softmax(dim=-1)


def chosen_and_top(
    logits_BC: Tensor, tokens: Sequence[int], counts: Sequence[int], vocab_size: int
) -> Iterator[tuple[float, TopLogprobs]]:
    """Of every row the log-probability of its token, and its `counts` most likely tokens below `vocab_size`.

    Both are read from one array, so that a token has the same number in both places.
    """
    logprobs_BC = log_probabilities(logits_BC)
    chosen = logprobs_BC.gather(1, torch.tensor(tokens, device=logits_BC.device)[:, None])[:, 0].tolist()
    most = min(max(counts), vocab_size)
    if most == 0:
        yield from ((number, ()) for number in chosen)
        return
    values_BK, ids_BK = logprobs_BC[:, :vocab_size].topk(most)
    for number, count, ids, values in zip(chosen, counts, ids_BK.tolist(), values_BK.tolist(), strict=True):
        yield number, tuple(zip(ids[:count], values[:count], strict=True))


def prompt_logprobs(
    read_out: Callable[[Tensor], Tensor], x_LD: Tensor, tokens: Sequence[int], count: int, vocab_size: int
) -> list[PromptLogprob]:
    """Entries of tokens of a prompt. x: the hidden states before each of them. count: of most likely tokens."""
    found, start = [], 0
    while start < len(tokens):
        logits_BC = read_out(x_LD[start : start + 1])
        some = max(1, NUMBERS // logits_BC.shape[1])
        if min(some, len(tokens) - start) > 1:
            logits_BC = read_out(x_LD[start : start + some])
        part = tokens[start : start + some]
        scored = chosen_and_top(logits_BC, part, [count] * len(part), vocab_size)
        found += [PromptLogprob(token, *each) for token, each in zip(part, scored, strict=True)]
        start += some
    return found
