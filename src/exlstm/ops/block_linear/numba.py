"""Block-diagonal maps of 4 x 4 blocks on a CPU: one pass over the rows. A batched product would spend its time on
packing and on zeros.

Written in LLVM's vectors: y_j is the sum over i of w_ij x_i, and x_i in every place of its block is one shuffle. LLVM's
vectorizer does not find that by itself. The weights stay in the first cache of a core.

M rows (batch and time)  D width  P parts of the weights' gradient  I inputs of a block (4)
"""

from typing import Any

import torch
from torch import Tensor

from exlstm.ops.block_linear.reference import block_linear_torch
from exlstm.ops.derivatives import twice_differentiable
from exlstm.runtime.cpu.kernel import F32, F32Rows, kernel
from exlstm.runtime.cpu.launch import launch, microseconds
from exlstm.runtime.cpu.memory import clear
from exlstm.runtime.cpu.simd import SimdValue
from exlstm.runtime.cpu.vectors import Vectors, inlined

WIDTH, BLOCK = 16, 4  # channels at a time: a cache line; the rest of a row goes block by block
GRADIENT_PARTS = 16  # of the weights' gradient, a fixed number, so that sums do not depend on the threads


def inputs(v: Vectors, x: SimdValue) -> list[SimdValue]:
    """Vectors for i = 0 .. 3: input i of each block of x, in all places of the block."""
    return [v.shuffle(x, [n // BLOCK * BLOCK + i for n in range(v.width)]) for i in range(BLOCK)]


def map_channels(width: int) -> Any:
    """A function (step, x, w, y): y_j = sum_i w_ij x_i. step: bytes from weights i to weights i + 1."""

    @inlined(4)
    def body(builder: Any, step: Any, x: Any, w: Any, y: Any) -> None:
        v = Vectors(builder, width)
        total = v.zeros()
        for i, number in enumerate(inputs(v, v.load(x))):
            total = v.fma(number, v.load(v.row(w, step, i)), total)
        v.store(total, y)

    return body


def add_outer_products(width: int) -> Any:
    """A function (step, x, dy, dw): dw_ij += x_i dy_j. step: bytes from weights i to weights i + 1."""

    @inlined(4)
    def body(builder: Any, step: Any, x: Any, dy: Any, dw: Any) -> None:
        v = Vectors(builder, width)
        gradients = v.load(dy)
        for i, number in enumerate(inputs(v, v.load(x))):
            here = v.row(dw, step, i)
            v.store(v.fma(number, gradients, v.load(here)), here)

    return body


map_line, map_block = map_channels(WIDTH), map_channels(BLOCK)
add_line, add_block = add_outer_products(WIDTH), add_outer_products(BLOCK)


@kernel(I=BLOCK)
def map_rows(first: int, last: int, M: int, D: int, x_MD: F32Rows, x_step: int, w_ID: F32, y_MD: F32) -> None:
    """Rows of y. Rows of x are x_step bytes apart. w: weight (i, j) of output d, the j-th of its block, at [i, d]."""
    lines = D // WIDTH * WIDTH
    for m in range(first, last):
        from_row, to_row = x_MD + m * x_step, y_MD + 4 * m * D
        for d in range(0, 4 * lines, 4 * WIDTH):
            map_line(4 * D, from_row + d, w_ID + d, to_row + d)
        for d in range(4 * lines, 4 * D, 4 * BLOCK):
            map_block(4 * D, from_row + d, w_ID + d, to_row + d)


@kernel(I=BLOCK, P=GRADIENT_PARTS)
def weight_gradients(
    first: int, last: int, M: int, D: int, x_MD: F32Rows, x_step: int, dy_MD: F32Rows, dy_step: int, dw_PID: F32
) -> None:
    """Parts of the weights' gradient, each a sum over some rows, [I, D] like w."""
    lines = D // WIDTH * WIDTH
    for part in range(first, last):
        here = dw_PID + 4 * BLOCK * D * part
        clear(here, BLOCK * D)
        for m in range(M * part // GRADIENT_PARTS, M * (part + 1) // GRADIENT_PARTS):
            x_row, dy_row = x_MD + m * x_step, dy_MD + m * dy_step
            for d in range(0, 4 * lines, 4 * WIDTH):
                add_line(4 * D, x_row + d, dy_row + d, here + d)
            for d in range(4 * lines, 4 * D, 4 * BLOCK):
                add_block(4 * D, x_row + d, dy_row + d, here + d)


def by_inputs(w_HVK: Tensor) -> Tensor:
    """w_ID of [H, V, K]: contiguous, [K, H V]."""
    return w_HVK.detach().permute(2, 0, 1).reshape(BLOCK, -1).contiguous()


def rows_of(x_BTD: Tensor) -> Tensor:
    """x as [B T, D] without a graph, its rows contiguous."""
    x_MD = x_BTD.detach().reshape(-1, x_BTD.shape[-1])
    return x_MD if x_MD.stride(1) == 1 else x_MD.contiguous()


def apply_blocks(x_MD: Tensor, w_HVK: Tensor) -> Tensor:
    """y [M, D] = x W^T, block by block."""
    M, D = x_MD.shape
    y_MD = x_MD.new_empty(M, D)
    launch(map_rows, M, M, D, x_MD, 4 * x_MD.stride(0), by_inputs(w_HVK), y_MD, cost=cost_of(x_MD))
    return y_MD


def cost_of(x_MD: Tensor) -> float:
    """The cost of reading two tensors like x, or of reading one and writing another."""
    return microseconds(bytes=2 * x_MD.nbytes)


class BlockLinear(torch.autograd.Function):
    """(x, w) -> y"""

    @staticmethod
    def forward(ctx: Any, x_BTD: Tensor, w_HVK: Tensor) -> Tensor:
        ctx.save_for_backward(x_BTD, w_HVK)
        ctx.options = {}
        return apply_blocks(rows_of(x_BTD), w_HVK).view(x_BTD.shape)

    @staticmethod
    @twice_differentiable(block_linear_torch)
    def backward(ctx: Any, dy_BTD: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x_BTD, w_HVK = ctx.saved_tensors
        x_MD, dy_MD, dx_BTD, dw_HVK = rows_of(x_BTD), rows_of(dy_BTD), None, None
        if ctx.needs_input_grad[0]:
            dx_BTD = apply_blocks(dy_MD, w_HVK.mT).view(x_BTD.shape)
        if ctx.needs_input_grad[1]:
            M, D = x_MD.shape
            dw_PID = x_MD.new_empty(GRADIENT_PARTS, BLOCK, D)
            launch(
                weight_gradients, GRADIENT_PARTS, M, D, x_MD, 4 * x_MD.stride(0), dy_MD, 4 * dy_MD.stride(0), dw_PID,
                cost=cost_of(x_MD),
            )  # fmt: skip
            dw_HVK = dw_PID.sum(0).view(BLOCK, -1, BLOCK).permute(1, 2, 0)
        return dx_BTD, dw_HVK


def block_linear_numba(x_BTD: Tensor, w_HVK: Tensor) -> Tensor:
    """The same numbers as `block_linear_torch`, for blocks of 4 x 4 in float32 on a CPU."""
    y_BTD: Tensor = BlockLinear.apply(x_BTD, w_HVK)  # type: ignore[no-untyped-call]
    return y_BTD
