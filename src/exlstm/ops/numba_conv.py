"""The causal convolution on a CPU in one pass forward and one pass backward, compiled by Numba.

A piece of work is a stretch of time of one row of the batch, cut by the length alone, so that the number of threads
changes nothing. Its steps are taken one after another, each over all channels: what a step reads lies in the core's
first cache. Kept for the backward are the inputs; it computes what goes into the activation once more. Tensors are
handed over as addresses, which cost a tenth of arrays: a single step takes less time than the way into a kernel.

B batch  T time  S past (W - 1 steps)  D channels  W window  I the window and the bias  N pieces of work
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from numba import njit
from numpy import float32, float64, int64
from torch import Tensor

from exlstm.ops.conv import ConvState
from exlstm.ops.numba_jit import compiled, tensor_at, untraced
from exlstm.ops.numba_math import FASTMATH, sigmoid
from exlstm.ops.threads import share_out

Array = Any  # a float32 NumPy array inside Numba
REORDER = FASTMATH | {"reassoc"}  # sums in any order, so that they vectorise; never where there is an `exp`
PIECE_STEPS = 128  # at most, in a piece of work
TOGETHER = 16  # steps whose share of the weights' gradients is summed before it joins the rest: short sums round less
THREAD_ELEMENTS = 1 << 15  # so many numbers take a thread longer than waking another
SIZE = 4  # bytes of a float32


@njit(fastmath=REORDER)
def add_product(out_D: Array, x_D: Array, y_D: Array) -> None:
    """out += x y"""
    for d in range(out_D.size):
        out_D[d] += x_D[d] * y_D[d]


@njit(fastmath=REORDER)
def add(out_D: Array, x_D: Array) -> None:
    """out += x"""
    for d in range(out_D.size):
        out_D[d] += x_D[d]


@njit(fastmath=REORDER)
def multiply(out_D: Array, x_D: Array, y_D: Array) -> None:
    """out = x y"""
    for d in range(out_D.size):
        out_D[d] = x_D[d] * y_D[d]


@njit(fastmath=FASTMATH)
def activate(a_D: Array) -> None:
    """a = silu(a)"""
    for d in range(a_D.size):
        a_D[d] *= sigmoid(a_D[d])


@njit(fastmath=FASTMATH)
def activate_backward(a_D: Array, dy_D: Array) -> None:
    """a = dy silu'(a)"""
    for d in range(a_D.size):
        a, s = a_D[d], sigmoid(a_D[d])
        a_D[d] = dy_D[d] * s * (float32(1.0) + a * (float32(1.0) - s))


@njit(fastmath=FASTMATH)
def window_and_bias(w: int, b: int, D: int, W: int) -> Array:
    """The filter tap by tap, so that channels stand side by side, and below it the bias: [W + 1, D]."""
    i_ID = np.empty((W + 1, D), float32)
    w_DW, b_D = tensor_at(w, (D, W), float32), tensor_at(b, D, float32)
    for d in range(D):
        for tap in range(W):
            i_ID[tap, d] = w_DW[d, tap]
        i_ID[W, d] = b_D[d]
    return i_ID


@njit(fastmath=FASTMATH)
def first_seen(reset_T: Array, t: int, S: int) -> int:
    """The earliest step whose input step t sees; below zero it lies in the past. reset_T of size 0: no resets."""
    for s in range(t, max(t - S, -1), -1):
        if reset_T.size > 0 and reset_T[s]:
            return s
    return t - S


@njit(inline="always", fastmath=FASTMATH)
def at(x: int, past: int, stride: int, s: int, S: int, D: int) -> int:
    """The address of the D inputs of step s of a row: of x, whose steps are `stride` bytes apart, or of the past."""
    return x + s * stride if s >= 0 else past + (S + s) * D * SIZE


@njit(fastmath=FASTMATH)
def before_activation(a_D: Array, i_ID: Array, oldest: int, t: int, x: int, past: int, stride: int) -> None:
    """a_t = b + sum_j w_j x_{t-S+j}, of the steps from `oldest` on."""
    D, S = a_D.size, i_ID.shape[0] - 2
    a_D[:] = i_ID[S + 1]
    for s in range(oldest, t + 1):
        add_product(a_D, tensor_at(at(x, past, stride, s, S, D), D, float32), i_ID[S - t + s])


@njit(fastmath=FASTMATH)
def borders(item: int, pieces: int, T: int, lengths: int) -> tuple[int, int, int, int]:
    """The row of a piece of work, its first step and that after its last, and the length of the row."""
    row, piece = item // pieces, item % pieces
    length = tensor_at(lengths, row + 1, int64)[row] if lengths != 0 else T
    return row, T * piece // pieces, T * (piece + 1) // pieces, length


