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
from numpy import float32, float64, int64
from torch import Tensor
from torch.nn import functional

from exlstm.ops.conv.reference import ConvState, causal_conv_torch
from exlstm.ops.derivatives import twice
from exlstm.runtime.addresses import address
from exlstm.runtime.capture import recording
from exlstm.runtime.cpu.jit import compiled, helper
from exlstm.runtime.cpu.math import sigmoid
from exlstm.runtime.cpu.memory import SIZE, address_of, at, clear, copy, keep, long_at, put, tensor_at
from exlstm.runtime.cpu.simd import FASTMATH
from exlstm.runtime.threads import share_out

Array = Any  # a float64 NumPy array inside Numba
REORDER = FASTMATH | {"reassoc"}  # sums in any order, so that they vectorise; never where there is an `exp`
PIECE_STEPS = 128  # at most, in a piece of work
TOGETHER = 16  # steps whose share of the weights' gradients is summed before it joins the rest: short sums round less
THREAD_ELEMENTS = 1 << 15  # so many numbers take a thread longer than waking another


@helper(REORDER)
def add_product(out_D: int, x_D: int, y_D: int, D: int) -> None:
    """out += x y"""
    for d in range(D):
        put(out_D, d, at(out_D, d) + at(x_D, d) * at(y_D, d))


@helper(REORDER)
def add(out_D: int, x_D: int, D: int) -> None:
    """out += x"""
    for d in range(D):
        put(out_D, d, at(out_D, d) + at(x_D, d))


@helper()
def activate(a_D: int, D: int) -> None:
    """a = silu(a)"""
    for d in range(D):
        put(a_D, d, at(a_D, d) * sigmoid(at(a_D, d)))


@helper()
def activate_backward(a_D: int, dy_D: int, D: int) -> None:
    """a = dy silu'(a)"""
    one = float32(1.0)
    for d in range(D):
        a, s = at(a_D, d), sigmoid(at(a_D, d))
        put(a_D, d, at(dy_D, d) * s * (one + a * (one - s)))


@helper()
def join(total_ID: Array, part_ID: int) -> None:
    """total += part in float64; part starts again from zero."""
    for i in range(total_ID.size):
        total_ID[i] += at(part_ID, i)
    clear(part_ID, total_ID.size)


@helper()
def window_and_bias(w: int, b: int, D: int, W: int, i_ID: int) -> None:
    """Fills i_ID with the filter tap by tap, so that channels stand side by side, and below it the bias."""
    for d in range(D):
        for tap in range(W):
            put(i_ID, tap * D + d, at(w, d * W + tap))
    copy(i_ID + W * D * SIZE, b, D)


@helper()
def first_seen(reset: int, t: int, S: int) -> int:
    """The earliest step whose input step t sees; below zero it lies in the past. reset may be 0: no resets."""
    if reset != 0:
        reset_T = tensor_at(reset, t + 1, np.bool_)
        for s in range(t, t - S if t >= S else -1, -1):
            if reset_T[s]:
                return s
    return t - S


@helper()
def step_at(x: int, past: int, stride: int, s: int, S: int, D: int) -> int:
    """The address of the D inputs of step s of a row: of x, whose steps are `stride` bytes apart, or of the past."""
    return x + s * stride if s >= 0 else past + (S + s) * D * SIZE


@helper()
def before_activation(a: int, i_ID: int, oldest: int, t: int, x: int, past: int, stride: int, S: int, D: int
                      ) -> None:  # fmt: skip
    """a_t = b + sum_j w_j x_{t-S+j}, of the steps from `oldest` on."""
    copy(a, i_ID + (S + 1) * D * SIZE, D)
    for s in range(oldest, t + 1):
        add_product(a, step_at(x, past, stride, s, S, D), i_ID + (S - t + s) * D * SIZE, D)


@helper()
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
    work = np.empty((W + 1) * D, float32)
    i_ID = address_of(work)
    window_and_bias(w, b, D, W, i_ID)
    for item in range(first, last):
        row, begin, end, length = borders(item, pieces, T, lengths)
        reset_T = reset + row * T if reset != 0 else 0
        x0, past0 = x + row * x_row, past + row * S * D * SIZE
        for t in range(begin, end):
            y_D = y + (row * T + t) * D * SIZE
            if t >= length:
                clear(y_D, D)
                continue
            before_activation(y_D, i_ID, first_seen(reset_T, t, S), t, x0, past0, x_step, S, D)
            if silu:
                activate(y_D, D)
        if end == T:
            oldest = first_seen(reset_T, length - 1, S)
            for s in range(length - S, length):
                after_D = after + ((row + 1) * S + s - length) * D * SIZE
                if s < oldest:
                    clear(after_D, D)
                else:
                    copy(after_D, step_at(x0, past0, x_step, s, S, D), D)
    keep(work)


