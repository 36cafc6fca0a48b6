"""wkv on a CPU: one pass forward and one backward, over all channels of a step at a time.

An item is some channels of one row of the batch, whose state stays in the first cache, as `step` has it. Saved for the
backward are the inputs and the state before every SPAN-th step. It goes through a span once forward, keeping the state
before every step, and once backward.

B batch  T time  E channels  N spans  P parts of the state: mean, den, p
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy import float32
from torch import Tensor

from exlstm.ops.derivatives import once_differentiable
from exlstm.ops.wkv4.numba.step import (
    ITEM_CHANNELS,
    ROW,
    advance,
    backward_step,
    forward_step,
    from_mean,
    from_mean_gradients,
    to_mean,
    to_mean_gradients,
)
from exlstm.ops.wkv4.reference import WKV4State
from exlstm.runtime.cpu.jit import helper
from exlstm.runtime.cpu.kernel import F32, I64, Bools, F32Rows, kernel
from exlstm.runtime.cpu.launch import launch, microseconds
from exlstm.runtime.cpu.loops import add_at
from exlstm.runtime.cpu.memory import SIZE, address_of, byte_at, clear, copy, hold, long_at
from exlstm.runtime.tracing import has_gradients

SPAN = 16  # steps
PARTS = 3
FLOPS = 60  # of a channel's step, forward


class Inputs(NamedTuple):
    """Inputs of forward and backward. cuts: items in a row. *_row, *_step: strides in bytes."""

    B: int
    T: int
    E: int
    cuts: int
    k_BTE: F32Rows
    k_row: int
    k_step: int
    v_BTE: F32Rows
    v_row: int
    v_step: int
    w_E: F32
    u_E: F32
    reset_BT: Bools
    lengths_B: I64


class Sums(NamedTuple):
    """The sums before the first step, or after the last."""

    num_BE: F32
    den_BE: F32
    p_BE: F32


class Item(NamedTuple):
    """An item: its row, its first channel and how many it has, the steps of the row, and where its inputs begin."""

    row: int
    channel: int
    channels: int
    length: int
    k: int
    v: int
    w: int
    u: int


@helper()
def item_of(x: Inputs, item: int) -> Item:
    """The item of this number."""
    row, cut = item // x.cuts, item % x.cuts
    first, last = x.E * cut // x.cuts, x.E * (cut + 1) // x.cuts
    length = long_at(x.lengths_B + 8 * row) if x.lengths_B != 0 else x.T
    k, v = x.k_BTE + row * x.k_row + first * SIZE, x.v_BTE + row * x.v_row + first * SIZE
    return Item(row, first, last - first, length, k, v, x.w_E + first * SIZE, x.u_E + first * SIZE)


@helper()
def is_reset(x: Inputs, row: int, t: int) -> bool:
    """Whether the row is reset before step t."""
    return bool(x.reset_BT != 0 and byte_at(x.reset_BT + row * x.T + t) != 0)


@helper()
def copy_parts(out: int, out_row: int, x: int, x_row: int, count: int, parts: int) -> None:
    """Copies so many parts, whose rows begin so many bytes after one another."""
    for part in range(parts):
        copy(out + part * out_row, x + part * x_row, count)


@kernel(P=PARTS)
def forward_items(
    first: int, last: int, x: Inputs, N: int, before: Sums, y_BTE: F32, after: Sums, saved_BNPE: F32
) -> None:
    """Items of y and of the sums after the last step. saved: the state before every span, unless it is 0."""
    work, step = np.empty(PARTS * ITEM_CHANNELS, float32), x.E * SIZE
    state = address_of(work)
    for number in range(first, last):
        i = item_of(x, number)
        place, y = (i.row * x.E + i.channel) * SIZE, y_BTE + (i.row * x.T * x.E + i.channel) * SIZE
        copy(state, before.num_BE + place, i.channels)
        copy(state + ROW, before.den_BE + place, i.channels)
        copy(state + 2 * ROW, before.p_BE + place, i.channels)
        if i.length > 0:
            to_mean(i.channels, state)
        for t in range(i.length):
            if saved_BNPE != 0 and t % SPAN == 0:
                saved = saved_BNPE + (i.row * N + t // SPAN) * PARTS * step + i.channel * SIZE
                copy_parts(saved, step, state, ROW, i.channels, PARTS)
            if is_reset(x, i.row, t):
                clear(state, PARTS * ITEM_CHANNELS)
            forward_step(i.channels, i.k + t * x.k_step, i.v + t * x.v_step, i.w, i.u, state, y + t * step)
        for t in range(i.length, x.T):
            clear(y + t * step, i.channels)
        if i.length > 0:
            from_mean(i.channels, state)
        copy(after.num_BE + place, state, i.channels)
        copy(after.den_BE + place, state + ROW, i.channels)
        copy(after.p_BE + place, state + 2 * ROW, i.channels)
    hold(work)


class Gradients(NamedTuple):
    """Gradients: of the outputs, and those that the backward fills. dw, du: the share of every row."""

    dy_BTE: F32
    dnum_after_BE: F32
    dden_after_BE: F32
    dk_BTE: F32
    dv_BTE: F32
    dw_BE: F32
    du_BE: F32
    dnum_BE: F32
    dden_BE: F32


@helper()
def states_of_span(x: Inputs, i: Item, begin: int, end: int, saved: int, states: int) -> None:
    """Fills `states` with that before every step of a span, from the one saved."""
    copy_parts(states, ROW, saved, x.E * SIZE, i.channels, PARTS)
    for t in range(begin, end):
        here = states + (t - begin) * PARTS * ROW
        if is_reset(x, i.row, t):
            clear(here, PARTS * ITEM_CHANNELS)
        if t + 1 < end:
            advance(i.channels, i.k + t * x.k_step, i.v + t * x.v_step, i.w, here, here + PARTS * ROW)


@kernel(P=PARTS)
def backward_items(
    first: int, last: int, x: Inputs, N: int, before: Sums, after: Sums, saved_BNPE: F32, g: Gradients
) -> None:
    """Items of the gradients."""
    step, work = x.E * SIZE, np.empty((SPAN * PARTS + 4) * ITEM_CHANNELS, float32)
    states = address_of(work)
    shares = states + SPAN * PARTS * ROW
    dstate = shares + 2 * ROW
    for number in range(first, last):
        i = item_of(x, number)
        place, begins = (i.row * x.E + i.channel) * SIZE, (i.row * x.T * x.E + i.channel) * SIZE
        copy(dstate, g.dnum_after_BE + place, i.channels)
        copy(dstate + ROW, g.dden_after_BE + place, i.channels)
        clear(g.dw_BE + place, i.channels)
        clear(g.du_BE + place, i.channels)
        for t in range(i.length, x.T):
            clear(g.dk_BTE + begins + t * step, i.channels)
            clear(g.dv_BTE + begins + t * step, i.channels)
        if i.length > 0:
            to_mean_gradients(i.channels, dstate, after.num_BE + place, after.den_BE + place)
        for span in range((i.length + SPAN - 1) // SPAN - 1, -1, -1):
            begin = span * SPAN
            end = begin + SPAN if begin + SPAN < i.length else i.length
            states_of_span(x, i, begin, end, saved_BNPE + (i.row * N + span) * PARTS * step + i.channel * SIZE, states)
            clear(shares, 2 * ITEM_CHANNELS)
            for t in range(end - 1, begin - 1, -1):
                k, v, here = i.k + t * x.k_step, i.v + t * x.v_step, begins + t * step
                state, dk, dv = states + (t - begin) * PARTS * ROW, g.dk_BTE + here, g.dv_BTE + here
                backward_step(i.channels, k, v, i.w, i.u, state, g.dy_BTE + here, dstate, dk, dv, shares)
                if is_reset(x, i.row, t):  # what was forgotten has no gradient, though a later one may be infinite
                    clear(dstate, 2 * ITEM_CHANNELS)
            add_at(g.dw_BE + place, shares, i.channels)
            add_at(g.du_BE + place, shares + ROW, i.channels)
        if i.length > 0:
            from_mean_gradients(i.channels, dstate, before.num_BE + place, before.den_BE + place)
        copy(g.dnum_BE + place, dstate, i.channels)
        copy(g.dden_BE + place, dstate + ROW, i.channels)
    hold(work)


def inputs_of(
    k_BTE: Tensor, v_BTE: Tensor, w_E: Tensor, u_E: Tensor, reset_BT: Tensor | None, lengths_B: Tensor | None
) -> Inputs:
    """The inputs of both kernels; tensors whose channels are apart are copied."""
    B, T, E = v_BTE.shape
    k, v = (x if x.stride(2) == 1 else x.contiguous() for x in (k_BTE, v_BTE))
    k_row, k_step, v_row, v_step = (x.stride(axis) * SIZE for x in (k, v) for axis in (0, 1))
    rest = (None if x is None else x.contiguous() for x in (w_E, u_E, reset_BT, lengths_B))
    return Inputs(B, T, E, -(-E // ITEM_CHANNELS), k, k_row, k_step, v, v_row, v_step, *rest)


def run_forward(x: Inputs, before: WKV4State, saved_BNPE: Tensor | None) -> tuple[Tensor, WKV4State]:
    """y of every step and the sums after the last, without a graph. saved: filled for a backward."""
    y_BTE, N = before.num_BE.new_empty((x.B, x.T, x.E)), -(-x.T // SPAN)
    after = WKV4State(*(part.new_empty(part.shape) for part in before))
    cost = microseconds(bytes=3 * y_BTE.nbytes, flops=FLOPS * y_BTE.numel())
    sums = Sums(*(part.contiguous() for part in before))
    launch(forward_items, x.B * x.cuts, x, N, sums, y_BTE, Sums(*after), saved_BNPE, cost=cost)
    return y_BTE, after


class WKV(torch.autograd.Function):
    """(num, den, p, those of `inputs_of`) -> (y, num, den and p after the last step), all float32."""

    @staticmethod
    def forward(ctx: Any, num_BE: Tensor, den_BE: Tensor, p_BE: Tensor, *saved: Any) -> tuple[Tensor, ...]:
        before, x = WKV4State(num_BE, den_BE, p_BE), inputs_of(*saved)
        saved_BNPE = num_BE.new_empty((x.B, -(-x.T // SPAN), PARTS, x.E))
        y_BTE, after = run_forward(x, before, saved_BNPE)
        ctx.save_for_backward(*saved, saved_BNPE, *before, *after)
        ctx.mark_non_differentiable(after.p_BE)
        return y_BTE, *after

    @staticmethod
    @once_differentiable("wkv4", "numba")
    def backward(ctx: Any, dy_BTE: Tensor, dnum_BE: Tensor, dden_BE: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        *saved, saved_BNPE, num_BE, den_BE, p_BE, num_after_BE, den_after_BE, p_after_BE = ctx.saved_tensors
        x = inputs_of(*saved)
        before = Sums(*(t.contiguous() for t in (num_BE, den_BE, p_BE)))
        after = Sums(num_after_BE, den_after_BE, p_after_BE)
        outputs = (t.contiguous() for t in (dy_BTE, dnum_BE, dden_BE))
        shares = [dnum_BE.new_empty(dnum_BE.shape) for _ in range(4)]
        steps = [dy_BTE.new_empty(dy_BTE.shape) for _ in range(2)]
        cost = microseconds(bytes=5 * dy_BTE.nbytes, flops=3 * FLOPS * dy_BTE.numel())
        gradients = Gradients(*outputs, *steps, *shares)
        launch(backward_items, x.B * x.cuts, x, saved_BNPE.shape[1], before, after, saved_BNPE, gradients, cost=cost)
        dw_E, du_E = gradients.dw_BE.sum(0), gradients.du_BE.sum(0)
        return gradients.dnum_BE, gradients.dden_BE, None, *steps, dw_E, du_E, None, None


def wkv4_numba(
    k_BTE: Tensor,
    v_BTE: Tensor,
    w_E: Tensor,
    u_E: Tensor,
    state: WKV4State,
    reset_BT: Tensor | None,
    lengths_B: Tensor | None,
) -> tuple[Tensor, WKV4State]:
    """The numbers of `wkv4_recurrent`, in float32."""
    inputs, before = (k_BTE, v_BTE, w_E, u_E), state._replace(p_BE=state.p_BE.detach())
    if has_gradients((*inputs, *before)):
        found: Any = WKV.apply(*before, *inputs, reset_BT, lengths_B)  # type: ignore[no-untyped-call]
        y_BTE, *after = found
        return y_BTE, WKV4State(*after)
    return run_forward(inputs_of(*inputs, reset_BT, lengths_B), before, None)
