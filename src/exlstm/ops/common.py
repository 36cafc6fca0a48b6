"""Precision, padding masks and contiguous tensors, as several ops need them.

B batch  T time
"""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from exlstm.runtime.tracing import is_portable


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """float32, or wider if `dtype` is: the precision of gates, states and sums."""
    return torch.promote_types(dtype, torch.float32)


def exact_dtype(x: Tensor) -> torch.dtype:
    """float64 for sums that cancel, where the device has it; in a graph for other runtimes float32, which all have."""
    return wide_dtype(x.dtype) if x.device.type == "mps" or is_portable() else torch.float64


def upcast(x: Tensor) -> Tensor:
    """`x` in float32 or wider ("wide" in docstrings): sums of log gates do not survive bfloat16."""
    return x.to(wide_dtype(x.dtype))


def length_mask(lengths_B: Tensor, steps: int) -> Tensor:
    """valid_BT: True where step t belongs to row b, that is t < lengths_B[b]."""
    return torch.arange(steps, device=lengths_B.device) < lengths_B[:, None]


def rows_for_kernels(x: Tensor, reset_BT: Tensor | None, lengths_B: Tensor | None) -> tuple[Tensor | None, Tensor]:
    """Resets without gaps, if there are any, and the number of steps of every row of x: [B, T, ...]."""
    lengths_B = torch.full(x.shape[:1], x.shape[1], device=x.device) if lengths_B is None else lengths_B.contiguous()
    return None if reset_BT is None else reset_BT.contiguous(), lengths_B


def row_masks(reset_BT: Tensor | None, lengths_B: Tensor | None, steps: int) -> tuple[Tensor | None, Tensor | None]:
    """Resets within the rows' lengths, and `length_mask`; None where there are none."""
    if lengths_B is None:
        return reset_BT, None
    valid_BT = length_mask(lengths_B, steps)
    return None if reset_BT is None else reset_BT & valid_BT, valid_BT


def without_autocast(x: Tensor) -> AbstractContextManager[object]:
    """A context without autocast on the device of x, for products that must not be narrowed."""
    # entering autocast costs as much as an op on a small model's token; skipped where it is off already
    off = not torch.is_autocast_enabled(x.device.type)
    return nullcontext() if off else torch.autocast(x.device.type, enabled=False)


def broadcast_mask(mask: Tensor, x: Tensor) -> Tensor:
    """`mask` with trailing axes of size one, so that it broadcasts against `x` from the left."""
    return mask.reshape(mask.shape + (1,) * (x.ndim - mask.ndim))


def zero_padding(x: Tensor, valid_BT: Tensor) -> Tensor:
    """`x` [B, T, ...] with zeros where valid_BT is False, so that padding, perhaps NaN, enters no product."""
    return x.masked_fill(broadcast_mask(~valid_BT, x), 0)


def detached_contiguous(*tensors: Tensor) -> list[Tensor]:
    """Contiguous tensors without a graph, as kernels read them."""
    return [x.detach().contiguous() for x in tensors]
