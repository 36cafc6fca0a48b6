"""Checks of an op's arguments beside its input: resets, lengths and a state, before a kernel runs.

B batch  T time
"""

from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from exlstm.ops.common import wide_dtype

State = TypeVar("State", bound=tuple[Tensor, ...])
INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def described(x: Any) -> str:
    """A tensor's dtype, shape and device, or the type of another value, for errors."""
    return f"{x.dtype} of shape {tuple(x.shape)} on {x.device}" if isinstance(x, Tensor) else f"a {type(x).__name__}"


def misfit(name: str, x: Any, dtype: torch.dtype, shape: tuple[int, ...], device: torch.device) -> ValueError:
    """The error for an argument that does not fit the input."""
    return ValueError(f"{name} is {described(x)}; to fit the input it must be {dtype} of shape {shape} on {device}.")


def exact_in(dtype: torch.dtype, wider: torch.dtype) -> bool:
    """Whether `wider` holds every number of the floating `dtype` exactly."""
    return dtype is wider or (dtype.is_floating_point and dtype.itemsize < wider.itemsize)


def checked_rows(x: Tensor, reset_BT: Any, lengths_B: Any, /) -> tuple[Tensor | None, Tensor | None]:
    """reset_BT, and lengths_B as int64 from 0 to T, for an input x of [B, T, ...].

    Raises ValueError for an input of no steps, a reset_BT that is not bool, lengths that are not integers, and for
    another shape or device than the input's. Lengths beyond T mean T.
    """
    B, T = x.shape[:2]
    if T < 1:
        raise ValueError(f"the input has shape {tuple(x.shape)}; it must have at least one step.")
    if reset_BT is not None and not fits(reset_BT, (torch.bool,), (B, T), x):
        raise misfit("reset_BT", reset_BT, torch.bool, (B, T), x.device)
    if lengths_B is None:
        return reset_BT, None
    if not fits(lengths_B, INTEGERS, (B,), x):
        raise misfit("lengths_B", lengths_B, torch.int64, (B,), x.device)
    return reset_BT, lengths_B.long().clamp(0, T)


def fits(given: Any, dtypes: Sequence[torch.dtype], shape: tuple[int, ...], x: Tensor) -> bool:
    """Whether `given` is a tensor of one of these dtypes, of this shape and on the device of x."""
    return isinstance(given, Tensor) and given.dtype in dtypes and given.shape == shape and given.device == x.device


def check_like(name: str, given: Tensor, shape: tuple[int, ...], x: Tensor) -> None:
    """ValueError unless `given` has this shape, the device of x, and a dtype no wider than `wide_dtype` of x's."""
    if given.shape != shape or given.device != x.device:
        raise misfit(name, given, x.dtype, shape, x.device)
    if given.dtype is not x.dtype and not exact_in(given.dtype, wide_dtype(x.dtype)):
        raise misfit(name, given, wide_dtype(x.dtype), shape, x.device)


def checked_state(state: State | None, kind: type[State], shapes: Sequence[tuple[int, ...]], x: Tensor) -> State:
    """The state upcast for a computation with x: to float32, or to float64 if x is. None: zeros of these shapes.

    Raises ValueError for another type, shape or device, and for float64 beside a narrower x: digits would be lost.
    """
    dtype, device, same = wide_dtype(x.dtype), x.device, True
    if state is None:
        # a tensor for each part: torch.compile takes none twice
        return kind(*(x.new_zeros(shape, dtype=dtype) for shape in shapes))
    if not isinstance(state, kind):
        raise ValueError(f"the state is a {type(state).__name__}; it must be the {kind.__name__} of an earlier call.")
    for number, (part, shape) in enumerate(zip(state, shapes, strict=True)):
        if part.shape != shape or part.device != device or not exact_in(part.dtype, dtype):
            name: str = kind._fields[number]  # type: ignore[attr-defined]
            raise misfit(f"{name} of the state", part, dtype, shape, device)
        same = same and part.dtype is dtype
    return state if same else kind(*(part.to(dtype) for part in state))
