# mypy: ignore-errors
"""Tensors as Triton kernels see them, and blocks of matrices loaded and stored.

Groups are named tuples, which Triton takes as arguments: tensors become addresses, tl.constexpr stays a constant.

K, V widths of a matrix, in blocks of BK and BV
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl
from torch import Tensor


class StridedRows(NamedTuple):
    """A tensor [B, T, H, width]: address, strides of row, step and head. The width is without gaps."""

    at: Any
    b: Any
    t: Any
    h: Any


def rows(x_BTHD: Tensor) -> StridedRows:
    """A tensor and its strides, for a kernel."""
    return StridedRows(x_BTHD, *x_BTHD.stride()[:3])


class Steps(NamedTuple):
    """Consecutive steps [T, width] of a sequence and head: address and stride."""

    at: Any
    t: Any


@triton.jit
def load_matrix(x, first_k, first_v, K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr):
    """A block [BK, BV] of a contiguous [K, V] matrix, zeros beyond its end."""
    k, v = first_k + tl.arange(0, BK), first_v + tl.arange(0, BV)
    at = x + k[:, None] * V + v[None, :]
    if K % BK == 0 and V % BV == 0:
        return tl.load(at)
    return tl.load(at, mask=(k < K)[:, None] & (v < V)[None, :], other=0.0)


@triton.jit
def store_matrix(x, value, first_k, first_v, K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr):
    """The inverse of `load_matrix`."""
    k, v = first_k + tl.arange(0, BK), first_v + tl.arange(0, BV)
    there = (k < K)[:, None] & (v < V)[None, :]
    tl.store(x + k[:, None] * V + v[None, :], value.to(x.dtype.element_ty), mask=there)