@compiled
def forward_scan(first: int, last: int, pieces: int, T: int, D: int, W: int, x: int, x_row: int, x_step: int,
                 w: int, b: int, past: int, reset: int, lengths: int, silu: bool, y: int, after: int
                 ) -> None:  # fmt: skip
    """Pieces of work first to last - 1. Fills y and, with the last piece of every row, its state afterwards.

    x_row and x_step: bytes between rows and between steps of x. reset and lengths may be 0: none.
    """
    S = W - 1
    i_ID = window_and_bias(w, b, D, W)
    for item in range(first, last):
        row, begin, end, length = borders(item, pieces, T, lengths)
        reset_T = tensor_at(reset + row * T, T if reset != 0 else 0, np.bool_)
        x0, past0, y0 = x + row * x_row, past + row * S * D * SIZE, y + row * T * D * SIZE
        for t in range(begin, end):
            y_D = tensor_at(y0 + t * D * SIZE, D, float32)
            if t >= length:
                y_D[:] = float32(0.0)
                continue
            before_activation(y_D, i_ID, first_seen(reset_T, t, S), t, x0, past0, x_step)
            if silu:
                activate(y_D)
        if end == T:
            oldest = first_seen(reset_T, length - 1, S)
            for s in range(length - S, length):
                after_D = tensor_at(after + ((row + 1) * S + s - length) * D * SIZE, D, float32)
                if s < oldest:
                    after_D[:] = float32(0.0)
                else:
                    after_D[:] = tensor_at(at(x0, past0, x_step, s, S, D), D, float32)


@compiled
def backward_scan(first: int, last: int, pieces: int, T: int, D: int, W: int, x: int, x_row: int, x_step: int,
                  w: int, b: int, past: int, reset: int, lengths: int, silu: bool, dy: int, dy_row: int, dy_step: int,
                  dafter: int, dx: int, dpast: int, di: int) -> None:  # fmt: skip
    """Pieces of work first to last - 1. Fills dx, with the first piece of every row dpast, and a share of di_NID.

    A piece has the gradients of its own inputs, so it looks at the first S steps of the next one as well.
    """
    S = W - 1
    i_ID, total_ID = window_and_bias(w, b, D, W), np.empty((W + 1, D), float64)
    part_ID, a_D = np.empty((W + 1, D), float32), np.empty(D, float32)
    for item in range(first, last):
        row, begin, end, length = borders(item, pieces, T, lengths)
        own = begin if begin > 0 else -S  # the first of the inputs whose gradients are found here
        reset_T = tensor_at(reset + row * T, T if reset != 0 else 0, np.bool_)
        x0, past0, dy0 = x + row * x_row, past + row * S * D * SIZE, dy + row * dy_row
        dx0, dpast0 = dx + row * T * D * SIZE, dpast + row * S * D * SIZE
        total_ID[:], part_ID[:] = 0.0, float32(0.0)
        for s in range(own, end):
            tensor_at(at(dx0, dpast0, D * SIZE, s, S, D), D, float32)[:] = float32(0.0)
        for t in range(begin, min(end + S, length)):
            oldest, dy_D = first_seen(reset_T, t, S), tensor_at(dy0 + t * dy_step, D, float32)
            if silu:
                before_activation(a_D, i_ID, oldest, t, x0, past0, x_step)
                activate_backward(a_D, dy_D)
            else:
                a_D[:] = dy_D
            for s in range(max(oldest, own), min(t + 1, end)):
                add_product(tensor_at(at(dx0, dpast0, D * SIZE, s, S, D), D, float32), a_D, i_ID[S - t + s])
            if t < end:
                for s in range(oldest, t + 1):
                    add_product(part_ID[S - t + s], a_D, tensor_at(at(x0, past0, x_step, s, S, D), D, float32))
                add(part_ID[W], a_D)
            if (t - begin) % TOGETHER == TOGETHER - 1:
                total_ID += part_ID
                part_ID[:] = float32(0.0)
        oldest = first_seen(reset_T, length - 1, S)
        for s in range(max(length - S, oldest, own), min(length, end)):
            dafter_D = tensor_at(dafter + ((row + 1) * S + s - length) * D * SIZE, D, float32)
            add(tensor_at(at(dx0, dpast0, D * SIZE, s, S, D), D, float32), dafter_D)
        tensor_at(di + item * (W + 1) * D * SIZE, (W + 1, D), float32)[:] = total_ID + part_ID


class Sizes(NamedTuple):
    """What both scans begin with: pieces of a row, T, D, W."""

    pieces: int
    T: int
    D: int
    W: int