@compiled
def backward_scan(first: int, last: int, pieces: int, T: int, D: int, W: int, x: int, x_row: int, x_step: int,
                  w: int, b: int, past: int, reset: int, lengths: int, silu: bool, dy: int, dy_row: int, dy_step: int,
                  dafter: int, dx: int, dpast: int, di: int) -> None:  # fmt: skip
    """Pieces of work first to last - 1. Fills dx, with the first piece of every row dpast, and a share of di_NID.

    A piece has the gradients of its own inputs, so it looks at the first S steps of the next one as well.
    """
    S, ID, y_step = W - 1, (W + 1) * D, D * SIZE
    work = np.empty(4 * ID + D, float32)
    i_ID, part_ID = address_of(work), address_of(work) + ID * SIZE
    total_ID, a_D = tensor_at(part_ID + ID * SIZE, ID, float64), part_ID + 3 * ID * SIZE
    window_and_bias(w, b, D, W, i_ID)
    for item in range(first, last):
        row, begin, end, length = borders(item, pieces, T, lengths)
        own = begin if begin > 0 else -S  # the first of the inputs whose gradients are found here
        reset_T = reset + row * T if reset != 0 else 0
        x0, past0, dy0 = x + row * x_row, past + row * S * D * SIZE, dy + row * dy_row
        dx0, dpast0 = dx + row * T * y_step, dpast + row * S * y_step
        clear(part_ID, ID)
        clear(address_of(total_ID), 2 * ID)
        for s in range(own, end):
            clear(step_at(dx0, dpast0, y_step, s, S, D), D)
        for t in range(begin, end + S if end + S < length else length):
            oldest, dy_D = first_seen(reset_T, t, S), dy0 + t * dy_step
            if silu:
                before_activation(a_D, i_ID, oldest, t, x0, past0, x_step, S, D)
                activate_backward(a_D, dy_D, D)
            else:
                copy(a_D, dy_D, D)
            for s in range(oldest if oldest > own else own, t + 1 if t < end else end):
                add_product(step_at(dx0, dpast0, y_step, s, S, D), a_D, i_ID + (S - t + s) * y_step, D)
            if t < end:
                for s in range(oldest, t + 1):
                    add_product(part_ID + (S - t + s) * y_step, a_D, step_at(x0, past0, x_step, s, S, D), D)
                add(part_ID + W * y_step, a_D, D)
            if (t - begin) % TOGETHER == TOGETHER - 1:
                join(total_ID, part_ID)
        for s in range(max(first_seen(reset_T, length - 1, S), length - S, own), min(length, end)):
            dafter_D = dafter + ((row + 1) * S + s - length) * y_step
            add(step_at(dx0, dpast0, y_step, s, S, D), dafter_D, D)
        join(total_ID, part_ID)
        for i in range(ID):
            put(di + item * ID * SIZE, i, total_ID[i])
    keep(work)


def conv_piece(a: int, item: int) -> None:
    """For a `Tape`: one piece of work; the arguments of `forward_scan` from `pieces` on."""
    forward_scan(item, item + 1, long_at(a), long_at(a + 8), long_at(a + 16), long_at(a + 24), long_at(a + 32),
                 long_at(a + 40), long_at(a + 48), long_at(a + 56), long_at(a + 64), long_at(a + 72), long_at(a + 80),
                 long_at(a + 88), long_at(a + 96) != 0, long_at(a + 104), long_at(a + 112))  # fmt: skip


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


def located(x_BTD: Tensor, count: int) -> tuple[int, int, int]:
    """Where the `count` numbers of x are, and the bytes between its rows and between its steps."""
    row, step, _ = x_BTD.stride()
    return address(x_BTD, count, gaps=True), row * SIZE, step * SIZE


