"""The language models that studies compare, and how they are trained: one set of runs for several questions.

All rivals of the paper's Table 1 and all others that are registered, each as published: its MLP, its norms, its
positions. Widths are equal, and so are parameters without embedding and head, by the width of MLPs or of
up-projections. xLSTM of the paper has twice the blocks of the others, as it has no MLP behind an mLSTM.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from statistics import median
from typing import Any

import torch

from exlstm.mixers.attention import AttentionConfig
from exlstm.models.block import BlockConfig, MLPConfig
from exlstm.models.lm import LM, LMConfig
from exlstm.models.rivals import rival
from exlstm.study.aggregate import Cell
from exlstm.study.models import body_parameters, narrow_rivals, with_parameters, xlstm
from exlstm.study.problems import Lesson
from exlstm.study.timing import Timing
from exlstm.study.training import QUICK, Training

# perplexities of the paper's Table 1: 15B tokens of SlimPajama, models of 356M to 456M parameters
TABLE_1: Mapping[str, float] = {
    "gpt3": 14.26,
    "llama": 14.25,
    "h3": 18.23,
    "mamba": 13.70,
    "hyena": 17.59,
    "rwkv4": 15.62,
    "rwkv5": 14.25,
    "rwkv6": 15.03,
    "retention": 16.23,
    "hgrn": 17.59,
    "gla": 16.15,
    "hgrn2": 14.32,
    "xlstm[1:0]": 13.43,
    "xlstm[7:1]": 13.48,
}
XLSTM = ("1:0", "7:1", "1:1", "0:1")
LONG, LONGEST = 16_384, 65_536  # tokens of tests beyond the length of training
TEXT = {"quick": "email/300", "small": "mixed/1024", "paper": "mixed/50304"}
SHAPE: Mapping[str, Mapping[str, int]] = {
    "quick": {"width": 16, "heads": 2, "depth": 4, "length": 32},
    "small": {"width": 64, "heads": 2, "depth": 4, "length": 256},
    "paper": {"width": 1024, "heads": 8, "depth": 24, "length": 2048},
}
RATES = {"quick": (6e-3,), "small": (3e-3, 1e-2, 3e-2), "paper": (1e-3, 3e-4)}
HOW: Mapping[str, Mapping[str, Any]] = {
    "quick": QUICK,
    # a million tokens
    "small": {"steps": 1000, "batch": 4, "validations": 5, "validation_rows": 128, "test_rows": 512},
    # 15 billion, as in the paper
    "paper": {
        "steps": 28_610,
        "batch": 256,
        "warmup": 750 / 28_610,
        "final_lr": 0.1,
        "beta2": 0.95,
        "dtype": "bfloat16",
        "validations": 20,
        "validation_rows": 256,
        "test_rows": 512,
    },
}


def language_models(size: str, names: Iterable[str] | None = None, **changes: int) -> dict[str, LMConfig]:
    """The models of a size by the name in tables, with the parameters of xLSTM[1:0].

    names: those that are wanted, None for all. changes: of `SHAPE`, where depth is the number of blocks of a rival,
    each with an MLP, and length that of training, which is gpt3's table of positions.
    """
    shape = {**SHAPE[size], **changes}
    width, heads, depth, length = (shape[name] for name in ("width", "heads", "depth", "length"))
    # eight blocks of xLSTM stand for four of the others; the share of one is scaled, and then repeated
    ours = {f"xlstm[{ratio}]": partial(xlstm, ratio, width=width, heads=heads, depth=8) for ratio in XLSTM}
    block = partial(rival, depth=1, width=width)
    others: dict[str, Callable[[], LMConfig]] = {
        "xlstm-7b": partial(block, "mlstm_large", options={"heads": heads}),
        "llama": partial(block, "attention", options={"heads": heads}),
        "gpt3": partial(_gpt3, width, heads),
        "lstm": partial(block, "lstm", options={"forget_bias": "power_law"}),
        **{name: partial(block, name, options={"heads": heads, **own}) for name, own in narrow_rivals().items()},
    }
    target, found = body_parameters(ours["xlstm[1:0]"]()), {}
    for name in [*ours, *others] if names is None else names:
        unit, share = (ours[name](), 4) if name in ours else (others[name](), 1)
        found[name] = _repeated(with_parameters(unit, share * target // 4), depth // share)
    if "gpt3" in found:  # its positions count with the embedding
        found["gpt3"] = replace(found["gpt3"], positions=length)
    return found


def _repeated(config: LMConfig, times: int) -> LMConfig:
    return replace(config, vocab_size=2, blocks=config.blocks * times)


def _gpt3(width: int, heads: int) -> LMConfig:
    block = BlockConfig(
        mixer=AttentionConfig(heads=heads, rope_base=None, bias=True),
        mlp=MLPConfig(hidden=4 * width, activation="gelu_tanh", gated=False, bias=True),
    )
    return LMConfig(vocab_size=2, width=width, blocks=(block,), norm_bias=True)


def trainings(
    size: str, models: Mapping[str, LMConfig], rates: Sequence[float] | None = None, **changes: Any
) -> list[Training]:
    """A run per model and learning rate on the text of this size.

    rates: learning rates, None for those of the size. changes: fields of `Training` that differ.
    """
    return [
        Training(
            **{
                "model": name,
                "architecture": config,
                "lessons": (lesson(size, config),),
                "lr": rate,
                "varied": _varied(config),
                **HOW[size],
                **changes,
            }
        )
        for name, config in models.items()
        for rate in rates or RATES[size]
    ]


def timings(size: str, models: Mapping[str, LMConfig]) -> list[Timing]:
    """A measurement per model at the shape of its training. quick: one context of a few tokens."""
    how: dict[str, Any] = {"vocabulary": int(TEXT[size].partition("/")[2]), "length": SHAPE[size]["length"]}
    if size == "quick":
        how |= {"places": ((8, 1),), "tokens": 2, "repeats": 1}
    return [
        Timing(model=name, architecture=config, batch=HOW[size]["batch"], varied=_varied(config), **how)
        for name, config in models.items()
    ]


def _varied(config: LMConfig) -> tuple[tuple[str, str], ...]:
    return (("width", str(config.width)),)


def seconds_per_token(cell: Cell) -> float | None:
    """Seconds of training per token in a cell of `timings`, the median of its seeds; None without any."""
    found = [1 / score for score in cell.scores()]
    return median(found) if found else None


def lesson(size: str, config: LMConfig | None = None) -> Lesson:
    """The text, tested at the length of training and, for a model, as far beyond as it can read at little cost."""
    length = SHAPE[size]["length"]
    lengths = [length]
    if config is not None and config.positions is None and size != "quick":
        lengths += [LONG, *([LONGEST] if _constant(config) else [])]
    return Lesson(task=TEXT[size], train=(length, length), test=tuple((each, each) for each in lengths))


@lru_cache(maxsize=1024)
def _constant(config: LMConfig) -> bool:
    """True for a model whose state has one size at any length."""
    with torch.device("meta"):
        model = LM(config)
    return model.state_bytes(LONG) == model.state_bytes(LONGEST)
