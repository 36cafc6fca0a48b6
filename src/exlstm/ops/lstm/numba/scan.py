"""The LSTM over a whole sequence on a CPU: forward and backward scans, the gradient of U outside as a product.

An item is a head with some rows of the batch, and one thread takes it through all of time. A step is one product of
all rows with U of the head, packed, and the gates of one row after another, in blocks of 16 units. Saved for the
backward are the gates, c and h before every step.

B batch  T time  H heads  V, K head width  G gates: i, f, g, o  E numbers saved
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy import float32
from torch import Tensor

from exlstm.ops.common import detached_contiguous, rows_for_kernels
from exlstm.ops.derivatives import once_differentiable
from exlstm.ops.fused import recurrent_gradient
from exlstm.runtime.cpu.blocks import Units, add_parts, reset_rows, simd16, store_parts, width
from exlstm.runtime.cpu.jit import helper
from exlstm.runtime.cpu.kernel import F32, I64, Bools, kernel
from exlstm.runtime.cpu.launch import launch, microseconds
from exlstm.runtime.cpu.loops import add_at
from exlstm.runtime.cpu.memory import SIZE, address_of, clear, copy, hold, tensor_at
from exlstm.runtime.cpu.simd import sigmoid, tanh
from exlstm.runtime.cpu.tile import PANEL, pack_columns, pack_rows, product, rows_by_four, tile_rows
from exlstm.runtime.tracing import has_gradients

GATES, SAVED = 4 * PANEL, 5 * PANEL  # numbers of 16 units: before their activations; saved of a step


class Sizes(NamedTuple):
    """Sizes of a scan. rows: of the batch, in an item."""

    rows: int
    B: int
    T: int
    H: int
    V: int
    K: int
    E: int


class Inputs(NamedTuple):
    """Addresses of what both scans read."""

    u_GHVK: F32
    reset_BT: Bools
    lengths_B: I64


class State(NamedTuple):
    """Addresses of a state, or of its gradients."""

    h_BHV: F32
    c_BHV: F32


class Saved(NamedTuple):
    """Addresses of what the backward reads, both 0 without one. past: h before a step."""

    past_HBTV: F32
    saved_E: F32


@simd16
def cell(raw: Units, c: Units, h: Units, saved: Units) -> None:
    """One step of 16 units: i, f, g, o before their activations, and c, to c and h; and what is saved."""
    i, f, g, o, before = sigmoid(raw[0]), sigmoid(raw[1]), tanh(raw[2]), sigmoid(raw[3]), c[0]
    for part, x in enumerate((i, f, g, o, before)):
        saved[part] = x
    c[0] = f * before + i * g
    h[0] = o * tanh(c[0])


@simd16
def cell_backward(draw: Units, dc: Units, dh: Units, saved: Units) -> None:
    """Gradients of i, f, g, o before their activations, and of c before the step, from those of c and h after it."""
    i, f, g, o, before = (saved[part] for part in range(5))
    seen, dh_now = tanh(f * before + i * g), dh[0]
    dc_now = dc[0] + dh_now * o * (1.0 - seen * seen)
    draw[0] = dc_now * g * i * (1.0 - i)
    draw[1] = dc_now * before * f * (1.0 - f)
    draw[2] = dc_now * i * (1.0 - g * g)
    draw[3] = dh_now * seen * o * (1.0 - o)
    dc[0] = dc_now * f


@helper()
def gates(raw: int, x: int, c: int, h: int, to: int, each: int, H: int, V: int) -> None:
    """One step of a row, of all units: products and inputs to c and h. to: what is saved, every `each` numbers."""
    for u in range(-(-V // PANEL)):
        raw_u, at_u = raw + SIZE * u * GATES, SIZE * u * PANEL
        add_parts(raw_u, 4, x + at_u, H * V, width(V, u))
        cell(raw_u, c + at_u, h + at_u, to + SIZE * u * each)


@helper()
def gates_backward(draw: int, dc: int, dh: int, saved: int, dx: int, H: int, V: int) -> None:
    """Gradients of a row's gates in one step, of all units, for the product with U and as those of the inputs."""
    for u in range(-(-V // PANEL)):
        draw_u, at_u = draw + SIZE * u * GATES, SIZE * u * PANEL
        cell_backward(draw_u, dc + at_u, dh + at_u, saved + SIZE * u * SAVED)
        store_parts(dx + at_u, H * V, draw_u, 4, width(V, u))


@helper()
def read_state(h: int, c: int, wide: int, state: State, first: int, count: int, H: int, V: int) -> None:
    """Rows of h and c of an item from a state. first: the first row's place in it, in heads."""
    for row in range(count):
        place, here = SIZE * (first + row * H) * V, SIZE * row * wide
        copy(h + here, state.h_BHV + place, V)
        copy(c + here, state.c_BHV + place, V)


@helper()
def write_state(state: State, h: int, c: int, wide: int, first: int, count: int, H: int, V: int) -> None:
    """Rows of h and c of an item to a state."""
    for row in range(count):
        place, here = SIZE * (first + row * H) * V, SIZE * row * wide
        copy(state.h_BHV + place, h + here, V)
        copy(state.c_BHV + place, c + here, V)


@kernel(G=4)
def forward_scan(
    first: int, last: int, sizes: Sizes, x: Inputs, x_BTGHV: F32, before: State, h_BTHV: F32, after: State, saved: Saved
) -> None:
    """Items of h, and the state after the last step."""
    rows, B, T, H, V, _, _ = sizes
    units, tiles, room = -(-V // PANEL), -(-B // rows), rows_by_four(rows)
    wide, saving = units * PANEL, saved.saved_E != 0
    lengths, resets = tensor_at(x.lengths_B, B, np.int64), tensor_at(x.reset_BT, (B, T), np.bool_)
    work = np.empty(6 * room * wide + SAVED + 4 * wide * V, float32)
    h = address_of(work)
    c, raw, spare = h + SIZE * room * wide, h + 2 * SIZE * room * wide, h + 6 * SIZE * room * wide
    panels = spare + SIZE * SAVED
    for item in range(first, last):
        head, row0 = item // tiles, item % tiles * rows
        count, steps = rows if B - row0 > rows else B - row0, 0
        clear(h, 6 * room * wide)
        clear(panels, 4 * wide * V)
        pack_columns(x.u_GHVK + SIZE * head * V * V, 4, H * V * V, V, V, V, panels, V, 0)
        read_state(h, c, wide, before, row0 * H + head, count, H, V)
        for row in range(count):
            steps = max(steps, lengths[row0 + row])
        for t in range(steps):
            if x.reset_BT != 0:
                reset_rows(resets, lengths, row0, count, t, h, wide, c, wide)
            product(raw, 4 * wide, GATES, h, wide, count, panels, V, 4 * units)
            for row in range(count):
                b, here = row0 + row, SIZE * row * wide
                if t < lengths[b]:
                    step, raw_r = (head * B + b) * T + t, raw + SIZE * row * 4 * wide
                    x_r = x_BTGHV + SIZE * ((b * T + t) * 4 * H + head) * V
                    to, each = saved.saved_E + SIZE * step * units * SAVED if saving else spare, SAVED if saving else 0
                    if saving:
                        copy(saved.past_HBTV + SIZE * step * V, h + here, V)
                    gates(raw_r, x_r, c + here, h + here, to, each, H, V)
                    copy(h_BTHV + SIZE * ((b * T + t) * H + head) * V, h + here, V)
        write_state(after, h, c, wide, row0 * H + head, count, H, V)
        for row in range(count):
            b, length = row0 + row, lengths[row0 + row]
            for t in range(length, T):
                clear(h_BTHV + SIZE * ((b * T + t) * H + head) * V, V)
            if saving:
                clear(saved.past_HBTV + SIZE * ((head * B + b) * T + length) * V, (T - length) * V)
    hold(work)


@kernel(G=4)
def backward_scan(
    first: int,
    last: int,
    sizes: Sizes,
    x: Inputs,
    dh_BTHV: F32,
    dafter: State,
    saved: Saved,
    dx_BTGHV: F32,
    dbefore: State,
) -> None:
    """Items as in `forward_scan`: gradients of the inputs and of the state before the first step."""
    rows, B, T, H, V, _, _ = sizes
    units, tiles, room = -(-V // PANEL), -(-B // rows), rows_by_four(rows)
    wide = units * PANEL
    lengths, resets = tensor_at(x.lengths_B, B, np.int64), tensor_at(x.reset_BT, (B, T), np.bool_)
    work = np.empty(6 * room * wide + 4 * wide * wide, float32)
    dh = address_of(work)
    dc, draw, panels = dh + SIZE * room * wide, dh + 2 * SIZE * room * wide, dh + 6 * SIZE * room * wide
    for item in range(first, last):
        head, row0 = item // tiles, item % tiles * rows
        count, steps = rows if B - row0 > rows else B - row0, 0
        clear(dh, 6 * room * wide + 4 * wide * wide)
        pack_rows(x.u_GHVK + SIZE * head * V * V, 4, H * V * V, V, V, V, panels, 4 * wide, 0)
        for row in range(count):
            copy(dc + SIZE * row * wide, dafter.c_BHV + SIZE * ((row0 + row) * H + head) * V, V)
            steps = max(steps, lengths[row0 + row])
        for t in range(steps - 1, -1, -1):
            for row in range(count):
                b, here, draw_r = row0 + row, SIZE * row * wide, draw + SIZE * row * 4 * wide
                if t < lengths[b]:
                    if t == lengths[b] - 1:
                        copy(dh + here, dafter.h_BHV + SIZE * (b * H + head) * V, V)
                    add_at(dh + here, dh_BTHV + SIZE * ((b * T + t) * H + head) * V, V)
                    step = saved.saved_E + SIZE * ((head * B + b) * T + t) * units * SAVED
                    to = dx_BTGHV + SIZE * ((b * T + t) * 4 * H + head) * V
                    gates_backward(draw_r, dc + here, dh + here, step, to, H, V)
            product(dh, wide, GATES, draw, 4 * wide, count, panels, 4 * wide, units)
            if x.reset_BT != 0:
                reset_rows(resets, lengths, row0, count, t, dh, wide, dc, wide)
        for row in range(count):
            b, length, here = row0 + row, lengths[row0 + row], SIZE * row * wide
            place = SIZE * (b * H + head) * V
            copy(dbefore.h_BHV + place, dafter.h_BHV + place if length == 0 else dh + here, V)
            copy(dbefore.c_BHV + place, dc + here, V)
            for t in range(length, T):
                for g in range(4):
                    clear(dx_BTGHV + SIZE * (((b * T + t) * 4 + g) * H + head) * V, V)
    hold(work)


def sizes_of(x_BTGHV: Tensor, flops: int) -> tuple[Sizes, float]:
    """The sizes of a scan, and its cost. flops: of a unit in one step."""
    B, T, _, H, V = x_BTGHV.shape
    cost = microseconds(flops=B * T * H * V * flops)
    return Sizes(tile_rows(B, H, cost), B, T, H, V, V, B * T * H * -(-V // PANEL) * SAVED), cost


def items_of(sizes: Sizes) -> int:
    """Heads times tiles of rows."""
    return sizes.H * -(-sizes.B // sizes.rows)


def work_of(x_BTGHV: Tensor) -> tuple[Sizes, float]:
    """Sizes of the LSTM's scan, and its cost."""
    return sizes_of(x_BTGHV, 100 + 8 * x_BTGHV.shape[-1])


def forward(
    x_BTGHV: Tensor,
    u_GHVK: Tensor,
    h_BHV: Tensor,
    c_BHV: Tensor,
    reset_BT: Tensor | None,
    lengths_B: Tensor,
    saved: Saved | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """h of every step and the state after the last one, without a graph. saved: filled for the backward."""
    x_BTGHV, u_GHVK, *state = detached_contiguous(x_BTGHV, u_GHVK, h_BHV, c_BHV)
    (B, T, _, H, V), (sizes, cost) = x_BTGHV.shape, work_of(x_BTGHV)
    out_BTHV, after = x_BTGHV.new_empty(B, T, H, V), State(*map(torch.empty_like, state))
    inputs, saved = Inputs(u_GHVK, reset_BT, lengths_B), Saved(None, None) if saved is None else saved
    launch(forward_scan, items_of(sizes), sizes, inputs, x_BTGHV, State(*state), out_BTHV, after, saved, cost=cost)
    return out_BTHV, after.h_BHV, after.c_BHV


class LSTMScan(torch.autograd.Function):
    """(W x + b, U, h, c) -> (h of every step, last h, last c); all float32."""

    @staticmethod
    def forward(
        ctx: Any,
        x_BTGHV: Tensor,
        u_GHVK: Tensor,
        h_BHV: Tensor,
        c_BHV: Tensor,
        reset_BT: Tensor | None,
        lengths_B: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        (B, T, _, H, V), (sizes, _) = x_BTGHV.shape, work_of(x_BTGHV)
        saved = Saved(x_BTGHV.new_empty(H, B, T, V), x_BTGHV.new_empty(sizes.E))
        out = forward(x_BTGHV, u_GHVK, h_BHV, c_BHV, reset_BT, lengths_B, saved)
        ctx.save_for_backward(u_GHVK, reset_BT, lengths_B, *saved)
        return out

    @staticmethod
    @once_differentiable("lstm", "numba")
    def backward(ctx: Any, dh_BTHV: Tensor, *dlast: Tensor) -> tuple[Tensor | None, ...]:
        u_GHVK, reset_BT, lengths_B, *rest = ctx.saved_tensors
        (B, T, H, V), saved = dh_BTHV.shape, Saved(*rest)
        u_GHVK, dh_BTHV, *dafter = detached_contiguous(u_GHVK, dh_BTHV, *dlast)
        dx_BTGHV, dbefore = dh_BTHV.new_empty(B, T, 4, H, V), State(*map(torch.empty_like, dafter))
        (sizes, cost), inputs = work_of(dx_BTGHV), Inputs(u_GHVK, reset_BT, lengths_B)
        given = dh_BTHV, State(*dafter), saved
        launch(backward_scan, items_of(sizes), sizes, inputs, *given, dx_BTGHV, dbefore, cost=cost)
        return dx_BTGHV, recurrent_gradient(dx_BTGHV, saved.past_HBTV), *dbefore, None, None


def lstm_numba(
    x_BTGHV: Tensor,
    u_GHVK: Tensor,
    h_BHV: Tensor,
    c_BHV: Tensor,
    /,
    *,
    reset_BT: Tensor | None,
    lengths_B: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """h of every step and the last h and c, of inputs W x + b, in float32."""
    inputs = x_BTGHV, u_GHVK, h_BHV, c_BHV
    call: Any = LSTMScan.apply if has_gradients(inputs) else forward
    out_BTHV, h_BHV, c_BHV = call(*inputs, *rows_for_kernels(x_BTGHV, reset_BT, lengths_B))
    return out_BTHV, h_BHV, c_BHV
