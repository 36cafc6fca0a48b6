"""The long convolution by blocks of L steps, with a hand-written backward: exactly causal, for shorter windows.

    Y_n = sum_k H_k U_{n-k}        H_k[t, s] = taps_{k L + t - s}, a Toeplitz matrix; 0 outside of the R taps

One batched product for each lag k, with all columns that have a column k before them. Nothing of a later step is ever
read, so that outputs and gradients are causal bit by bit. Memory is linear in T; saved are the inputs.

B batch  T time  S cached steps  A cached and new steps  E channels  R taps  M columns  J columns with new steps
L steps of a column  I values of a Toeplitz matrix (2 L - 1)  P taps within reach, with zeros on both sides
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from exlstm.ops.derivatives import once_differentiable
from exlstm.ops.long_conv.segments import BLOCK, InputBlocks, blocks_of
from exlstm.ops.toeplitz import diagonal_sums, from_columns, in_columns, toeplitz


def lags(blocks: InputBlocks, taps: int) -> int:
    """How many columns back a product reaches, with its own."""
    return min(blocks.deepest + 1, (taps + BLOCK - 2) // BLOCK + 1)


def padded_taps(taps_RE: Tensor, count: int) -> Tensor:
    """taps_EP: L - 1 zeros, then the taps that `count` lags may read, or zeros beyond the last."""
    reach = count * BLOCK
    near = taps_RE[:reach].mT
    return pad(near, (BLOCK - 1, reach - near.shape[1]))


def values_at(taps_EP: Tensor, lag: int) -> Tensor:
    """taps_EI: the values of the Toeplitz matrix of a lag."""
    return taps_EP[:, lag * BLOCK : lag * BLOCK + 2 * BLOCK - 1]


def columns(x_BAE: Tensor, blocks: InputBlocks) -> Tensor:
    """x_EML of all steps."""
    if blocks.place_BA is None:
        x_BAE = pad(x_BAE, (0, 0, blocks.front, 0))
    return in_columns(x_BAE, BLOCK, blocks.place_BA, blocks.M)


class ToeplitzConvolution(torch.autograd.Function):
    """(x, taps, number of cached steps) -> y_BTE of the new steps; all wide."""

    @staticmethod
    def forward(ctx: Any, x_BAE: Tensor, taps_RE: Tensor, S: int, reset_BT: Tensor | None) -> Tensor:
        B, A, E = x_BAE.shape
        blocks = blocks_of(B, A, S, reset_BT)
        count, x_EML = lags(blocks, len(taps_RE)), columns(x_BAE, blocks)
        taps_EP = padded_taps(taps_RE, count)
        J = (blocks.N - blocks.old) * B if blocks.new_J is None else len(blocks.new_J)
        y_EJL = x_EML.new_zeros(E, J, BLOCK)
        for lag in range(count):
            to, source = blocks.pairs(B, lag)
            y_EJL[:, to] += torch.bmm(x_EML[:, source], toeplitz(values_at(taps_EP, lag)))
        ctx.save_for_backward(x_BAE, taps_RE, reset_BT)
        ctx.S = S
        return from_columns(y_EJL, B, A - S, blocks.place_BT)

    @staticmethod
    @once_differentiable("long_conv", "chunkwise")
    def backward(ctx: Any, dy_BTE: Tensor) -> tuple[Tensor | None, ...]:
        x_BAE, taps_RE, reset_BT = ctx.saved_tensors
        (B, A, _), R = x_BAE.shape, len(taps_RE)
        blocks = blocks_of(B, A, ctx.S, reset_BT)
        count, x_EML = lags(blocks, R), columns(x_BAE, blocks)
        taps_EP = padded_taps(taps_RE, count)
        dy_EJL = in_columns(dy_BTE, BLOCK, blocks.place_BT, 0 if blocks.new_J is None else len(blocks.new_J))
        dx_EML, dtaps_EP = torch.zeros_like(x_EML), torch.zeros_like(taps_EP)
        for lag in range(count):
            to, source = blocks.pairs(B, lag)
            part, own = dy_EJL[:, to], x_EML[:, source]
            dx_EML[:, source] += torch.bmm(part, toeplitz(values_at(taps_EP, lag)).mT)
            values_at(dtaps_EP, lag).add_(diagonal_sums(torch.bmm(own.mT, part)))
        near = min(R, count * BLOCK)
        dtaps_RE = pad(dtaps_EP[:, BLOCK - 1 : BLOCK - 1 + near].mT, (0, 0, 0, R - near))
        front = blocks.front if blocks.place_BA is None else 0
        return from_columns(dx_EML, B, front + A, blocks.place_BA)[:, front:], dtaps_RE, None, None


def long_conv_chunkwise(x_BAE: Tensor, taps_RE: Tensor, S: int, reset_BT: Tensor | None) -> Tensor:
    """y_BTE of the new steps. x: S cached and then new steps, wide, zeros where nothing has been seen."""
    y_BTE: Tensor = ToeplitzConvolution.apply(x_BAE, taps_RE, S, reset_BT)  # type: ignore[no-untyped-call]
    return y_BTE