def of_filter(cut: Sizes, B: int, w_DW: Tensor, b_D: Tensor, past_BSD: Tensor, reset_BT: Tensor | None,
              lengths_B: Tensor | None) -> tuple[int, ...]:  # fmt: skip
    """The addresses of what both scans read beside x."""
    return (
        address(w_DW, cut.D * cut.W), address(b_D, cut.D), address(past_BSD, B * (cut.W - 1) * cut.D),
        address(reset_BT, B * cut.T, torch.bool), address(lengths_B, B, torch.int64),
    )  # fmt: skip


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
    cut, B = sizes(x_BTD, w_DW), len(x_BTD)
    numbers = B * cut.T * cut.D
    arguments = (
        *located(x_BTD, numbers), *of_filter(cut, B, w_DW, b_D, past_BSD, reset_BT, lengths_B), silu,
        address(y_BTD, numbers), address(after_BSD, B * (cut.W - 1) * cut.D),
    )  # fmt: skip
    run(forward_scan, cut, B, *arguments)
    if (tape := recording()) is not None:
        tape.keep((x_BTD, w_DW, b_D, past_BSD, reset_BT, lengths_B, y_BTD, after_BSD))
        tape.add(conv_piece, *cut, *arguments, pieces=B * cut.pieces)
    return y_BTD, after_BSD


def definition(x_BTD: Tensor, w_DW: Tensor, b_D: Tensor, past_BSD: Tensor, reset_BT: Tensor | None,
               lengths_B: Tensor | None, *, silu: bool) -> tuple[Tensor, Tensor]:  # fmt: skip
    """`Conv` in plain torch."""
    y_BTD, after = causal_conv_torch(x_BTD, w_DW, b_D, ConvState(past_BSD), reset_BT=reset_BT, lengths_B=lengths_B)
    return functional.silu(y_BTD) if silu else y_BTD, after.past_BSD


class Conv(torch.autograd.Function):
    """(x, w, b, past) -> (y, past afterwards), all float32."""

    @staticmethod
    def forward(ctx: Any, x_BTD: Tensor, w_DW: Tensor, b_D: Tensor, past_BSD: Tensor, reset_BT: Tensor | None,
                lengths_B: Tensor | None, silu: bool) -> tuple[Tensor, Tensor]:  # fmt: skip
        ctx.save_for_backward(x_BTD, w_DW, b_D, past_BSD, reset_BT, lengths_B)
        ctx.options = {"silu": silu}
        return forward(x_BTD, w_DW, b_D, past_BSD, reset_BT, lengths_B, silu)

    @staticmethod
    @twice(definition)
    def backward(ctx: Any, dy_BTD: Tensor, dafter_BSD: Tensor) -> tuple[Tensor | None, ...]:
        x_BTD, w_DW, b_D, past_BSD, reset_BT, lengths_B = ctx.saved_tensors
        dy_BTD, dafter_BSD = side_by_side(dy_BTD), dafter_BSD.contiguous()
        dx_BTD, dpast_BSD = x_BTD.new_empty(x_BTD.shape), torch.empty_like(past_BSD)
        cut, B, numbers = sizes(x_BTD, w_DW), len(x_BTD), x_BTD.numel()
        di_NID = np.empty((B * cut.pieces, cut.W + 1, cut.D), float32)
        run(
            backward_scan, cut, B, *located(x_BTD, numbers),
            *of_filter(cut, B, w_DW, b_D, past_BSD, reset_BT, lengths_B), ctx.options["silu"],
            *located(dy_BTD, numbers), address(dafter_BSD, past_BSD.numel()), address(dx_BTD, numbers),
            address(dpast_BSD, past_BSD.numel()),
            address(torch.from_numpy(di_NID), di_NID.size),
        )  # fmt: skip
        di_ID = torch.from_numpy(di_NID.sum(0, dtype=float64).astype(float32))
        return dx_BTD, di_ID[:-1].mT.contiguous(), di_ID[-1], dpast_BSD, None, None, None


def causal_conv_numba(
    x_BTD: Tensor, w_DW: Tensor, b_D: Tensor, state: ConvState, /,
    *, reset_BT: Tensor | None, lengths_B: Tensor | None, silu: bool,
) -> tuple[Tensor, ConvState]:  # fmt: skip
    """The same numbers as `causal_conv_torch`, in float32."""
    inputs = side_by_side(x_BTD), w_DW.contiguous(), b_D.contiguous(), state.past_BSD.contiguous()
    reset_BT = None if reset_BT is None else reset_BT.contiguous()
    lengths_B = None if lengths_B is None else lengths_B.contiguous()
    keep = torch.is_grad_enabled() and any(x.requires_grad for x in inputs)
    call: Any = Conv.apply if keep else forward
    y_BTD, after_BSD = call(*inputs, reset_BT, lengths_B, silu)
    return y_BTD, ConvState(after_BSD)
