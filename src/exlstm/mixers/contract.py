"""The contract of sequence mixers. Training, prefill and decoding are the same call.

    y_BTD, state = mixer(x_BTD, state, reset_BT=..., lengths_B=...)

* causal; any T >= 1; cutting time anywhere and passing the state on changes nothing
* state=None is the state before the first step; a state is a NamedTuple of tensors (or of such), batch first; it is a
  value: returned, never changed in place
* reset_BT (bool) clears a row's whole state before that step: later outputs do not depend on earlier steps
* lengths_B (int): steps at or beyond a row's length are padding, whatever they hold: y is 0 there, and the row's state
  and all gradients are as without them
* a batch of no rows gives empty results; narrower dtypes in a state are widened; input that does not fit raises
  ValueError
* backends give the same numbers up to rounding

B batch  T time  D model width
"""

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from exlstm.mixers.state import State, state_nbytes
from exlstm.nn.layers import Activation
from exlstm.ops.arguments import checked_rows
from exlstm.ops.common import length_mask, wide_dtype, zero_padding
from exlstm.ops.norm import Norm


class Mixer(Protocol):
    """A module with the call above, the state before its first step, and its costs."""

    def zero_state(self, batch: int, /, device: torch.device | None = None) -> State:
        """State before the first step for `batch` rows, on the device of the weights or on another."""

    def state_bytes(self, length: int = 0, /) -> int:
        """Bytes of one sequence's state after `length` steps."""

    def cell_flops(self, mode: str, length: int, /) -> float:
        """FLOPs per token beyond 2 per weight: "prefill" of `length` tokens (forward), or "decode" at that position."""


class Partner(NamedTuple):
    """A mixer whose block follows another's in place of an MLP: its name in MIXERS, and fields of its config."""

    name: str
    fields: Mapping[str, Any] = MappingProxyType({})


class BlockStyle(NamedTuple):
    """What stands around a mixer in its published models.

    norm: of the width. activation: of the MLP that follows, with factor * width channels inside, rounded up to a
    multiple of 64; None: no MLP. gated, bias: of that MLP.
    partner: the mixer whose block follows in place of an MLP, or None.
    """

    norm: Norm = "rms"
    activation: Activation | None = "silu"
    factor: float = 2.667
    gated: bool = True
    bias: bool = False
    partner: Partner | None = None


@runtime_checkable
class MixerConfig(Protocol):
    """Frozen dataclass of plain values that builds a mixer.

    An `up_factor` of the config scales its inner width; a mixer that is published without MLP and partner has one.
    """

    style: ClassVar[BlockStyle]

    def build(self, width: int, *, depth: int = 1, index: int = 0) -> nn.Module:
        """The mixer for model width `width`, as block `index` of `depth` (some initial values depend on these)."""


def zero_state_bytes(mixer: Mixer) -> int:
    """Bytes per sequence of the state before the first step."""
    return state_nbytes(mixer.zero_state(1, torch.device("meta")))


class FixedStateMixer(nn.Module):
    """A mixer whose state has the same size at any length."""

    def state_bytes(self: Mixer, length: int = 0, /) -> int:
        """Bytes of one sequence's state."""
        return zero_state_bytes(self)


def wide_zeros(weight: Tensor, device: torch.device | None) -> Callable[..., Tensor]:
    """`zeros(*shape)` in float32 or wider, for states; on `device`, or on that of the weight."""
    return partial(torch.zeros, dtype=wide_dtype(weight.dtype), device=device or weight.device)


def checked(x_BTD: Tensor, width: int, reset_BT: Tensor | None, lengths_B: Tensor | None
            ) -> tuple[Tensor, Tensor | None, Tensor | None]:  # fmt: skip
    """Checked input of a mixer: x with zeros in its padding, reset_BT, and lengths_B in int64.

    NaN in the padding would reach other steps through products, forward and backward; zeros do not.
    Raises ValueError for an x that is not [B, T >= 1, width], and for reset_BT and lengths_B that do not fit it.
    """
    if x_BTD.ndim != 3 or x_BTD.shape[2] != width:
        raise ValueError(f"x has shape {tuple(x_BTD.shape)}; this mixer takes [batch, time, {width}].")
    reset_BT, lengths_B = checked_rows(x_BTD, reset_BT, lengths_B)
    return mask_tail(x_BTD, lengths_B), reset_BT, lengths_B


def check_width(width: int, heads: int = 1) -> None:
    """ValueError for a model width that is no whole number, below 1, or not divided by `heads`."""
    if not isinstance(width, int) or width < 1:
        raise ValueError(f"width is {width!r}; it must be a whole number of at least 1.")
    check_heads(width, heads)


def check_heads(width: int, heads: int, name: str = "width {}") -> None:
    """ValueError unless `heads` divide a width of at least 1. name: the width's in the error, with its number."""
    if width < 1 or width % heads:
        raise ValueError(f"heads is {heads}; it must divide the {name.format(width)}.")


def mask_tail(y_BTD: Tensor, lengths_B: Tensor | None) -> Tensor:
    """y with zeros at and beyond each row's length."""
    return y_BTD if lengths_B is None else zero_padding(y_BTD, length_mask(lengths_B, y_BTD.shape[1]))
