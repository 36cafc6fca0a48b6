"""The GRU over a whole sequence on a CPU: forward and backward scans, weight gradients outside as products.

An item is a head with some rows of the batch, and one thread takes it through all of time. A step is one product of
all rows with U of the head, packed, and the gates of one row after another, in blocks of 16 units. Saved for the
backward are h before every step, the gates, and the product for n.

B batch  T time  H heads  V, K head width  G gates: r, z, n  E numbers saved
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy import float32
from torch import Tensor

from exlstm.ops.common import detached_contiguous, rows_for_kernels
from exlstm.ops.derivatives import once_differentiable
from exlstm.ops.fused import recurrent_gradient
from exlstm.ops.lstm.numba.cell import SAVED, Sizes, items_of, sizes_of
from exlstm.runtime.cpu.blocks import Units, add_parts, load, reset_rows, simd16, store_parts, width
from exlstm.runtime.cpu.jit import helper
from exlstm.runtime.cpu.kernel import F32, I64, Bools, kernel
from exlstm.runtime.cpu.launch import launch
from exlstm.runtime.cpu.loops import add_at
from exlstm.runtime.cpu.memory import SIZE, address_of, clear, copy, hold, tensor_at
from exlstm.runtime.cpu.simd import sigmoid, tanh
from exlstm.runtime.cpu.tile import PANEL, pack_columns, pack_rows, product, rows_by_four
from exlstm.runtime.tracing import has_gradients

GATES = 3 * PANEL  # products of 16 units in a step
FOUR_PANELS = 4 * PANEL


class Inputs(NamedTuple):
    """Addresses of what both scans read."""

    u_GHVK: F32
    c_HV: F32
    reset_BT: Bools
    lengths_B: I64


class State(NamedTuple):
    """Addresses of a state before the first step and after the last one, or of their gradients."""

    before_BHV: F32
    after_BHV: F32


class Saved(NamedTuple):
    """Addresses of what the backward reads, both 0 without one. past: h before a step."""

    past_HBTV: F32
    saved_E: F32


@simd16
def cell(raw: Units, own: Units, h: Units, saved: Units) -> None:
    """One step of 16 units: r, z and U_n h to h, and what is saved. own: the input of n, and c."""
    r, z, past, before = sigmoid(raw[0]), sigmoid(raw[1]), raw[2] + own[1], h[0]
    n = tanh(own[0] + r * past)
    for part, x in enumerate((r, z, n, past, before)):
        saved[part] = x
    h[0] = (1.0 - z) * n + z * before


@simd16
def cell_backward(draw: Units, dx: Units, dh: Units, saved: Units) -> None:
    """Gradients of r, z and n before their activations to dx, of the products to draw, and of h past these to dh."""
    r, z, n, past, before = (saved[part] for part in range(5))
    dh_now = dh[0]
    dn = dh_now * (1.0 - z) * (1.0 - n * n)
    dr, dz = dn * past * r * (1.0 - r), dh_now * (before - n) * z * (1.0 - z)
    for part, x in enumerate((dr, dz, dn)):
        dx[part] = x
    for part, x in enumerate((dr, dz, dn * r)):
        draw[part] = x
    dh[0] = dh_now * z


@kernel(G=3)
def forward_scan(
    first: int, last: int, sizes: Sizes, x: Inputs, x_BTGHV: F32, state: State, h_BTHV: F32, saved: Saved
) -> None:
    """Items of h, and the state after the last step."""
    rows, B, T, H, V, _, _ = sizes
    units, tiles, room = -(-V // PANEL), -(-B // rows), rows_by_four(rows)
    wide, saving = units * PANEL, saved.saved_E != 0
    lengths, resets = tensor_at(x.lengths_B, B, np.int64), tensor_at(x.reset_BT, (B, T), np.bool_)
    work = np.empty(4 * room * wide + SAVED + 2 * wide + 3 * wide * V, float32)
    h = address_of(work)
    raw, spare = h + SIZE * room * wide, h + SIZE * 4 * room * wide
    own = spare + SIZE * SAVED
    panels = own + SIZE * 2 * wide
    for item in range(first, last):
        head, row0 = item // tiles, item % tiles * rows
        count, steps = rows if B - row0 > rows else B - row0, 0
        clear(h, 4 * room * wide)
        clear(own, 2 * wide + 3 * wide * V)
        pack_columns(x.u_GHVK + SIZE * head * V * V, 3, H * V * V, V, V, V, panels, V, 0)
        load(own, 2 * PANEL, 1, x.c_HV + SIZE * head * V, V)
        for row in range(count):
            copy(h + SIZE * row * wide, state.before_BHV + SIZE * ((row0 + row) * H + head) * V, V)
            steps = max(steps, lengths[row0 + row])
        for t in range(steps):
            if x.reset_BT != 0:
                reset_rows(resets, lengths, row0, count, t, h, wide, raw, 0)
            product(raw, 3 * wide, FOUR_PANELS, h, wide, count, panels, V, 3 * units)
            for row in range(count):
                b, h_r = row0 + row, h + SIZE * row * wide
                if t < lengths[b]:
                    step, x_r = (head * B + b) * T + t, x_BTGHV + SIZE * ((b * T + t) * 3 * H + head) * V
                    if saving:
                        copy(saved.past_HBTV + SIZE * step * V, h_r, V)
                    for u in range(units):
                        raw_u, x_u, count_u = (
                            raw + SIZE * (row * 3 * wide + u * GATES),
                            x_r + SIZE * u * PANEL,
                            width(V, u),
                        )
                        own_u = own + SIZE * 2 * u * PANEL
                        to = saved.saved_E + SIZE * (step * units + u) * SAVED if saving else spare
                        add_parts(raw_u, 2, x_u, H * V, count_u)
                        copy(own_u, x_u + SIZE * 2 * H * V, count_u)
                        cell(raw_u, own_u, h_r + SIZE * u * PANEL, to)
                    copy(h_BTHV + SIZE * ((b * T + t) * H + head) * V, h_r, V)
        for row in range(count):
            b = row0 + row
            copy(state.after_BHV + SIZE * (b * H + head) * V, h + SIZE * row * wide, V)
            for t in range(lengths[b], T):
                clear(h_BTHV + SIZE * ((b * T + t) * H + head) * V, V)
                if saving:
                    clear(saved.past_HBTV + SIZE * ((head * B + b) * T + t) * V, V)
    hold(work)


class Gradients(NamedTuple):
    """Addresses of gradients: given of h, found of the inputs and of the products with U."""

    dh_BTHV: F32
    dx_BTGHV: F32
    draw_BTGHV: F32


@helper()
def clear_step(out: Gradients, sizes: Sizes, head: int, b: int, t: int) -> None:
    """Zeros as the gradients of a head of a step."""
    for g in range(3):
        place = SIZE * (((b * sizes.T + t) * 3 + g) * sizes.H + head) * sizes.V
        clear(out.dx_BTGHV + place, sizes.V)
        clear(out.draw_BTGHV + place, sizes.V)


@kernel(G=3)
def backward_scan(first: int, last: int, sizes: Sizes, x: Inputs, dstate: State, saved: Saved, d: Gradients) -> None:
    """Items as in `forward_scan`: gradients of the inputs and of the state before the first step."""
    rows, B, T, H, V, _, _ = sizes
    units, tiles, room = -(-V // PANEL), -(-B // rows), rows_by_four(rows)
    wide = units * PANEL
    lengths, resets = tensor_at(x.lengths_B, B, np.int64), tensor_at(x.reset_BT, (B, T), np.bool_)
    work = np.empty(5 * room * wide + GATES + 3 * wide * wide, float32)
    dh = address_of(work)
    through = dh + SIZE * room * wide
    draw = through + SIZE * room * wide
    dx = draw + SIZE * room * 3 * wide
    panels = dx + SIZE * GATES
    for item in range(first, last):
        head, row0 = item // tiles, item % tiles * rows
        count, steps = rows if B - row0 > rows else B - row0, 0
        clear(dh, 5 * room * wide + GATES + 3 * wide * wide)
        pack_rows(x.u_GHVK + SIZE * head * V * V, 3, H * V * V, V, V, V, panels, 3 * wide, 0)
        for row in range(count):
            steps = max(steps, lengths[row0 + row])
        for t in range(steps - 1, -1, -1):
            for row in range(count):
                b, dh_r = row0 + row, dh + SIZE * row * wide
                if t < lengths[b]:
                    if t == lengths[b] - 1:
                        copy(dh_r, dstate.after_BHV + SIZE * (b * H + head) * V, V)
                    add_at(dh_r, d.dh_BTHV + SIZE * ((b * T + t) * H + head) * V, V)
                    step = saved.saved_E + SIZE * ((head * B + b) * T + t) * units * SAVED
                    place = SIZE * ((b * T + t) * 3 * H + head) * V
                    for u in range(units):
                        draw_u, to = draw + SIZE * (row * 3 * wide + u * GATES), place + SIZE * u * PANEL
                        cell_backward(draw_u, dx, dh_r + SIZE * u * PANEL, step + SIZE * u * SAVED)
                        store_parts(d.dx_BTGHV + to, H * V, dx, 3, width(V, u))
                        store_parts(d.draw_BTGHV + to, H * V, draw_u, 3, width(V, u))
            product(through, wide, FOUR_PANELS, draw, 3 * wide, count, panels, 3 * wide, units)
            for row in range(count):
                add_at(dh + SIZE * row * wide, through + SIZE * row * wide, wide)
            if x.reset_BT != 0:
                reset_rows(resets, lengths, row0, count, t, dh, wide, through, 0)
        for row in range(count):
            b, length = row0 + row, lengths[row0 + row]
            place = SIZE * (b * H + head) * V
            copy(dstate.before_BHV + place, dstate.after_BHV + place if length == 0 else dh + SIZE * row * wide, V)
            for t in range(length, T):
                clear_step(d, sizes, head, b, t)
    hold(work)


def work_of(x_BTGHV: Tensor) -> tuple[Sizes, float]:
    """Sizes of the GRU's scan, and its cost."""
    return sizes_of(x_BTGHV, 80 + 6 * x_BTGHV.shape[-1])


