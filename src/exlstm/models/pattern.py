"""Patterns of blocks, one letter each, and the models they describe.

m  mLSTM of the paper (its own up-projection)      s  sLSTM of the paper + gated GELU MLP
M  mLSTM of xLSTM-7B + SwiGLU MLP                  a  attention as in Llama + SwiGLU MLP
l  LSTM + gated GELU MLP
"""

from collections.abc import Callable

from exlstm.mixers.attention import AttentionConfig
from exlstm.mixers.lstm import LSTMConfig
from exlstm.mixers.mlstm import MLSTMConfig
from exlstm.mixers.mlstm_large import MLSTMLargeConfig
from exlstm.mixers.slstm import SLSTMConfig
from exlstm.models.lm import BlockConfig, LMConfig, MLPConfig
from exlstm.nn.layers import round_up


def paper_mlp(width: int) -> MLPConfig:
    """The MLP after an sLSTM in the paper's trained models: factor 1.3, rounded up to a multiple of 64."""
    return MLPConfig(hidden=round_up(1.3 * width, 64), activation="gelu")


def swiglu(width: int) -> MLPConfig:
    """The MLP of xLSTM-7B and of Llama: factor 2.667, rounded up to a multiple of 64."""
    return MLPConfig(hidden=round_up(2.667 * width, 64), activation="silu")


BLOCKS: dict[str, Callable[[int, int], BlockConfig]] = {
    "m": lambda width, heads: BlockConfig(mixer=MLSTMConfig(heads=heads)),
    "s": lambda width, heads: BlockConfig(mixer=SLSTMConfig(heads=heads), mlp=paper_mlp(width)),
    "M": lambda width, heads: BlockConfig(mixer=MLSTMLargeConfig(heads=heads), mlp=swiglu(width)),
    "a": lambda width, heads: BlockConfig(mixer=AttentionConfig(heads=heads), mlp=swiglu(width)),
    "l": lambda width, heads: BlockConfig(mixer=LSTMConfig(), mlp=paper_mlp(width)),
}


def blocks_from_pattern(pattern: str, *, width: int, heads: int = 4) -> tuple[BlockConfig, ...]:
    """The blocks of a pattern such as "mmms". ValueError for an unknown letter or an empty pattern."""
    unknown = sorted(set(pattern) - set(BLOCKS))
    if unknown or not pattern:
        raise ValueError(
            f"the block pattern {pattern!r} is not made of the letters {''.join(BLOCKS)}; write e.g. mmms."
        )
    return tuple(BLOCKS[letter](width, heads) for letter in pattern)


def lm_from_pattern(pattern: str, *, vocab_size: int, width: int, heads: int = 4) -> LMConfig:
    """A language model of these blocks with layer norms (RMS norms where every block is one of M, a)."""
    rms = set(pattern) <= {"M", "a"}
    return LMConfig(
        vocab_size=vocab_size,
        width=width,
        blocks=blocks_from_pattern(pattern, width=width, heads=heads),
        norm="rms" if rms else "layer",
        norm_eps=1e-6 if rms else 1e-5,
    )


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
