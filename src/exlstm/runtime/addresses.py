"""Addresses of tensors, for kernels on CPUs."""

import torch
from torch import Tensor


def address(x: Tensor | None, count: int, dtype: torch.dtype = torch.float32, *, gaps: bool = False) -> int:
    """Where a CPU kernel finds the `count` numbers of `x`; 0 for None.

    gaps: the numbers of the last axis are neighbours, and the kernel is told the distances of the others. A kernel
    knows nothing else of a tensor, so what it would misread raises ValueError here. An address keeps nothing alive.
    """
    if x is None:
        return 0
    in_order = x.is_contiguous() or (gaps and x.stride(-1) == 1)
    if x.dtype is not dtype or not in_order or x.numel() != count or not x.is_cpu:
        raise ValueError(
            f"a kernel was given {x.dtype} of shape {tuple(x.shape)} and strides {x.stride()} on {x.device}; "
            f"it reads {count} neighbouring numbers of {dtype} on a CPU."
        )
    return x.data_ptr()


def addresses(count: int, *tensors: Tensor | None, dtype: torch.dtype = torch.float32) -> tuple[int, ...]:
    """`address` of several tensors of so many numbers each."""
    return tuple(address(x, count, dtype) for x in tensors)
