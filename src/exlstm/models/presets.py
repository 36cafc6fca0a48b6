"""Presets: the architectures of the papers, those of rivals, and small ones for a laptop."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from exlstm.mixers.mlstm_large import MLSTMLargeConfig
from exlstm.models.block import BlockConfig, MLPConfig
from exlstm.models.lm import LMConfig
from exlstm.models.pattern import lm_from_pattern, xlstm_pattern
from exlstm.models.rivals import GPT2_VOCABULARY, OF_TABLE_1, PUBLISHED


def paper(ratio: str, depth: int, width: int, slstm_at: tuple[int, ...]) -> LMConfig:
    """A language model of the xLSTM paper (its Table 9): 4 heads, vocabulary of GPT-2."""
    pattern = xlstm_pattern(ratio, depth, slstm_at=slstm_at)
    return lm_from_pattern(pattern, vocab_size=GPT2_VOCABULARY, width=width)


def xlstm_7b() -> LMConfig:
    """xLSTM-7B (arXiv:2503.13427): 6,865,424,896 parameters."""
    block = BlockConfig(mixer=MLSTMLargeConfig(heads=8), mlp=MLPConfig(hidden=10_944, activation="silu"))
    return LMConfig(
        vocab_size=GPT2_VOCABULARY, width=4096, blocks=(block,) * 32, norm="rms", norm_eps=1e-6, logit_cap=30.0
    )


def synthetic(ratio: str) -> LMConfig:
    """The paper's two blocks for synthetic tasks, in the size of its parity runs: width 64, one head, vocabulary 3."""
    return lm_from_pattern(xlstm_pattern(ratio, 2), vocab_size=3, width=64, heads=1)


SLSTM_OF_48 = (3, 5, 7, 40, 42, 44)  # where the paper's xLSTM[7:1] of 48 blocks has its sLSTM
# the names by family, as `exlstm presets` shows them
FAMILIES: dict[str, dict[str, Callable[[], LMConfig]]] = {
    "xLSTM of the papers": {
        "xlstm-125m-1:0": partial(paper, "1:0", 24, 768, ()),
        "xlstm-125m-7:1": partial(paper, "7:1", 24, 768, (3, 20)),
        "xlstm-350m-1:0": partial(paper, "1:0", 48, 1024, ()),
        "xlstm-350m-7:1": partial(paper, "7:1", 48, 1024, SLSTM_OF_48),
        "xlstm-760m-1:0": partial(paper, "1:0", 48, 1536, ()),
        "xlstm-760m-7:1": partial(paper, "7:1", 48, 1536, SLSTM_OF_48),
        "xlstm-1.3b-1:0": partial(paper, "1:0", 48, 2048, ()),
        "xlstm-1.3b-7:1": partial(paper, "7:1", 48, 2048, SLSTM_OF_48),
        "xlstm-2.7b-1:0": partial(paper, "1:0", 64, 2560, ()),
        # the paper does not say where its 2.7B [7:1] has the sLSTM: here, one at the end of every eight blocks
        "xlstm-2.7b-7:1": partial(paper, "7:1", 64, 2560, tuple(range(7, 64, 8))),
        "xlstm-7b": xlstm_7b,
    },
    "for synthetic tasks": {
        "synthetic-1:0": partial(synthetic, "1:0"),
        "synthetic-0:1": partial(synthetic, "0:1"),
        "synthetic-1:1": partial(synthetic, "1:1"),
    },
    "for a laptop": {
        "laptop-tiny": partial(lm_from_pattern, "ms", vocab_size=257, width=32),
        "laptop-small": partial(lm_from_pattern, "mms", vocab_size=2048, width=192),
        "laptop-medium": partial(lm_from_pattern, "mmsmm", vocab_size=4096, width=256),
        "laptop-large": partial(lm_from_pattern, "mmmsmmmm", vocab_size=8192, width=384),
    },
    "rivals of Table 1": OF_TABLE_1,
    "rivals as published": PUBLISHED,
}
PRESETS: dict[str, Callable[[], LMConfig]] = {name: make for group in FAMILIES.values() for name, make in group.items()}


def preset(name: str, *, vocab_size: int | None = None) -> LMConfig:
    """The architecture of this name, perhaps with another vocabulary size. ValueError for an unknown name."""
    if name not in PRESETS:
        raise ValueError(f"there is no preset {name!r}; choose one of {', '.join(PRESETS)}.")
    config = PRESETS[name]()
    return config if vocab_size is None else replace(config, vocab_size=vocab_size)
