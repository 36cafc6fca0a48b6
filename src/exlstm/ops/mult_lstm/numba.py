"""Multiplicative LSTM over a whole sequence on a CPU: forward and backward scans, weight gradients outside as GEMMs.

An item is a head with some rows of the batch, and one thread takes it through all of time. A step is two products of
all rows with M and R of the head, packed, and the gates of one row after another, which are the LSTM's. Saved for the
backward are the gates, c before every step, and the vectors that the weights met.

B batch  T time  H heads  V, K head width  G gates: i, f, z, o  E numbers saved
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy import float32
from torch import Tensor

from exlstm.ops.common import detached_contiguous, rows_for_kernels, upcast, without_autocast
from exlstm.ops.derivatives import once_differentiable
from exlstm.ops.fused import recurrent_gradient
from exlstm.ops.lstm.numba.cell import (
    GATES,
    SAVED,
    Sizes,
    State,
    gates,
    gates_backward,
    items_of,
    read_state,
    sizes_of,
    write_state,
)
from exlstm.ops.mult_lstm.reference import MultLSTMState
from exlstm.runtime.cpu.blocks import reset_rows
from exlstm.runtime.cpu.jit import helper
from exlstm.runtime.cpu.kernel import F32, I64, Bools, kernel
from exlstm.runtime.cpu.launch import launch
from exlstm.runtime.cpu.loops import add_at
from exlstm.runtime.cpu.memory import SIZE, address_of, at, clear, copy, hold, put, tensor_at
from exlstm.runtime.cpu.tile import PANEL, pack_columns, pack_rows, product, rows_by_four
from exlstm.runtime.tracing import has_gradients


class Inputs(NamedTuple):
    """Addresses of what both scans read."""

    p_BTHV: F32
    m_HVK: F32
    r_GHVK: F32
    reset_BT: Bools
    lengths_B: I64


class Saved(NamedTuple):
    """Addresses of what the backward reads, all 0 without one. past: h before a step; product: M h; mixed: p M h."""

    past_HBTV: F32
    product_HBTV: F32
    mixed_HBTV: F32
    saved_E: F32


@helper()
def multiply(out: int, x: int, y: int, V: int) -> None:
    """out = x y"""
    for v in range(V):
        put(out, v, at(x, v) * at(y, v))


@helper()
def save_vectors(saved: Saved, place: int, past: int, part: int, mixed: int, V: int) -> None:
    """The vectors of a step that the backward reads."""
    copy(saved.past_HBTV + SIZE * place, past, V)
    copy(saved.product_HBTV + SIZE * place, part, V)
    copy(saved.mixed_HBTV + SIZE * place, mixed, V)


@helper()
def clear_vectors(saved: Saved, place: int, count: int) -> None:
    """Zeros beyond the end of a row, for the sums over steps."""
    clear(saved.past_HBTV + SIZE * place, count)
    clear(saved.mixed_HBTV + SIZE * place, count)


@kernel(G=4)
def forward_scan(
    first: int, last: int, sizes: Sizes, x: Inputs, x_BTGHV: F32, before: State, h_BTHV: F32, after: State, saved: Saved
) -> None:
    """Items of h, and the state after the last step."""
    rows, B, T, H, V, _, _ = sizes
    units, tiles, room = -(-V // PANEL), -(-B // rows), rows_by_four(rows)
    wide, saving = units * PANEL, saved.saved_E != 0
    lengths, resets = tensor_at(x.lengths_B, B, np.int64), tensor_at(x.reset_BT, (B, T), np.bool_)
    work = np.empty(8 * room * wide + SAVED + 5 * wide * V, float32)
    h = address_of(work)
    c, part, mixed = h + SIZE * room * wide, h + 2 * SIZE * room * wide, h + 3 * SIZE * room * wide
    raw = h + 4 * SIZE * room * wide
    spare = raw + SIZE * room * 4 * wide
    m_panels = spare + SIZE * SAVED
    r_panels = m_panels + SIZE * wide * V
    for item in range(first, last):
        head, row0 = item // tiles, item % tiles * rows
        count, steps = rows if B - row0 > rows else B - row0, 0
        clear(h, 8 * room * wide)
        clear(m_panels, 5 * wide * V)
        pack_columns(x.m_HVK + SIZE * head * V * V, 1, 0, V, V, V, m_panels, V, 0)
        pack_columns(x.r_GHVK + SIZE * head * V * V, 4, H * V * V, V, V, V, r_panels, V, 0)
        read_state(h, c, wide, before, row0 * H + head, count, H, V)
        for row in range(count):
            steps = max(steps, lengths[row0 + row])
        for t in range(steps):
            if x.reset_BT != 0:
                reset_rows(resets, lengths, row0, count, t, h, wide, c, wide)
            product(part, wide, GATES, h, wide, count, m_panels, V, units)
            for row in range(count):
                b, here = row0 + row, SIZE * row * wide
                if t < lengths[b]:
                    multiply(mixed + here, part + here, x.p_BTHV + SIZE * ((b * T + t) * H + head) * V, V)
                    if saving:
                        save_vectors(saved, ((head * B + b) * T + t) * V, h + here, part + here, mixed + here, V)
            product(raw, 4 * wide, GATES, mixed, wide, count, r_panels, V, 4 * units)
            for row in range(count):
                b, here = row0 + row, SIZE * row * wide
                if t < lengths[b]:
                    step, raw_r = ((head * B + b) * T + t) * units * SAVED, raw + SIZE * row * 4 * wide
                    x_r = x_BTGHV + SIZE * ((b * T + t) * 4 * H + head) * V
                    to, each = saved.saved_E + SIZE * step if saving else spare, SAVED if saving else 0
                    gates(raw_r, x_r, c + here, h + here, to, each, H, V)
                    copy(h_BTHV + SIZE * ((b * T + t) * H + head) * V, h + here, V)
        write_state(after, h, c, wide, row0 * H + head, count, H, V)
        for row in range(count):
            b, length = row0 + row, lengths[row0 + row]
            for t in range(length, T):
                clear(h_BTHV + SIZE * ((b * T + t) * H + head) * V, V)
            if saving:
                clear_vectors(saved, ((head * B + b) * T + length) * V, (T - length) * V)
    hold(work)


class Gradients(NamedTuple):
    """Addresses of gradients: given of h, found of the inputs and of M h."""

    dh_BTHV: F32
    dp_BTHV: F32
    dx_BTGHV: F32
    dproduct_HBTV: F32


@helper()
def clear_step(out: Gradients, sizes: Sizes, head: int, b: int, t: int) -> None:
    """Zeros as the gradients of a head of a step."""
    _, B, T, H, V, _, _ = sizes
    clear(out.dp_BTHV + SIZE * ((b * T + t) * H + head) * V, V)
    clear(out.dproduct_HBTV + SIZE * ((head * B + b) * T + t) * V, V)
    for g in range(4):
        clear(out.dx_BTGHV + SIZE * (((b * T + t) * 4 + g) * H + head) * V, V)


@kernel(G=4)
def backward_scan(
    first: int, last: int, sizes: Sizes, x: Inputs, dafter: State, dbefore: State, saved: Saved, d: Gradients
) -> None:
    """Items as in `forward_scan`: gradients of the inputs and of the state before the first step."""
    rows, B, T, H, V, _, _ = sizes
    units, tiles, room = -(-V // PANEL), -(-B // rows), rows_by_four(rows)
    wide = units * PANEL
    lengths, resets = tensor_at(x.lengths_B, B, np.int64), tensor_at(x.reset_BT, (B, T), np.bool_)
    work = np.empty(8 * room * wide + 5 * wide * wide, float32)
    dh = address_of(work)
    dc, dmixed, dproduct = dh + SIZE * room * wide, dh + 2 * SIZE * room * wide, dh + 3 * SIZE * room * wide
    draw = dh + 4 * SIZE * room * wide
    m_panels = draw + SIZE * room * 4 * wide
    r_panels = m_panels + SIZE * wide * wide
    for item in range(first, last):
        head, row0 = item // tiles, item % tiles * rows
        count, steps = rows if B - row0 > rows else B - row0, 0
        clear(dh, 8 * room * wide + 5 * wide * wide)
        pack_rows(x.m_HVK + SIZE * head * V * V, 1, 0, V, V, V, m_panels, wide, 0)
        pack_rows(x.r_GHVK + SIZE * head * V * V, 4, H * V * V, V, V, V, r_panels, 4 * wide, 0)
        for row in range(count):
            copy(dc + SIZE * row * wide, dafter.c_BHV + SIZE * ((row0 + row) * H + head) * V, V)
            steps = max(steps, lengths[row0 + row])
        for t in range(steps - 1, -1, -1):
            for row in range(count):
                b, here, draw_r = row0 + row, SIZE * row * wide, draw + SIZE * row * 4 * wide
                if t < lengths[b]:
                    place = (b * T + t) * H + head
                    if t == lengths[b] - 1:
                        copy(dh + here, dafter.h_BHV + SIZE * (b * H + head) * V, V)
                    add_at(dh + here, d.dh_BTHV + SIZE * place * V, V)
                    step = saved.saved_E + SIZE * ((head * B + b) * T + t) * units * SAVED
                    to = d.dx_BTGHV + SIZE * ((b * T + t) * 4 * H + head) * V
                    gates_backward(draw_r, dc + here, dh + here, step, to, H, V)
            product(dmixed, wide, GATES, draw, 4 * wide, count, r_panels, 4 * wide, units)
            for row in range(count):
                b, here = row0 + row, SIZE * row * wide
                if t < lengths[b]:
                    place, step = SIZE * ((b * T + t) * H + head) * V, SIZE * ((head * B + b) * T + t) * V
                    multiply(d.dp_BTHV + place, dmixed + here, saved.product_HBTV + step, V)
                    multiply(dproduct + here, dmixed + here, x.p_BTHV + place, V)
                    copy(d.dproduct_HBTV + step, dproduct + here, V)
            product(dh, wide, GATES, dproduct, wide, count, m_panels, wide, units)
            if x.reset_BT != 0:
                reset_rows(resets, lengths, row0, count, t, dh, wide, dc, wide)
        for row in range(count):
            b, length, here = row0 + row, lengths[row0 + row], SIZE * row * wide
            place = SIZE * (b * H + head) * V
            copy(dbefore.h_BHV + place, dafter.h_BHV + place if length == 0 else dh + here, V)
            copy(dbefore.c_BHV + place, dc + here, V)
            for t in range(length, T):
                clear_step(d, sizes, head, b, t)
    hold(work)


def work_of(x_BTGHV: Tensor) -> tuple[Sizes, float]:
    """Sizes of a scan with two products, and its cost."""
    return sizes_of(x_BTGHV, 100 + 10 * x_BTGHV.shape[-1])


def forward(
    p_BTHV: Tensor,
    x_BTGHV: Tensor,
    m_HVK: Tensor,
    r_GHVK: Tensor,
    h_BHV: Tensor,
    c_BHV: Tensor,
    reset_BT: Tensor | None,
    lengths_B: Tensor,
    saved: Saved | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """h of every step and the state after the last one, without a graph. saved: filled for the backward."""
    p_BTHV, x_BTGHV, m_HVK, r_GHVK, *state = detached_contiguous(p_BTHV, x_BTGHV, m_HVK, r_GHVK, h_BHV, c_BHV)
    sizes, cost = work_of(x_BTGHV)
    out, after = torch.empty_like(p_BTHV), State(*map(torch.empty_like, state))
    saved = Saved(None, None, None, None) if saved is None else saved
    inputs = Inputs(p_BTHV, m_HVK, r_GHVK, reset_BT, lengths_B)
    launch(forward_scan, items_of(sizes), sizes, inputs, x_BTGHV, State(*state), out, after, saved, cost=cost)
    return out, after.h_BHV, after.c_BHV


class MultLSTMScan(torch.autograd.Function):
    """(p, x, M, R, h, c) -> (h of every step, last h, last c); all float32."""

    @staticmethod
    def forward(
        ctx: Any,
        p_BTHV: Tensor,
        x_BTGHV: Tensor,
        m_HVK: Tensor,
        r_GHVK: Tensor,
        h_BHV: Tensor,
        c_BHV: Tensor,
        reset_BT: Tensor | None,
        lengths_B: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        (B, T, H, V), (sizes, _) = p_BTHV.shape, work_of(x_BTGHV)
        past_HBTV, product_HBTV, mixed_HBTV = (p_BTHV.new_empty(H, B, T, V) for _ in range(3))
        saved = Saved(past_HBTV, product_HBTV, mixed_HBTV, p_BTHV.new_empty(sizes.E))
        out = forward(p_BTHV, x_BTGHV, m_HVK, r_GHVK, h_BHV, c_BHV, reset_BT, lengths_B, saved)
        ctx.save_for_backward(p_BTHV, m_HVK, r_GHVK, reset_BT, lengths_B, *saved)
        return out

    @staticmethod
    @once_differentiable("mult_lstm", "numba")
    def backward(ctx: Any, dh_BTHV: Tensor, *dlast: Tensor) -> tuple[Tensor | None, ...]:
        p_BTHV, m_HVK, r_GHVK, reset_BT, lengths_B, *rest = ctx.saved_tensors
        (B, T, H, V), saved = p_BTHV.shape, Saved(*rest)
        p_BTHV, m_HVK, r_GHVK, dh_BTHV, *dafter = detached_contiguous(p_BTHV, m_HVK, r_GHVK, dh_BTHV, *dlast)
        dx_BTGHV = p_BTHV.new_empty(B, T, 4, H, V)
        d = Gradients(dh_BTHV, torch.empty_like(p_BTHV), dx_BTGHV, torch.empty_like(saved.past_HBTV))
        dbefore, (sizes, cost) = State(*map(torch.empty_like, dafter)), work_of(dx_BTGHV)
        inputs = Inputs(p_BTHV, m_HVK, r_GHVK, reset_BT, lengths_B)
        launch(backward_scan, items_of(sizes), sizes, inputs, State(*dafter), dbefore, saved, d, cost=cost)
        with without_autocast(dx_BTGHV):
            dm_HVK = d.dproduct_HBTV.flatten(1, 2).mT @ saved.past_HBTV.flatten(1, 2)
        dr_GHVK = recurrent_gradient(dx_BTGHV, saved.mixed_HBTV)
        return d.dp_BTHV, dx_BTGHV, dm_HVK, dr_GHVK, *dbefore, None, None


def mult_lstm_numba(
    p_BTHV: Tensor,
    x_BTGHV: Tensor,
    m_HVK: Tensor,
    r_GHVK: Tensor,
    state: MultLSTMState,
    /,
    *,
    reset_BT: Tensor | None,
    lengths_B: Tensor | None,
) -> tuple[Tensor, MultLSTMState]:
    """The numbers of `mult_lstm_recurrent`, in float32."""
    inputs = *map(upcast, (p_BTHV, x_BTGHV, m_HVK, r_GHVK)), *state
    call: Any = MultLSTMScan.apply if has_gradients(inputs) else forward
    h_BTHV, *after = call(*inputs, *rows_for_kernels(p_BTHV, reset_BT, lengths_B))
    return h_BTHV, MultLSTMState(*after)