def sizes(x_BTD: Tensor, w_DW: Tensor) -> Sizes:
    """How the work is cut."""
    T = x_BTD.shape[1]
    return Sizes(-(-T // PIECE_STEPS), T, *w_DW.shape)


def located(x_BTD: Tensor) -> tuple[int, int, int]:
    """Where x is, and the bytes between its rows and between its steps."""
    row, step, _ = x_BTD.stride()
    return x_BTD.data_ptr(), row * SIZE, step * SIZE


def address(x: Tensor | None) -> int:
    """Where x is; 0 for None."""
    return 0 if x is None else x.data_ptr()


def side_by_side(x_BTD: Tensor) -> Tensor:
    """`x`, copied only if the channels of a step are apart."""
    return x_BTD if x_BTD.stride(2) == 1 else x_BTD.contiguous()


def run(scan: Any, cut: Sizes, B: int, *arguments: Any) -> None:
    """All pieces of B rows, on as many threads as are worth it."""
    threads = 1 + B * cut.T * cut.D // THREAD_ELEMENTS
    if threads == 1:
        scan(0, B * cut.pieces, *cut, *arguments)
    else:
        share_out(scan, B * cut.pieces, *cut, *arguments, threads=threads)


def forward(x_BTD: Tensor, w_DW: Tensor, b_D: Tensor, past_BSD: Tensor, reset_BT: Tensor | None,
            lengths_B: Tensor | None, silu: bool) -> tuple[Tensor, Tensor]:  # fmt: skip
    """y and the past afterwards, without a graph. x with its channels side by side, all others contiguous."""
    y_BTD, after_BSD = x_BTD.new_empty(x_BTD.shape), torch.empty_like(past_BSD)
    run(
        forward_scan, sizes(x_BTD, w_DW), len(x_BTD), *located(x_BTD), w_DW.data_ptr(), b_D.data_ptr(),
        past_BSD.data_ptr(), address(reset_BT), address(lengths_B), silu, y_BTD.data_ptr(), after_BSD.data_ptr(),
    )  # fmt: skip
    return y_BTD, after_BSD


class Conv(torch.autograd.Function):
    """(x, w, b, past) -> (y, past afterwards), all float32."""

    @staticmethod
    def forward(ctx: Any, x_BTD: Tensor, w_DW: Tensor, b_D: Tensor, past_BSD: Tensor, reset_BT: Tensor | None,
                lengths_B: Tensor | None, silu: bool) -> tuple[Tensor, Tensor]:  # fmt: skip
        ctx.save_for_backward(x_BTD, w_DW, b_D, past_BSD, reset_BT, lengths_B)
        ctx.silu = silu
        return forward(x_BTD, w_DW, b_D, past_BSD, reset_BT, lengths_B, silu)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy_BTD: Tensor, dafter_BSD: Tensor) -> tuple[Tensor | None, ...]:
        x_BTD, w_DW, b_D, past_BSD, reset_BT, lengths_B = ctx.saved_tensors
        dy_BTD, dafter_BSD = side_by_side(dy_BTD), dafter_BSD.contiguous()
        dx_BTD, dpast_BSD = x_BTD.new_empty(x_BTD.shape), torch.empty_like(past_BSD)
        cut, B = sizes(x_BTD, w_DW), len(x_BTD)
        di_NID = np.empty((B * cut.pieces, cut.W + 1, cut.D), float32)
        run(
            backward_scan, cut, B, *located(x_BTD), w_DW.data_ptr(), b_D.data_ptr(), past_BSD.data_ptr(),
            address(reset_BT), address(lengths_B), ctx.silu, *located(dy_BTD), dafter_BSD.data_ptr(),
            dx_BTD.data_ptr(), dpast_BSD.data_ptr(), di_NID.ctypes.data,
        )  # fmt: skip
        di_ID = torch.from_numpy(di_NID.sum(0, dtype=float64).astype(float32))
        return dx_BTD, di_ID[:-1].mT.contiguous(), di_ID[-1], dpast_BSD, None, None, None


@untraced
def causal_conv_numba(
    x_BTD: Tensor, w_DW: Tensor, b_D: Tensor, state: ConvState, /,
    *, reset_BT: Tensor | None, lengths_B: Tensor | None, silu: bool,
) -> tuple[Tensor, ConvState]:  # fmt: skip
    """The same numbers as `causal_conv_torch`, in float32."""
    inputs = side_by_side(x_BTD), w_DW.contiguous(), b_D.contiguous(), state.past_BSD.contiguous()
    reset_BT = None if reset_BT is None else reset_BT.bool().contiguous()
    lengths_B = None if lengths_B is None else lengths_B.long().clamp(0, x_BTD.shape[1]).contiguous()
    keep = torch.is_grad_enabled() and any(x.requires_grad for x in inputs)
    call: Any = Conv.apply if keep else forward
    y_BTD, after_BSD = call(*inputs, reset_BT, lengths_B, silu)
    return y_BTD, ConvState(after_BSD)
