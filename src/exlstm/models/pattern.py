"""Patterns of blocks, and the models they describe.

    mmms                           letters, one per block
    mamba*4                        a name in MIXERS, perhaps repeated
    rglru,rglru,attention,mm       several of these, with commas between

m  mLSTM of the paper (its own up-projection)      s  sLSTM of the paper + gated GELU MLP
M  mLSTM of xLSTM-7B + SwiGLU MLP                  a  attention as in Llama + SwiGLU MLP
l  LSTM + gated GELU MLP

A mixer by its name has the MLP of its published models (`BlockStyle`).
"""

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from itertools import cycle, islice
from typing import Any

from exlstm.mixers import MIXERS
from exlstm.mixers.contract import BlockStyle, MixerConfig
from exlstm.models.block import BlockConfig, MLPConfig
from exlstm.models.lm import LMConfig
from exlstm.nn.layers import round_up
from exlstm.ops.norm import Norm

LETTERS = {"m": "mlstm", "s": "slstm", "M": "mlstm_large", "a": "attention", "l": "lstm"}
NAME = re.compile(r"(\w+)(?:\*(\d{1,5}))?")
MOST = 10_000  # blocks; more of them are a slip of the keyboard


def styled_mlp(style: BlockStyle, width: int) -> MLPConfig | None:
    """The MLP that follows a mixer of this style, or None."""
    if style.activation is None:
        return None
    hidden = round_up(style.factor * width, 64)
    return MLPConfig(hidden=hidden, activation=style.activation, bias=style.bias, gated=style.gated)


def styled_blocks(mixer: MixerConfig, width: int, options: Mapping[str, Any] | None = None) -> tuple[BlockConfig, ...]:
    """The mixer's block as in its published models: with an MLP, or with the block of its partner.

    options: fields of the partner's config, as far as it has them. Those that the style gives are as it gives them.
    """
    block, partner = BlockConfig(mixer=mixer, mlp=styled_mlp(mixer.style, width)), mixer.style.partner
    if partner is None:
        return (block,)
    other: Any = configured(partner.name, options or {})
    return block, *styled_blocks(replace(other, **partner.fields), width)


def configured(name: str, options: Mapping[str, Any]) -> MixerConfig:
    """The config of this name in MIXERS, with those of the options that it has."""
    cls: Any = MIXERS[name]
    known = {field.name for field in fields(cls)}
    found: MixerConfig = cls(**{key: value for key, value in options.items() if key in known})
    return found


def described(name: str) -> str:
    """What a mixer is, in a line: the first one of its page, without sources."""
    first = (sys.modules[MIXERS[name].__module__].__doc__ or "").partition("\n")[0]
    return re.sub(r" \([^)]*\)", "", first).rstrip(" ,:.")


def names_of(pattern: str) -> list[str]:
    """The names in MIXERS of a pattern, one per block. ValueError for a pattern that describes none."""
    names: list[str] = []
    for part in pattern.split(","):
        found = NAME.fullmatch(part.strip())
        if found and found[1] in MIXERS:
            names += [found[1]] * int(found[2] or 1)
        elif found and set(part.strip()) <= set(LETTERS):
            names += [LETTERS[letter] for letter in part.strip()]
        else:
            raise ValueError(
                f"the block pattern {pattern!r} has the part {part!r}; write letters of {''.join(LETTERS)}, e.g. mmms, "
                "or names of mixers, e.g. mlstm*4,attention (`exlstm presets` lists them)."
            )
    if not 0 < len(names) <= MOST:
        raise ValueError(f"the block pattern {pattern!r} has {len(names)} blocks; it must have 1 to {MOST:,}.")
    return names


def blocks_from_pattern(
    pattern: str, *, width: int, heads: int = 4, num_layers: int | None = None
) -> tuple[BlockConfig, ...]:
    """The blocks of a pattern such as "mmms" or "mamba*4". ValueError for one that describes no blocks.

    num_layers: so many letters or names of the pattern, which is repeated; None: the pattern once.
    """
    options, names = {"heads": heads}, names_of(pattern)
    if num_layers is not None:
        if isinstance(num_layers, bool) or not isinstance(num_layers, int) or not 0 < num_layers <= MOST:
            raise ValueError(f"num_layers is {num_layers!r}; it must be a whole number from 1 to {MOST:,}.")
        names = list(islice(cycle(names), num_layers))
    # the LSTM of these models is dense
    mixers = [configured(name, {} if name == "lstm" else options) for name in names]
    return tuple(block for mixer in mixers for block in styled_blocks(mixer, width, options))


def lm_from_pattern(pattern: str, *, vocab_size: int, width: int, heads: int = 4) -> LMConfig:
    """A language model of these blocks, with RMS norms where every block is published with them, else layer norms."""
    blocks = blocks_from_pattern(pattern, width=width, heads=heads)
    kind, eps = norm_of(blocks)
    return LMConfig(vocab_size=vocab_size, width=width, blocks=blocks, norm=kind, norm_eps=eps)


def norm_of(blocks: Sequence[BlockConfig]) -> tuple[Norm, float]:
    """The norm over the width of a model of these blocks, and its eps: RMS if every block is published with it."""
    rms = all(block.mixer.style.norm == "rms" for block in blocks)
    return ("rms", 1e-6) if rms else ("layer", 1e-5)


def xlstm_pattern(ratio: str, depth: int, *, slstm_at: tuple[int, ...] | None = None) -> str:
    """The letters of xLSTM[a:b] with `depth` blocks, "m" for mLSTM and "s" for sLSTM.

    ratio: "a:b" repeats a mLSTM blocks and b sLSTM blocks. slstm_at: indices of the sLSTM blocks in place of the ratio,
    for models whose ratio is approximate, as the paper's are.
    """
    try:
        a, b = (int(x) for x in ratio.split(":"))
    except ValueError:
        a = b = -1
    if a < 0 or b < 0 or a + b == 0:
        raise ValueError(f"the ratio {ratio!r} is not of the form a:b; write e.g. 7:1 for seven mLSTM to one sLSTM.")
    if slstm_at is None:
        return "".join("m" if index % (a + b) < a else "s" for index in range(depth))
    outside = [index for index in slstm_at if not 0 <= index < depth]
    if outside:
        raise ValueError(f"slstm_at names block {outside[0]}, but the {depth} blocks are numbered 0 to {depth - 1}.")
    return "".join("s" if index in slstm_at else "m" for index in range(depth))
