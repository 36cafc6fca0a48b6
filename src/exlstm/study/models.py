"""The models that studies compare, at equal parameters.

    compared_models(width=64, heads=4)    {"xlstm[1:0]": ..., "xlstm[0:1]": ..., "xlstm[1:1]": ..., "lstm": ..., ...}

xLSTMs are stacks of the paper's blocks. A study names the rivals that take part, some of `rival_names()`; their blocks
have the MLPs of their published models (`BlockStyle`). The LSTM begins with the sLSTM's spread of forget biases:
with 1.0 everywhere it counts, and learns parity at the lengths of training only.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import lru_cache, partial
from math import lcm
from typing import Any

import torch

from exlstm.mixers import MIXERS
from exlstm.mixers.attention import AttentionConfig
from exlstm.mixers.contract import MixerConfig
from exlstm.mixers.linformer import LinformerConfig
from exlstm.mixers.lstm import LSTMConfig
from exlstm.mixers.mlstm import MLSTMConfig
from exlstm.mixers.mlstm_large import MLSTMLargeConfig
from exlstm.mixers.slstm import SLSTMConfig
from exlstm.models.lm import LM, LMConfig
from exlstm.models.pattern import configured, styled_blocks, xlstm_pattern
from exlstm.models.summary import parameters

Stack = tuple[MixerConfig, ...]
Settings = Mapping[str, Any]
Builder = Callable[[int], LMConfig]

_CLOSE = 0.05  # relative difference of parameter counts that are called equal
_LOW, _HIGH = 1 / 64, 64.0
# settings of the sLSTM for the paper's formal languages that are not its defaults (appendix B.1.1 of the paper)
FORMAL: Mapping[str, Any] = {"conv_width": 0, "recurrent_init": "uniform"}
# settings of rivals whose defaults are for wide models: in few channels their low ranks are more than all the rest
NARROW: Mapping[str, Settings] = {"hyena": {"filter_width": 32}, "rwkv6": {"mix_rank": 8, "decay_rank": 8}}


def xlstm(
    ratio: str, *, width: int, heads: int = 4, depth: int = 2, slstm: Settings | None = None,
    mlstm: Settings | None = None,
) -> LMConfig:  # fmt: skip
    """xLSTM[a:b] with settings of its cells. The vocabulary is set by the task (`TokenProblem.build`)."""
    kinds: dict[str, MixerConfig] = {
        "m": MLSTMConfig(**{"heads": heads, **(mlstm or {})}),
        "s": SLSTMConfig(**{"heads": heads, **(slstm or {})}),
    }
    return stack(tuple(kinds[letter] for letter in xlstm_pattern(ratio, depth)), width=width)


def stack(mixers: Stack, *, width: int) -> LMConfig:
    """A model of these mixers, each with the MLP of its published models, or with the block of its partner."""
    blocks = tuple(block for mixer in mixers for block in styled_blocks(mixer, width))
    return LMConfig(vocab_size=2, width=width, blocks=blocks)


def builders(
    *, heads: int = 4, depth: int = 2, slstm: Settings | None = None, mlstm: Settings | None = None,
    attention: Settings | None = None, rivals: Iterable[str] | Mapping[str, Settings] = (),
) -> dict[str, Builder]:  # fmt: skip
    """Builders of all compared models, by the name in tables: functions from a width to an architecture.

    slstm, mlstm, attention: settings of these blocks, such as FORMAL; they may have other heads than the rest.
    rivals: names in MIXERS of further models, perhaps with settings of their own.
    """
    stacks: dict[str, Stack] = {
        "lstm": (LSTMConfig(forget_bias="power_law"),) * depth,
        "lstm(block)": (LSTMConfig(heads=heads, forget_bias="power_law"),) * depth,
        "attention": (AttentionConfig(**{"heads": heads, **(attention or {})}),) * depth,
    }
    own = rivals if isinstance(rivals, Mapping) else {}
    stacks |= {name: (configured(name, {"heads": heads, **own.get(name, {})}),) * depth for name in rivals}
    ours = {
        f"xlstm[{ratio}]": partial(xlstm, ratio, heads=heads, depth=depth, slstm=slstm, mlstm=mlstm)
        for ratio in ("1:0", "0:1", "1:1")
    }
    return {
        **{name: _by_width(make) for name, make in ours.items()},
        **{name: _by_width(partial(stack, mixers)) for name, mixers in stacks.items()},
    }


def narrow_rivals() -> dict[str, Settings]:
    """All of `rival_names()`, with settings for models of few channels."""
    return {name: NARROW.get(name, {}) for name in rival_names()}


def rival_names() -> list[str]:
    """Entries of MIXERS that are models of their own beside xLSTM, the LSTM and attention, and read any length."""
    known = {MLSTMConfig, MLSTMLargeConfig, SLSTMConfig, LSTMConfig, AttentionConfig, LinformerConfig}
    partners = {kind.style.partner.name for kind in MIXERS.values() if kind.style.partner is not None}
    return [name for name, kind in MIXERS.items() if kind not in known and name not in partners]


def _by_width(make: Callable[..., LMConfig]) -> Builder:
    return lambda width: make(width=width)


def compared_models(
    *,
    width: int,
    target: int | None = None,
    rivals: Iterable[str] | Mapping[str, Settings] = (),
    **settings: Any,
) -> dict[str, LMConfig]:
    """The models of `builders(rivals=rivals, **settings)` at this width, with equal parameters.

    target: parameters of each, without embedding and head; None is those of the largest that is no rival, so that
    rivals which join later leave the others as they are.
    """
    rivals = rivals if isinstance(rivals, Mapping) else list(rivals)
    found = {name: make(width) for name, make in builders(rivals=rivals, **settings).items()}
    if target is None:
        target = max(body_parameters(config) for name, config in found.items() if name not in rivals)
    return {name: with_parameters(config, target) for name, config in found.items()}


def with_state_bytes(make: Builder, target: int, length: int, *, step: int = 4) -> LMConfig:
    """The model at the width, a multiple of `step`, whose state after `length` tokens is nearest to `target` bytes."""
    low = step
    while _state_bytes(make(low + step), length) <= target:
        low += step
    return min(make(low), make(low + step), key=lambda config: abs(_state_bytes(config, length) - target))


@lru_cache(maxsize=4096)
def _state_bytes(config: LMConfig, length: int) -> int:
    with torch.device("meta"):
        return LM(config).state_bytes(length)


@lru_cache(maxsize=4096)  # studies ask for the same models task by task, and building one takes milliseconds
def body_parameters(config: LMConfig) -> int:
    """Number of parameters without embedding and head, so that it does not depend on the vocabulary."""
    with torch.device("meta"):
        model = LM(config)
    return parameters(model) - parameters(model.embed) - (0 if config.tie_embeddings else parameters(model.head))


@lru_cache(maxsize=4096)
def with_parameters(config: LMConfig, target: int) -> LMConfig:
    """The model with MLPs and up-projections scaled by one factor, so that `body_parameters` is `target`.

    ValueError if that cannot be reached within 5 %.
    """
    low, high = _LOW, _HIGH
    for _ in range(20):  # bisection, to a millionth of a factor
        middle = (low * high) ** 0.5
        low, high = (middle, high) if body_parameters(_scaled(config, middle)) < target else (low, middle)
    best = min((_scaled(config, factor) for factor in (low, high)), key=lambda c: abs(body_parameters(c) - target))
    if abs(body_parameters(best) - target) > _CLOSE * target:
        kind = type(config.blocks[0].mixer).__name__.removesuffix("Config")
        raise ValueError(
            f"a model of {kind} blocks and width {config.width} cannot have {target:,} parameters, the nearest is "
            f"{body_parameters(best):,}; choose another number or width."
        )
    return best


def _scaled(config: LMConfig, factor: float) -> LMConfig:
    blocks = []
    for block in config.blocks:
        if block.mlp is not None:
            hidden = max(1, round(factor * block.mlp.hidden))
            blocks.append(replace(block, mlp=replace(block.mlp, hidden=hidden)))
        elif block.mixer.style.partner is None and hasattr(block.mixer, "up_factor"):
            mixer: Any = block.mixer
            # the inner width is a multiple of heads and of blocks of q, k and v
            unit = lcm(getattr(mixer, "heads", 1), getattr(mixer, "qkv_block", 1))
            up = max(1, round(factor * mixer.up_factor * config.width / unit)) * unit / config.width
            blocks.append(replace(block, mixer=replace(mixer, up_factor=up, up_multiple=unit)))
        else:
            blocks.append(block)
    return replace(config, blocks=tuple(blocks))
