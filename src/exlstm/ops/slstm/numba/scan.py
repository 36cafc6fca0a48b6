"""The loops over time of the sLSTM, forward and backward: only the sequential part of the cell is in them.

An item is a head and a tile of rows of the batch, and one thread takes it through all of time: R of the head, packed,
stays in its cache. A step is one product of all rows with R, then the gates of one row after another, 16 units at a
time, in the blocks of `gates`.

B batch  T time  H heads  K, V head width  G gates: i, f, z, o  Q state parts: h, c, n, m
"""

from typing import NamedTuple

import numpy as np
from numpy import float32

from exlstm.ops.slstm.numba.gates import BLOCK, CARRY, DRAW
from exlstm.ops.slstm.numba.inputs import COLUMNS, Inputs, project
from exlstm.ops.slstm.numba.recurrent import Recurrent, pack, pack_transposed, read_product
from exlstm.ops.slstm.numba.variants import any_backward, any_step, saved_size_in_kernels
from exlstm.runtime.cpu.blocks import add_parts, load, reset_rows, store, store_parts, width
from exlstm.runtime.cpu.jit import helper
from exlstm.runtime.cpu.kernel import F32, I64, Bools, F32Rows, kernel
from exlstm.runtime.cpu.memory import SIZE, address_of, at, clear, copy, hold, prefetch, put, tensor_at
from exlstm.runtime.cpu.tile import PANEL, product, rows_by_four


