"""The causal convolution on a CPU in one pass forward and one pass backward.

An item is a stretch of time of one row of the batch, cut by the length alone, so that the number of threads changes
nothing. Its steps are taken one after another, each over all channels, so that reads hit the first cache. Saved for the
backward are the inputs; it recomputes the pre-activations.

B batch  T time  S past (W - 1 steps)  D channels  W window  I the window and the bias  N items
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy import float32, float64, int64
from torch import Tensor
from torch.nn import functional

from exlstm.ops.conv.reference import ConvState, causal_conv_torch
from exlstm.ops.derivatives import twice_differentiable
from exlstm.runtime.cpu.jit import helper
from exlstm.runtime.cpu.kernel import F32, I64, Bools, F32Rows, kernel
from exlstm.runtime.cpu.launch import launch, microseconds
from exlstm.runtime.cpu.loops import add_at, add_product_at
from exlstm.runtime.cpu.math import sigmoid
from exlstm.runtime.cpu.memory import SIZE, address_of, at, clear, copy, hold, put, tensor_at
from exlstm.runtime.tracing import has_gradients

Array = Any  # a float64 NumPy array inside Numba
ITEM_STEPS = 128  # of an item, at most
# steps whose share of the weights' gradients is summed in float32 before it joins the total: short sums round less
PARTIAL_SUM_STEPS = 16


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
def flush_partial_sum(total_ID: Array, part_ID: int) -> None:
    """total += part in float64, and part = 0."""
    for i in range(total_ID.size):
        total_ID[i] += at(part_ID, i)
    clear(part_ID, total_ID.size)


@helper()
def window_and_bias(w: int, b: int, D: int, W: int, i_ID: int) -> None:
    """Fills i_ID with the filter, transposed so that channels are neighbors, and the bias or 0 as its last row."""
    for d in range(D):
        for tap in range(W):
            put(i_ID, tap * D + d, at(w, d * W + tap))
    if b == 0:
        clear(i_ID + W * D * SIZE, D)
    else:
        copy(i_ID + W * D * SIZE, b, D)


@helper()
def first_seen(reset: int, t: int, S: int) -> int:
    """The earliest step in the window of step t, negative in the past. reset: an address, or 0 for no resets."""
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
def before_activation(a: int, i_ID: int, oldest: int, t: int, x: int, past: int, stride: int, S: int, D: int) -> None:
    """a_t = b + sum_j w_j x_{t-S+j}, of the steps from `oldest` on."""
    copy(a, i_ID + (S + 1) * D * SIZE, D)
    for s in range(oldest, t + 1):
        add_product_at(a, step_at(x, past, stride, s, S, D), i_ID + (S - t + s) * D * SIZE, D)


class Inputs(NamedTuple):
    """Inputs of forward and backward. cuts: items in a row of the batch. x_row, x_step: strides of x in bytes."""

    N: int
    B: int
    T: int
    D: int
    W: int
    S: int
    cuts: int
    x_BTD: F32Rows
    x_row: int
    x_step: int
    w_DW: F32
    b_D: F32
    past_BSD: F32
    reset_BT: Bools
    lengths_B: I64
    silu: bool


@helper()
def borders(x: Inputs, item: int) -> tuple[int, int, int, int, int]:
    """Of an item: its row, its first step, the step after its last, the row's length, the address of its resets."""
    row, cut = item // x.cuts, item % x.cuts
    length = tensor_at(x.lengths_B, row + 1, int64)[row] if x.lengths_B != 0 else x.T
    reset_T = x.reset_BT + row * x.T if x.reset_BT != 0 else 0
    return row, x.T * cut // x.cuts, x.T * (cut + 1) // x.cuts, length, reset_T


@kernel()
def forward_items(first: int, last: int, x: Inputs, y_BTD: F32, after_BSD: F32) -> None:
    """Items of y and, with the last item of every row, its state afterwards."""
    S, D, T = x.S, x.D, x.T
    work = np.empty((x.W + 1) * D, float32)
    i_ID = address_of(work)
    window_and_bias(x.w_DW, x.b_D, D, x.W, i_ID)
    for item in range(first, last):
        row, begin, end, length, reset_T = borders(x, item)
        x0, past0 = x.x_BTD + row * x.x_row, x.past_BSD + row * S * D * SIZE
        for t in range(begin, end):
            y_D = y_BTD + (row * T + t) * D * SIZE
            if t >= length:
                clear(y_D, D)
                continue
            before_activation(y_D, i_ID, first_seen(reset_T, t, S), t, x0, past0, x.x_step, S, D)
            if x.silu:
                activate(y_D, D)
        if end == T:
            oldest = first_seen(reset_T, length - 1, S)
            for s in range(length - S, length):
                after_D = after_BSD + ((row + 1) * S + s - length) * D * SIZE
                if s < oldest:
                    clear(after_D, D)
                else:
                    copy(after_D, step_at(x0, past0, x.x_step, s, S, D), D)
    hold(work)


