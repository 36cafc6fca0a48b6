"""States as one vector per row, for replay buffers and graphs with a single recurrent input.

    flat_BW = flat_state(model, state);  state = unflat_state(model, flat_BW)

The numbers are in the order of `leaves`, each tensor from its first to its last. Zeros are the state before the first
step, for every mixer in MIXERS and every drop-in of `exlstm.rnn`: a row times 0 is a reset.

B batch  W numbers of a row
"""

from math import prod
from typing import Any, Protocol

import torch
from torch import Tensor

from exlstm.mixers.state import LMState, leaves, map_state, with_leaves
from exlstm.rnn.interface import RecurrentNet

DIGIT = 2**24  # float32 holds all whole numbers up to here


class FixedSizeModel(Protocol):
    """A model or a drop-in whose state is known by its shapes; it may grow, and is refused then."""

    def shapes(self, batch: int) -> LMState:
        """The expected state on the meta device."""

    def check_state(self, state: Any, batch: int) -> None:
        """ValueError unless the state fits this model and batch."""

    def state_bytes(self, length: int = 0) -> int:
        """Bytes of one sequence's state after `length` steps."""


def flat_state(model: FixedSizeModel, state: LMState) -> Tensor:
    """[B, W]: the state of every row as one vector, of `state_size` numbers.

    float32, or float64 for a model in float64. A count in int64 is two numbers in float32, and exact below 2^48; W
    times the bytes of a number are the bytes of the state, but for bools. Gradients flow through.
    Raises ValueError for a state of another model, and for a model whose state grows or that has none.
    """
    batch = batch_of(model, state)
    parts = flat_parts(model, batch)
    model.check_state(state, batch)
    found, dtype = leaves(turned(model, tuple(state))), flat_dtype(parts)
    for x, part in zip(found, parts, strict=True):
        if x.shape != part.shape:
            raise ValueError(
                f"the state has a part of shape {tuple(x.shape)}, and this model one of {tuple(part.shape)}; "
                "pass the state that this model returned."
            )
    return torch.cat([numbers(x, dtype) for x in found], dim=1)


def unflat_state(model: FixedSizeModel, flat_BW: Tensor) -> LMState:
    """The state that `flat_state` made [B, W] of, in memory of its own. Raises ValueError for what does not fit."""
    parts = flat_parts(model, 1)
    dtype, widths = flat_dtype(parts), [width_of(part, flat_dtype(parts)) for part in parts]
    if not isinstance(flat_BW, Tensor) or flat_BW.ndim != 2 or flat_BW.shape[1] != sum(widths):
        found = f"has shape {tuple(flat_BW.shape)}" if isinstance(flat_BW, Tensor) else f"is a {type(flat_BW).__name__}"
        raise ValueError(f"the flat state {found}; this model takes [batch, {sum(widths)}].")
    if flat_BW.dtype is not dtype:
        raise ValueError(f"the flat state is {flat_BW.dtype}, and this model takes {dtype}; convert it.")
    tensors = (from_numbers(x, part) for x, part in zip(torch.split(flat_BW, widths, dim=1), parts, strict=True))
    state: LMState = turned(model, with_leaves(model.shapes(1), tensors))
    return state


def flat_size(model: FixedSizeModel) -> int:
    """W: the numbers of a row. ValueError for a model whose state grows or that has none."""
    parts = flat_parts(model, 1)
    return sum(width_of(part, flat_dtype(parts)) for part in parts)


def turned(model: FixedSizeModel, state: LMState) -> LMState:
    """The state of a drop-in, torch's pair with rows at axis 1, with rows first; and back. Others stay."""
    if not isinstance(model, RecurrentNet):
        return state
    pair: LMState = map_state(lambda x: x.transpose(0, 1).contiguous(), state)
    return pair


def batch_of(model: FixedSizeModel, state: Any) -> int:
    """The rows of a state, or 1 where it is none."""
    first, axis = state, int(isinstance(model, RecurrentNet))
    while isinstance(first, tuple | list) and first:
        first = first[0]
    return first.shape[axis] if isinstance(first, Tensor) and first.ndim > axis else 1


def flat_parts(model: FixedSizeModel, batch: int) -> list[Tensor]:
    """The tensors of the model's state with rows first, on the meta device."""
    now, later = model.state_bytes(0), model.state_bytes(1 << 20)
    if now != later:
        raise ValueError(
            f"the state of this model grows, from {now:,} bytes to {later:,} after 2^20 steps; "
            "use blocks with a state of fixed size, such as attention with a window."
        )
    parts = leaves(turned(model, model.shapes(batch)))
    if not parts:
        raise ValueError("this model has no state, as it reads in both directions; use one with bidirectional=False.")
    return parts


def flat_dtype(parts: list[Tensor]) -> torch.dtype:
    """float64 if a part is, else float32."""
    return torch.float64 if any(x.dtype is torch.float64 for x in parts) else torch.float32


def is_split(x: Tensor, dtype: torch.dtype) -> bool:
    """Whether integers take two numbers each, for float32 does not hold them."""
    return x.dtype is torch.int64 and dtype is torch.float32


def width_of(x: Tensor, dtype: torch.dtype) -> int:
    """How many numbers a row of this tensor takes."""
    return prod(x.shape[1:]) * (2 if is_split(x, dtype) else 1)


def numbers(x: Tensor, dtype: torch.dtype) -> Tensor:
    """[B, ...] -> [B, numbers]."""
    rows = x.reshape(len(x), prod(x.shape[1:]))
    if not is_split(x, dtype):
        return rows.to(dtype)
    high = rows.div(DIGIT, rounding_mode="floor")
    return torch.cat([high, rows - high * DIGIT], dim=1).to(dtype)


def from_numbers(rows: Tensor, like: Tensor) -> Tensor:
    """The inverse of `numbers`, with the dtype of `like`, and its shape but for the batch."""
    if is_split(like, rows.dtype):
        high, low = rows.round().to(like.dtype).chunk(2, dim=1)
        rows = high * DIGIT + low
    elif not like.dtype.is_floating_point:
        rows = rows.round()
    return rows.reshape(len(rows), *like.shape[1:]).to(like.dtype).clone(memory_format=torch.contiguous_format)