@helper()
def step_units(
    block: int, h: int, x: int, panels: bool, keeps: bool, saved: int, mixing: bool, H: int, V: int, variant: int
) -> None:
    """One step of all units of a row.

    x: pre-activations of this step, gate by gate, or in panels of 64. keeps: `saved` has a block for every 16 units.
    """
    saved_step = saved_size_in_kernels(variant) if keeps else 0
    for u in range(-(-V // PANEL)):
        block_u = block + SIZE * u * BLOCK
        if not mixing:
            clear(block_u, 4 * PANEL)
        if panels:
            add_parts(block_u, 4, x + SIZE * u * COLUMNS, PANEL, PANEL)
        else:
            x_u = x + SIZE * u * PANEL
            add_parts(block_u, 4, x_u, V, width(V, u))
            for g in range(4):  # of the next step
                prefetch(x_u, (4 * H + g) * V)
        any_step(block_u, h + SIZE * u * PANEL, saved + SIZE * u * saved_step, variant)


class Sizes(NamedTuple):
    """Sizes of a scan. rows: of the batch, in an item. mixing: whether R exists. E: numbers saved for the backward."""

    rows: int
    mixing: bool
    B: int
    T: int
    H: int
    K: int
    V: int
    E: int


class State(NamedTuple):
    """Addresses of the state before the first step or after the last. apart: from a row of c, n and m to the next."""

    h_BHV: F32
    c_BHV: F32Rows
    n_BHV: F32Rows
    m_BHV: F32Rows
    apart: int


@helper()
def load_state(block: int, h: int, before: State, b: int, head: int, H: int, V: int) -> None:
    """Fills the blocks and h of a row from a state."""
    load(h, PANEL, 0, before.h_BHV + SIZE * (b * H + head) * V, V)
    for n, part in enumerate((before.c_BHV, before.n_BHV, before.m_BHV)):
        load(block, BLOCK, 4 + n, part + SIZE * (b * before.apart + head * V), V)


@helper()
def store_state(block: int, h: int, after: State, b: int, head: int, H: int, V: int) -> None:
    """The inverse of `load_state`."""
    store(h, PANEL, 0, after.h_BHV + SIZE * (b * H + head) * V, V)
    for n, part in enumerate((after.c_BHV, after.n_BHV, after.m_BHV)):
        store(block, BLOCK, 4 + n, part + SIZE * (b * after.apart + head * V), V)


@helper()
def clear_steps(x: int, apart: int, count: int, first: int, end: int) -> None:
    """Clears `count` numbers of each step from `first` to the one before `end`. apart: numbers from step to step."""
    for t in range(first, end):
        clear(x + SIZE * t * apart, count)


@kernel(G=4)
def forward_scan(first: int, last: int, sizes: Sizes, packed: bool, x_BTHGV: F32, inputs: Inputs, r: Recurrent,
                 reset_BT: Bools, lengths_B: I64, variant: int, before: State, h_BTHV: F32, after: State,
                 past_HBTV: F32, saved_E: F32, bf16: bool) -> None:  # fmt: skip
    """Items of h, and the state after the last step, from x or from what it projects. bf16: whether R is bfloat16.

    For the backward, unless saved_E is 0: past_HBTV is filled with h before every step, and saved_E with blocks
    [H, B, T, V].
    """
    rows, mixing, B, T, H, _, V, _ = sizes
    units, tiles = -(-V // PANEL), -(-B // rows)
    wide, tall, room, size = units * PANEL, units * BLOCK, rows_by_four(rows), saved_size_in_kernels(variant)
    lengths, resets = tensor_at(lengths_B, B, np.int64), tensor_at(reset_BT, (B, T), np.bool_)
    some = rows * inputs.steps * 4 * wide
    work = np.empty(room * (tall + wide) + size + 4 * V + some + (4 * V * wide if mixing and packed else 0), float32)
    block = address_of(work)
    h = block + SIZE * room * tall
    spare = h + SIZE * room * wide
    raw = spare + SIZE * size
    projected = raw + SIZE * 4 * V
    panels = projected + SIZE * some
    for item in range(first, last):
        head, row0 = item // tiles, item % tiles * rows
        count, steps = rows if B - row0 > rows else B - row0, 0
        clear(block, room * (tall + wide))
        if mixing and packed:
            pack(r, head, bf16, V, units, panels)
        for row in range(count):
            load_state(block + SIZE * row * tall, h + SIZE * row * wide, before, row0 + row, head, H, V)
            steps = max(steps, lengths[row0 + row])
        for t in range(steps):
            if inputs.steps > 0 and t % inputs.steps == 0:
                project(projected, inputs, head, units, lengths, row0, count, t, T)
            if reset_BT != 0:
                reset_rows(resets, lengths, row0, count, t, block, tall, h, wide)
            if mixing and packed:
                product(block, tall, BLOCK, h, wide, count, panels, V, 4 * units)
            for row in range(count):
                b = row0 + row
                if t >= lengths[b]:
                    continue
                block_r, h_r, step = block + SIZE * row * tall, h + SIZE * row * wide, (head * B + b) * T + t
                place, saved = (b * T + t) * H + head, spare
                if mixing and not packed:
                    read_product(block_r, units, h_r, r.r_HKGV + (2 if bf16 else SIZE) * head * r.head, bf16, V, raw)
                if saved_E != 0:
                    copy(past_HBTV + SIZE * step * V, h_r, V)
                    saved = saved_E + SIZE * step * units * size
                x_r = x_BTHGV + SIZE * place * 4 * V
                if inputs.steps > 0:
                    x_r = projected + SIZE * (row * inputs.steps + t % inputs.steps) * 4 * wide
                step_units(block_r, h_r, x_r, inputs.steps > 0, saved_E != 0, saved, mixing, H, V, variant)
                copy(h_BTHV + SIZE * place * V, h_r, V)
        for row in range(count):
            b, length = row0 + row, lengths[row0 + row]
            store_state(block + SIZE * row * tall, h + SIZE * row * wide, after, b, head, H, V)
            clear_steps(h_BTHV + SIZE * (b * T * H + head) * V, H * V, V, length, T)
            if saved_E != 0:
                clear(past_HBTV + SIZE * ((head * B + b) * T + length) * V, (T - length) * V)
    hold(work)


class StateGradients(NamedTuple):
    """Of the parts of the state that have gradients. apart: as in `State`."""

    h_BHV: F32
    c_BHV: F32Rows
    n_BHV: F32Rows
    apart: int


@kernel(G=4)
def backward_scan(first: int, last: int, sizes: Sizes, dh_BTHV: F32, r: Recurrent, reset_BT: Bools, lengths_B: I64,
                  dafter: StateGradients, draw_BTHGV: F32, dbefore: StateGradients, saved_E: F32, variant: int
                  ) -> None:  # fmt: skip
    """Items as in `forward_scan`. Fills the gradients of x and of the first h, c, n from those of the last."""
    rows, mixing, B, T, H, _, V, _ = sizes
    units, tiles = -(-V // PANEL), -(-B // rows)
    wide, room, size = units * PANEL, rows_by_four(rows), saved_size_in_kernels(variant)
    lengths, resets = tensor_at(lengths_B, B, np.int64), tensor_at(reset_BT, (B, T), np.bool_)
    work = np.empty(7 * room * wide + (4 * wide * wide if mixing else 0), float32)
    draw = address_of(work)
    carry = draw + SIZE * room * 4 * wide
    dh = carry + SIZE * room * 2 * wide
    panels = dh + SIZE * room * wide
    for item in range(first, last):
        head, row0 = item // tiles, item % tiles * rows
        count, steps = rows if B - row0 > rows else B - row0, 0
        clear(draw, 7 * room * wide)
        if mixing:
            pack_transposed(r, head, V, units, panels)
        for row in range(count):
            state = SIZE * ((row0 + row) * dafter.apart + head * V)
            for part, given in enumerate((dafter.c_BHV, dafter.n_BHV)):
                load(carry + SIZE * row * 2 * wide, CARRY, part, given + state, V)
            steps = max(steps, lengths[row0 + row])
        for t in range(steps - 1, -1, -1):
            for row in range(count):
                b, dh_r, draw_r = row0 + row, dh + SIZE * row * wide, draw + SIZE * row * 4 * wide
                if t >= lengths[b]:
                    continue
                if t == lengths[b] - 1:
                    load(dh_r, PANEL, 0, dafter.h_BHV + SIZE * (b * H + head) * V, V)
                place, step = ((b * T + t) * H + head) * V, (head * B + b) * T + t
                for v in range(V):
                    put(dh_r, v, at(dh_r, v) + at(dh_BTHV, place + v))
                for u in range(units):
                    draw_u, saved = draw_r + SIZE * u * DRAW, saved_E + SIZE * (step * units + u) * size
                    carry_u = carry + SIZE * (row * units + u) * CARRY
                    any_backward(draw_u, carry_u, dh_r + SIZE * u * PANEL, saved, variant)
                    prefetch(dh_BTHV, place - H * V + u * PANEL)
                    for g in range(7):  # of the step before
                        prefetch(saved, g * PANEL - units * size)
                    store_parts(draw_BTHGV + SIZE * (place * 4 + u * PANEL), V, draw_u, 4, width(V, u))
            if mixing:
                product(dh, wide, 4 * PANEL, draw, 4 * wide, count, panels, 4 * wide, units)
            else:
                clear(dh, room * wide)
            if reset_BT != 0:
                reset_rows(resets, lengths, row0, count, t, dh, wide, carry, 2 * wide)
        for row in range(count):
            b, length = row0 + row, lengths[row0 + row]
            state, dh_r = SIZE * (b * H + head) * V, dh + SIZE * row * wide
            if length == 0:
                load(dh_r, PANEL, 0, dafter.h_BHV + state, V)
            store(dh_r, PANEL, 0, dbefore.h_BHV + state, V)
            first_state = SIZE * (b * dbefore.apart + head * V)
            for part, out in enumerate((dbefore.c_BHV, dbefore.n_BHV)):
                store(carry + SIZE * row * 2 * wide, CARRY, part, out + first_state, V)
            clear_steps(draw_BTHGV + SIZE * (b * T * H + head) * 4 * V, 4 * H * V, 4 * V, length, T)
    hold(work)
