"""What every sequence mixer promises. Training, prefill and decoding are the same call.

    y_BTD, state = mixer(x_BTD, state, reset_BT=..., lengths_B=...)

* causal; any T >= 1; cutting time anywhere and passing the state on changes nothing
* state=None means nothing seen yet; a state is a NamedTuple of tensors (or of such), batch first; it is a value:
  returned, never changed in place
* reset_BT (bool) clears a row's state before that step, all of it: what follows cannot tell what came before
* lengths_B (int): steps at or beyond a row's length change nothing in its state, nor in any gradient, and give y = 0,
  whatever is there
* a batch of no rows gives empty results; narrower numbers in a state are widened; what does not fit is a ValueError
* the numbers do not depend on the backend that ran, beyond rounding

B batch  T time  D model width
"""

from collections.abc import Callable
from functools import partial
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from exlstm.mixers.state import State, state_nbytes
from exlstm.ops.arguments import checked_rows
from exlstm.ops.common import blank, inside, wide_dtype


class Mixer(Protocol):
    """The call above, and what it costs."""

    def zero_state(self, batch: int, /, device: torch.device | None = None) -> State:
        """Nothing seen yet, for `batch` rows; on the device of the weights, or on another."""

    def state_bytes(self, length: int = 0, /) -> int:
        """Bytes of one sequence's state after `length` steps."""

    def cell_flops(self, mode: str, length: int, /) -> float:
        """FLOPs per token beyond 2 per weight: "prefill" of `length` tokens (forward), or "decode" at that position."""


@runtime_checkable
class MixerConfig(Protocol):
    """A frozen dataclass of plain values that builds its mixer."""

    def build(self, width: int, *, depth: int = 1, index: int = 0) -> nn.Module:
        """The mixer for model width `width`, as block `index` of `depth` (some initial values depend on these)."""


def constant_state_bytes(mixer: Mixer) -> int:
    """Bytes per sequence of a state whose size does not depend on the length."""
    return state_nbytes(mixer.zero_state(1, torch.device("meta")))


def wide_zeros(weight: Tensor, device: torch.device | None) -> Callable[..., Tensor]:
    """`zeros(*shape)` in float32 or wider, on `device` or where the weight is: what states start as."""
    return partial(torch.zeros, dtype=wide_dtype(weight.dtype), device=device or weight.device)


def checked(x_BTD: Tensor, width: int, reset_BT: Tensor | None, lengths_B: Tensor | None
            ) -> tuple[Tensor, Tensor | None, Tensor | None]:  # fmt: skip
    """What a mixer is called with: x with zeros in its padding, reset_BT, and lengths_B in int64.

    Whatever the padding holds, perhaps NaN, then meets nothing in a product, forward or backward.
    Raises ValueError for an x that is not [B, T >= 1, width], and for reset_BT and lengths_B that do not fit it.
    """
    if x_BTD.ndim != 3 or x_BTD.shape[2] != width:
        raise ValueError(f"x has shape {tuple(x_BTD.shape)}; this mixer takes [batch, time, {width}].")
    reset_BT, lengths_B = checked_rows(x_BTD, reset_BT, lengths_B)
    return mask_tail(x_BTD, lengths_B), reset_BT, lengths_B


def check_width(width: int) -> None:
    """ValueError for a model width that no mixer can have."""
    if width < 1:
        raise ValueError(f"width is {width}; a mixer needs at least 1.")


def mask_tail(y_BTD: Tensor, lengths_B: Tensor | None) -> Tensor:
    """Zero at and beyond each row's length."""
    return y_BTD if lengths_B is None else blank(y_BTD, inside(lengths_B, y_BTD.shape[1]))
