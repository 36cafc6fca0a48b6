"""Feature maps on a CPU: products of two channels in one pass forward and one backward, and random features of a step.

N rows (batch, time and heads merged)  K width of x  P, M features
"""

from math import exp
from typing import Any

import numpy as np
import torch
from numpy import float32
from torch import Tensor

from exlstm.ops.derivatives import twice_differentiable
from exlstm.ops.features.reference import FAVOR_EPS, taylor_torch
from exlstm.runtime.cpu.jit import helper
from exlstm.runtime.cpu.kernel import F32, kernel
from exlstm.runtime.cpu.launch import launch, microseconds
from exlstm.runtime.cpu.loops import REORDER, Array, dot
from exlstm.runtime.cpu.memory import SIZE, at, put, tensor_at
from exlstm.runtime.tracing import has_gradients

HALF_ROOT, ROOT = 0.5**0.5, 2.0**0.5


@helper()
def products_from(y_K: Array, i: int, out: int) -> None:
    """y_i y_j for j > i, to an address."""
    y = y_K[i]
    for j in range(i + 1, y_K.size):
        put(out, j - i, y * y_K[j])


@kernel()
def taylor_rows(first: int, last: int, N: int, K: int, P: int, x_NK: F32, out_NP: F32) -> None:
    """Rows of features."""
    y_K, scale = np.empty(K, float32), float32(float(K) ** -0.25)
    for n in range(first, last):
        out = out_NP + n * P * SIZE
        put(out, 0, float32(1.0))
        for i in range(K):
            y_K[i] = at(x_NK, n * K + i) * scale
            put(out, 1 + i, y_K[i])
        out += (1 + K) * SIZE
        for i in range(K):
            put(out, 0, y_K[i] * (y_K[i] * float32(HALF_ROOT)))
            products_from(y_K, i, out)
            out += (K - i) * SIZE


@helper(REORDER)
def products_backward(y_K: Array, d: int, i: int, dy_K: Array) -> None:
    """Gradients of y from those of y_i y_j for j > i, at an address."""
    y, total = y_K[i], float32(0.0)
    for j in range(i + 1, y_K.size):
        total += at(d, j - i) * y_K[j]
    for j in range(i + 1, y_K.size):
        dy_K[j] += at(d, j - i) * y
    dy_K[i] += total


@kernel()
def taylor_rows_backward(first: int, last: int, N: int, K: int, P: int, x_NK: F32, d_NP: F32, dx_NK: F32) -> None:
    """Rows of the gradient of x."""
    y_K, dy_K, scale = np.empty(K, float32), np.empty(K, float32), float32(float(K) ** -0.25)
    for n in range(first, last):
        d = d_NP + n * P * SIZE
        for i in range(K):
            y_K[i] = at(x_NK, n * K + i) * scale
            dy_K[i] = at(d, 1 + i)
        d += (1 + K) * SIZE
        for i in range(K):
            dy_K[i] += float32(ROOT) * y_K[i] * at(d, 0)
            products_backward(y_K, d, i, dy_K)
            d += (K - i) * SIZE
        for i in range(K):
            put(dx_NK, n * K + i, dy_K[i] * scale)


@kernel()
def favor_rows(
    first: int, last: int, N: int, K: int, M: int, x_NK: F32, rows_MK: F32, out_NM: F32, is_query: bool
) -> None:
    """Rows of random features."""
    y_K, scale, share = np.empty(K, float32), float32(float(K) ** -0.25), float(M) ** -0.5
    for n in range(first, last):
        for i in range(K):
            y_K[i] = at(x_NK, n * K + i) * scale
        half, largest, out = float32(0.5) * dot(y_K, y_K), -np.inf, out_NM + n * M * SIZE
        for m in range(M):
            exponent = dot(tensor_at(rows_MK + m * K * SIZE, K, float32), y_K) - half
            put(out, m, exponent)
            largest = max(largest, float(exponent))
        unit = largest if is_query else 0.0
        for m in range(M):
            put(out, m, float32((exp(float(at(out, m)) - unit) + FAVOR_EPS) * share))


def forward(x_BTHK: Tensor) -> Tensor:
    """The features, without a graph."""
    x_BTHK, K = x_BTHK.contiguous(), x_BTHK.shape[-1]
    P, N = 1 + K + K * (K + 1) // 2, x_BTHK.numel() // K
    out_BTHP = x_BTHK.new_empty(*x_BTHK.shape[:-1], P)
    launch(taylor_rows, N, N, K, P, x_BTHK, out_BTHP, cost=microseconds(bytes=out_BTHP.nbytes, flops=2 * N * P))
    return out_BTHP


class Taylor(torch.autograd.Function):
    """x -> features, both float32."""

    @staticmethod
    def forward(ctx: Any, x_BTHK: Tensor) -> Tensor:
        ctx.save_for_backward(x_BTHK)
        ctx.options = {}
        return forward(x_BTHK)

    @staticmethod
    @twice_differentiable(taylor_torch)
    def backward(ctx: Any, d_BTHP: Tensor) -> tuple[Tensor | None, ...]:
        x_BTHK = ctx.saved_tensors[0].contiguous()
        (*_, K), P, dx_BTHK = x_BTHK.shape, d_BTHP.shape[-1], torch.empty(x_BTHK.shape)
        N, cost = x_BTHK.numel() // K, microseconds(bytes=d_BTHP.nbytes, flops=4 * d_BTHP.numel())
        launch(taylor_rows_backward, N, N, K, P, x_BTHK, d_BTHP.contiguous(), dx_BTHK, cost=cost)
        return (dx_BTHK,)


def taylor_numba(x_BTHK: Tensor) -> Tensor:
    """The numbers of `taylor_torch`, in float32."""
    call: Any = Taylor.apply if has_gradients([x_BTHK]) else forward
    out_BTHP: Tensor = call(x_BTHK)
    return out_BTHP


def favor_numba(x_BTHK: Tensor, rows_MK: Tensor, is_query: bool) -> Tensor:
    """The numbers of `favor_torch`, in float32, without gradients."""
    x_BTHK, (M, K) = x_BTHK.contiguous(), rows_MK.shape
    N, out_BTHM = x_BTHK.numel() // K, x_BTHK.new_empty(*x_BTHK.shape[:-1], M)
    cost = microseconds(flops=4 * N * M * K)
    launch(favor_rows, N, N, K, M, x_BTHK, rows_MK.contiguous(), out_BTHM, is_query, cost=cost)
    return out_BTHM