def forward(
    x_BTGHV: Tensor,
    u_GHVK: Tensor,
    c_HV: Tensor,
    h_BHV: Tensor,
    reset_BT: Tensor | None,
    lengths_B: Tensor,
    saved: Saved | None = None,
) -> tuple[Tensor, Tensor]:
    """h of every step and the state after the last one, without a graph. saved: filled for the backward."""
    x_BTGHV, u_GHVK, c_HV, h_BHV = detached_contiguous(x_BTGHV, u_GHVK, c_HV, h_BHV)
    (B, T, _, H, V), (sizes, cost) = x_BTGHV.shape, work_of(x_BTGHV)
    out_BTHV, state = x_BTGHV.new_empty(B, T, H, V), State(h_BHV, torch.empty_like(h_BHV))
    inputs, saved = Inputs(u_GHVK, c_HV, reset_BT, lengths_B), Saved(None, None) if saved is None else saved
    launch(forward_scan, items_of(sizes), sizes, inputs, x_BTGHV, state, out_BTHV, saved, cost=cost)
    return out_BTHV, state.after_BHV


class GRUScan(torch.autograd.Function):
    """(W x + b, U, c, h) -> (h of every step, last h); all float32."""

    @staticmethod
    def forward(
        ctx: Any,
        x_BTGHV: Tensor,
        u_GHVK: Tensor,
        c_HV: Tensor,
        h_BHV: Tensor,
        reset_BT: Tensor | None,
        lengths_B: Tensor,
    ) -> tuple[Tensor, Tensor]:
        (B, T, _, H, V), (sizes, _) = x_BTGHV.shape, work_of(x_BTGHV)
        saved = Saved(x_BTGHV.new_empty(H, B, T, V), x_BTGHV.new_empty(sizes.E))
        out = forward(x_BTGHV, u_GHVK, c_HV, h_BHV, reset_BT, lengths_B, saved)
        ctx.save_for_backward(u_GHVK, c_HV, reset_BT, lengths_B, *saved)
        return out

    @staticmethod
    @once_differentiable("gru", "numba")
    def backward(ctx: Any, dh_BTHV: Tensor, dlast_BHV: Tensor) -> tuple[Tensor | None, ...]:
        u_GHVK, c_HV, reset_BT, lengths_B, *rest = ctx.saved_tensors
        (B, T, H, V), saved = dh_BTHV.shape, Saved(*rest)
        u_GHVK, c_HV, dh_BTHV, dlast_BHV = detached_contiguous(u_GHVK, c_HV, dh_BTHV, dlast_BHV)
        dx_BTGHV, draw_BTGHV = (dh_BTHV.new_empty(B, T, 3, H, V) for _ in range(2))
        dstate, (sizes, cost) = State(torch.empty_like(dlast_BHV), dlast_BHV), work_of(dx_BTGHV)
        inputs, d = Inputs(u_GHVK, c_HV, reset_BT, lengths_B), Gradients(dh_BTHV, dx_BTGHV, draw_BTGHV)
        launch(backward_scan, items_of(sizes), sizes, inputs, dstate, saved, d, cost=cost)
        du_GHVK = recurrent_gradient(draw_BTGHV, saved.past_HBTV)
        return dx_BTGHV, du_GHVK, draw_BTGHV[:, :, 2].sum((0, 1)), dstate.before_BHV, None, None


def gru_numba(
    x_BTGHV: Tensor,
    u_GHVK: Tensor,
    c_HV: Tensor,
    h_BHV: Tensor,
    /,
    *,
    reset_BT: Tensor | None,
    lengths_B: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """h of every step and the last one, of inputs W x + b, in float32."""
    inputs = x_BTGHV, u_GHVK, c_HV, h_BHV
    call: Any = GRUScan.apply if has_gradients(inputs) else forward
    out_BTHV, after_BHV = call(*inputs, *rows_for_kernels(x_BTGHV, reset_BT, lengths_B))
    return out_BTHV, after_BHV
