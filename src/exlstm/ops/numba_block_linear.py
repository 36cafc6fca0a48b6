"""Block-diagonal maps of 4 x 4 blocks on a CPU: one pass over the rows, where a batched product would spend its time
packing and on zeros.

M rows (batch and time)  D width  F blocks of rows for the weights' gradient  I, J inputs and outputs of a block (4)
"""  # fmt: skip

from typing import Any

import numpy as np
import torch
from numba import njit
from torch import Tensor

from exlstm.ops.numba_jit import compiled, untraced
from exlstm.ops.numba_math import FASTMATH
from exlstm.ops.threads import share_out

Array = Any  # a float32 NumPy array inside Numba
THREAD_ELEMENTS = 1 << 18  # fewer numbers than this take one thread less time than it takes to wake another
GRADIENT_BLOCKS = 16  # the weights' gradient is summed in as many parts, so that it does not depend on the threads


@njit(fastmath=FASTMATH)
def map_row(x_D: Array, w_ID: Array, y_D: Array) -> None:
    """y_j = sum_i w_ij x_i for each block."""
    for d in range(0, x_D.size, 4):
        x0, x1, x2, x3 = x_D[d], x_D[d + 1], x_D[d + 2], x_D[d + 3]
        for j in range(d, d + 4):
            y_D[j] = (w_ID[0, j] * x0 + w_ID[1, j] * x1) + (w_ID[2, j] * x2 + w_ID[3, j] * x3)


@njit(fastmath=FASTMATH)
def add_outer_products(x_D: Array, dy_D: Array, dw_ID: Array) -> None:
    """dw_ij += x_i dy_j for each block."""
    for d in range(0, x_D.size, 4):
        x0, x1, x2, x3 = x_D[d], x_D[d + 1], x_D[d + 2], x_D[d + 3]
        for j in range(d, d + 4):
            dw_ID[0, j] += x0 * dy_D[j]
            dw_ID[1, j] += x1 * dy_D[j]
            dw_ID[2, j] += x2 * dy_D[j]
            dw_ID[3, j] += x3 * dy_D[j]


@compiled
def map_rows(first: int, last: int, x_MD: Array, w_ID: Array, y_MD: Array) -> None:
    """Rows first to last - 1. w_ID holds weight (i, j) of output d, the j-th of its block, at [i, d]."""
    for m in range(first, last):
        map_row(x_MD[m], w_ID, y_MD[m])


@compiled
def weight_gradients(first: int, last: int, x_MD: Array, dy_MD: Array, dw_FID: Array) -> None:
    """Parts first to last - 1 of the sum over rows."""
    M, parts = len(x_MD), len(dw_FID)
    for part in range(first, last):
        dw_FID[part] = np.float32(0.0)
        for m in range(M * part // parts, M * (part + 1) // parts):
            add_outer_products(x_MD[m], dy_MD[m], dw_FID[part])


def by_inputs(w_HVK: Tensor) -> Tensor:
    """w_ID of [H, V, K]: contiguous, [K, H V]."""
    return w_HVK.detach().permute(2, 0, 1).reshape(4, -1).contiguous()


def rows_of(x_BTD: Tensor) -> Tensor:
    """[B T, D] without a graph, whose rows are contiguous."""
    x_MD = x_BTD.detach().reshape(-1, x_BTD.shape[-1])
    return x_MD if x_MD.stride(1) == 1 else x_MD.contiguous()


def threads_for(x_MD: Tensor) -> int:
    """As many as the work is worth."""
    return max(1, x_MD.numel() // THREAD_ELEMENTS)


class BlockLinear(torch.autograd.Function):
    """(x, w) -> y"""

    @staticmethod
    def forward(ctx: Any, x_BTD: Tensor, w_HVK: Tensor) -> Tensor:
        x_MD, y_BTD = rows_of(x_BTD), x_BTD.new_empty(x_BTD.shape)
        arrays = (x.numpy() for x in (x_MD, by_inputs(w_HVK), y_BTD.view(x_MD.shape)))
        share_out(map_rows, len(x_MD), *arrays, threads=threads_for(x_MD))
        ctx.save_for_backward(x_BTD, w_HVK)
        return y_BTD

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy_BTD: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x_BTD, w_HVK = ctx.saved_tensors
        x_MD, dy_MD, dx_BTD, dw_HVK = rows_of(x_BTD), rows_of(dy_BTD), None, None
        threads = threads_for(x_MD)
        if ctx.needs_input_grad[0]:
            dx_BTD = dy_BTD.new_empty(dy_BTD.shape)
            arrays = (x.numpy() for x in (dy_MD, by_inputs(w_HVK.mT), dx_BTD.view(dy_MD.shape)))
            share_out(map_rows, len(x_MD), *arrays, threads=threads)
        if ctx.needs_input_grad[1]:
            dw_FID = x_MD.new_empty(GRADIENT_BLOCKS, 4, x_MD.shape[1])
            share_out(weight_gradients, GRADIENT_BLOCKS, *(x.numpy() for x in (x_MD, dy_MD, dw_FID)), threads=threads)
            dw_HVK = dw_FID.sum(0).view(4, -1, 4).permute(1, 2, 0)
        return dx_BTD, dw_HVK


@untraced
def block_linear_numba(x_BTD: Tensor, w_HVK: Tensor) -> Tensor:
    """The same numbers as `block_linear_torch`, for blocks of 4 x 4 in float32 on a CPU."""
    y_BTD: Tensor = BlockLinear.apply(x_BTD, w_HVK)  # type: ignore[no-untyped-call]
    return y_BTD