class Gradients(NamedTuple):
    """Gradients that the backward reads and fills. di: of the window and the bias, the share of every item."""

    I: int  # noqa: E741
    dy_BTD: F32Rows
    dy_row: int
    dy_step: int
    dafter_BSD: F32
    dx_BTD: F32
    dpast_BSD: F32
    di_NID: F32


@kernel()
def backward_items(first: int, last: int, x: Inputs, g: Gradients) -> None:
    """Items of dx, with the first item of every row dpast, and their shares of di.

    An item has the gradients of its own inputs, so it looks at the first S steps of the next one as well.
    """
    S, D, T, ID, y_step = x.S, x.D, x.T, g.I * x.D, x.D * SIZE
    work = np.empty(4 * ID + D, float32)
    i_ID, part_ID = address_of(work), address_of(work) + ID * SIZE
    total_ID, a_D = tensor_at(part_ID + ID * SIZE, ID, float64), part_ID + 3 * ID * SIZE
    window_and_bias(x.w_DW, x.b_D, D, x.W, i_ID)
    for item in range(first, last):
        row, begin, end, length, reset_T = borders(x, item)
        own = begin if begin > 0 else -S  # the first input whose gradient this item computes
        x0, past0, dy0 = x.x_BTD + row * x.x_row, x.past_BSD + row * S * D * SIZE, g.dy_BTD + row * g.dy_row
        dx0, dpast0 = g.dx_BTD + row * T * y_step, g.dpast_BSD + row * S * y_step
        clear(part_ID, ID)
        clear(address_of(total_ID), 2 * ID)
        for s in range(own, end):
            clear(step_at(dx0, dpast0, y_step, s, S, D), D)
        for t in range(begin, end + S if end + S < length else length):
            oldest, dy_D = first_seen(reset_T, t, S), dy0 + t * g.dy_step
            if x.silu:
                before_activation(a_D, i_ID, oldest, t, x0, past0, x.x_step, S, D)
                activate_backward(a_D, dy_D, D)
            else:
                copy(a_D, dy_D, D)
            for s in range(oldest if oldest > own else own, t + 1 if t < end else end):
                add_product_at(step_at(dx0, dpast0, y_step, s, S, D), a_D, i_ID + (S - t + s) * y_step, D)
            if t < end:
                for s in range(oldest, t + 1):
                    add_product_at(part_ID + (S - t + s) * y_step, a_D, step_at(x0, past0, x.x_step, s, S, D), D)
                add_at(part_ID + x.W * y_step, a_D, D)
            if (t - begin) % PARTIAL_SUM_STEPS == PARTIAL_SUM_STEPS - 1:
                flush_partial_sum(total_ID, part_ID)
        for s in range(max(first_seen(reset_T, length - 1, S), length - S, own), min(length, end)):
            dafter_D = g.dafter_BSD + ((row + 1) * S + s - length) * y_step
            add_at(step_at(dx0, dpast0, y_step, s, S, D), dafter_D, D)
        flush_partial_sum(total_ID, part_ID)
        for i in range(ID):
            put(g.di_NID + item * ID * SIZE, i, total_ID[i])
    hold(work)


def inputs_of(x_BTD: Tensor, w_DW: Tensor, b_D: Tensor | None, past_BSD: Tensor, reset_BT: Tensor | None,
              lengths_B: Tensor | None, silu: bool) -> Inputs:  # fmt: skip
    """The `Inputs` of both kernels."""
    (B, T, D), W = x_BTD.shape, w_DW.shape[1]
    cuts, (row, step, _) = -(-T // ITEM_STEPS), x_BTD.stride()
    sizes, filters = (B * cuts, B, T, D, W, W - 1, cuts), (w_DW, b_D)
    return Inputs(*sizes, x_BTD, row * SIZE, step * SIZE, *filters, past_BSD, reset_BT, lengths_B, silu)


def contiguous_channels(x_BTD: Tensor) -> Tensor:
    """`x` with the channels of a step contiguous, copied only if they are not."""
    return x_BTD if x_BTD.stride(2) == 1 else x_BTD.contiguous()


def cost_of(x_BTD: Tensor, window: int, passes: int) -> float:
    """The cost of `passes` tensors like x, read or written, with all taps of the window for each."""
    return microseconds(bytes=passes * x_BTD.nbytes, flops=passes * (window + 10) * x_BTD.numel())


def forward(x_BTD: Tensor, w_DW: Tensor, b_D: Tensor | None, past_BSD: Tensor, reset_BT: Tensor | None,
            lengths_B: Tensor | None, silu: bool) -> tuple[Tensor, Tensor]:  # fmt: skip
    """y and the past afterwards, without a graph. x with contiguous channels, all others contiguous."""
    y_BTD, after_BSD = x_BTD.new_empty(x_BTD.shape), torch.empty_like(past_BSD)
    inputs = inputs_of(x_BTD, w_DW, b_D, past_BSD, reset_BT, lengths_B, silu)
    launch(forward_items, inputs.N, inputs, y_BTD, after_BSD, cost=cost_of(x_BTD, inputs.W, 2))
    return y_BTD, after_BSD


def definition(x_BTD: Tensor, w_DW: Tensor, b_D: Tensor | None, past_BSD: Tensor, reset_BT: Tensor | None,
               lengths_B: Tensor | None, *, silu: bool) -> tuple[Tensor, Tensor]:  # fmt: skip
    """`Conv` in plain torch."""
    y_BTD, after = causal_conv_torch(x_BTD, w_DW, b_D, ConvState(past_BSD), reset_BT=reset_BT, lengths_B=lengths_B)
    return functional.silu(y_BTD) if silu else y_BTD, after.past_BSD


class Conv(torch.autograd.Function):
    """(x, w, b, past) -> (y, past afterwards), all float32."""

    @staticmethod
    def forward(ctx: Any, x_BTD: Tensor, w_DW: Tensor, b_D: Tensor | None, past_BSD: Tensor, reset_BT: Tensor | None,
                lengths_B: Tensor | None, silu: bool) -> tuple[Tensor, Tensor]:  # fmt: skip
        ctx.save_for_backward(x_BTD, w_DW, b_D, past_BSD, reset_BT, lengths_B)
        ctx.options = {"silu": silu}
        return forward(x_BTD, w_DW, b_D, past_BSD, reset_BT, lengths_B, silu)

    @staticmethod
    @twice_differentiable(definition)
    def backward(ctx: Any, dy_BTD: Tensor, dafter_BSD: Tensor) -> tuple[Tensor | None, ...]:
        x_BTD, w_DW, b_D, past_BSD, reset_BT, lengths_B = ctx.saved_tensors
        inputs = inputs_of(x_BTD, w_DW, b_D, past_BSD, reset_BT, lengths_B, ctx.options["silu"])
        dy_BTD, dx_BTD, dpast_BSD = contiguous_channels(dy_BTD), torch.empty(x_BTD.shape), torch.empty_like(past_BSD)
        di_NID = torch.empty(inputs.N, inputs.W + 1, inputs.D)
        row, step, _ = dy_BTD.stride()
        gradients = Gradients(
            inputs.W + 1, dy_BTD, row * SIZE, step * SIZE, dafter_BSD.contiguous(), dx_BTD, dpast_BSD, di_NID
        )
        launch(backward_items, inputs.N, inputs, gradients, cost=cost_of(x_BTD, inputs.W, 4))
        di_ID = torch.from_numpy(di_NID.numpy().sum(0, dtype=float64).astype(float32))
        return dx_BTD, di_ID[:-1].mT.contiguous(), None if b_D is None else di_ID[-1], dpast_BSD, None, None, None


def causal_conv_numba(
    x_BTD: Tensor, w_DW: Tensor, b_D: Tensor | None, state: ConvState, /,
    *, reset_BT: Tensor | None, lengths_B: Tensor | None, silu: bool,
) -> tuple[Tensor, ConvState]:  # fmt: skip
    """The same numbers as `causal_conv_torch`, in float32."""
    inputs = (
        contiguous_channels(x_BTD),
        w_DW.contiguous(),
        None if b_D is None else b_D.contiguous(),
        state.past_BSD.contiguous(),
    )
    reset_BT = None if reset_BT is None else reset_BT.contiguous()
    lengths_B = None if lengths_B is None else lengths_B.contiguous()
    call: Any = Conv.apply if has_gradients(inputs) else forward
    y_BTD, after_BSD = call(*inputs, reset_BT, lengths_B, silu)
    return y_BTD, ConvState(after_BSD)
