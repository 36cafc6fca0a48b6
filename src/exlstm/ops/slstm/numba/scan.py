"""The loops over time of the sLSTM, forward and backward: only the sequential part of the cell is in them.

An item is a head and a tile of rows of the batch, and one thread takes it through all of time: R of the head, packed,
stays in its cache. A step is one product of all rows with R, then the gates of one row after another, 16 units at a
time, in the blocks of `gates`. Where heads are few and R is large, all threads take each item through time together:
each has some of the units and their columns of R, and reads the others' results after each step.

B batch  T time  H heads  K, V head width  G gates: i, f, z, o  Q state parts: h, c, n, m
"""

from typing import Any, NamedTuple

import numpy as np
from numpy import float32

from exlstm.ops.slstm.numba.gates import BLOCK, CARRY, DRAW
from exlstm.ops.slstm.numba.inputs import COLUMNS, Inputs, Steps, project
from exlstm.ops.slstm.numba.recurrent import Groups, Recurrent, pack, pack_transposed, read_product
from exlstm.ops.slstm.numba.variants import any_backward, any_step, saved_size_in_kernels
from exlstm.runtime.cpu.barrier import Barrier, wait_for_all
from exlstm.runtime.cpu.blocks import add_parts, load, reset_rows, store, store_parts, width
from exlstm.runtime.cpu.jit import helper
from exlstm.runtime.cpu.kernel import F32, I64, Bools, F32Rows, kernel
from exlstm.runtime.cpu.memory import SIZE, address_of, at, clear, copy, hold, prefetch, put, tensor_at
from exlstm.runtime.cpu.tile import PANEL, product, rows_by_four

Array = Any  # a NumPy array inside Numba


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
    """Addresses of the state before the first step or after the last. apart: from a row of c, n and m to the next.

    parts: 3, or 1 of a cell that has nothing but c.
    """

    h_BHV: F32
    c_BHV: F32Rows
    n_BHV: F32Rows
    m_BHV: F32Rows
    apart: int
    parts: int


class StateGradients(NamedTuple):
    """Of the parts of the state that have gradients. apart: as in `State`. parts: 2, or 1."""

    h_BHV: F32
    c_BHV: F32Rows
    n_BHV: F32Rows
    apart: int
    parts: int


class Call(NamedTuple):
    """Options of a scan: resets, the number of steps of every row, and the cell's variant."""

    reset_BT: Bools
    lengths_B: I64
    variant: int


class Kept(NamedTuple):
    """Residuals of a scan for its backward: h before every step, and those of the gates; None without a backward."""

    past_HBTV: F32
    saved_E: F32


NOT_KEPT = Kept(None, None)


class Share(NamedTuple):
    """What a thread computes: items, and of each so many `units`, from number `unit` on."""

    first: int
    last: int
    unit: int
    units: int


@helper()
def share_of(barrier: Barrier, first: int, last: int, items: int, V: int) -> tuple[Share, Groups]:
    """The share of a thread that has items of its own, or of thread `first` of `last` that share all; its groups."""
    units = -(-V // PANEL)
    if barrier.arrived == 0:
        return Share(first, last, 0, V), Groups(0, units, units)
    own = Groups(units * first // last, units * (first + 1) // last, units)
    return Share(0, items, own.begin * PANEL, min(V, own.end * PANEL) - own.begin * PANEL), own


@helper()
def step_units(
    block: int, h: int, x: int, panels: bool, keeps: bool, saved: int, mixing: bool, H: int, V: int, own: Groups,
    variant: int,
) -> None:  # fmt: skip
    """One step of some units of a row.

    x: pre-activations of this step, gate by gate, or those of these units in panels of 64. keeps: `saved` has a block
    for every 16 units.
    """
    saved_step = saved_size_in_kernels(variant) if keeps else 0
    for u in range(own.begin, own.end):
        block_u = block + SIZE * (u - own.begin) * BLOCK
        if not mixing:
            clear(block_u, 4 * PANEL)
        if panels:
            add_parts(block_u, 4, x + SIZE * (u - own.begin) * COLUMNS, PANEL, PANEL)
        else:
            x_u = x + SIZE * u * PANEL
            add_parts(block_u, 4, x_u, V, width(V, u))
            for g in range(4):  # of the next step
                prefetch(x_u, (4 * H + g) * V)
        any_step(block_u, h + SIZE * u * PANEL, saved + SIZE * u * saved_step, variant)


@helper()
def load_state(block: int, h: int, before: State, b: int, head: int, H: int, V: int, share: Share) -> None:
    """Fills h of a row and the blocks of some of its units from a state."""
    load(h, PANEL, 0, before.h_BHV + SIZE * (b * H + head) * V, V)
    for n, part in enumerate((before.c_BHV, before.n_BHV, before.m_BHV)):
        if n < before.parts:
            load(block, BLOCK, 4 + n, part + SIZE * (b * before.apart + head * V + share.unit), share.units)


@helper()
def store_state(block: int, h: int, after: State, b: int, head: int, H: int, V: int, share: Share) -> None:
    """The inverse of `load_state`, for some units."""
    store(h + SIZE * share.unit, PANEL, 0, after.h_BHV + SIZE * ((b * H + head) * V + share.unit), share.units)
    for n, part in enumerate((after.c_BHV, after.n_BHV, after.m_BHV)):
        if n < after.parts:
            store(block, BLOCK, 4 + n, part + SIZE * (b * after.apart + head * V + share.unit), share.units)


@helper()
def clear_steps(x: int, apart: int, count: int, first: int, end: int) -> None:
    """Clears `count` numbers of each step from `first` to the one before `end`. apart: numbers from step to step."""
    for t in range(first, end):
        clear(x + SIZE * t * apart, count)


@helper()
def copy_others(out: int, x: int, V: int, share: Share) -> None:
    """Copies the numbers of the units of others."""
    copy(out, x, share.unit)
    end = share.unit + share.units
    copy(out + SIZE * end, x + SIZE * end, V - end)


class Room(NamedTuple):
    """Addresses of what a thread works in, and numbers from row to row.

    block [rows, U of its own, BLOCK]; h [rows, all U, 16]; spare: residuals that are not kept; raw [G, V]; projected
    inputs of some steps; panels of R.
    """

    block: int
    tall: int
    h: int
    wide: int
    spare: int
    raw: int
    projected: int
    panels: int


@helper()
def room_at(address: int, sizes: Sizes, inputs: Inputs, own: Groups, residuals: int) -> Room:
    """The room of a forward scan at an address, which may be 0: `panels` is then the number of bytes before them."""
    tall, wide, rows = (own.end - own.begin) * BLOCK, own.all * PANEL, rows_by_four(sizes.rows)
    h = address + SIZE * rows * tall
    spare = h + SIZE * rows * wide
    raw = spare + SIZE * residuals
    projected = raw + SIZE * 4 * sizes.V
    panels = projected + SIZE * sizes.rows * inputs.steps * (own.end - own.begin) * COLUMNS
    return Room(address, tall, h, wide, spare, raw, projected, panels)


@helper()
def begin_item(
    room: Room, sizes: Sizes, share: Share, before: State, lengths: Array, head: int, row0: int, count: int
) -> int:
    """Reads the states of an item's rows; returns the steps of its longest."""
    steps = 0
    clear(room.block, rows_by_four(sizes.rows) * (room.tall + room.wide))
    for row in range(count):
        block, h = room.block + SIZE * row * room.tall, room.h + SIZE * row * room.wide
        load_state(block, h, before, row0 + row, head, sizes.H, sizes.V, share)
        steps = max(steps, lengths[row0 + row])
    return steps


@helper()
def end_item(room: Room, sizes: Sizes, share: Share, after: State, lengths: Array, head: int, row0: int, count: int,
             h_BTHV: int, places: Steps, kept: Kept) -> None:  # fmt: skip
    """Writes the states of an item's rows, and zeros for the steps behind their ends."""
    B, T, H, V = sizes.B, sizes.T, sizes.H, sizes.V
    for row in range(count):
        b, length = row0 + row, lengths[row0 + row]
        block, h = room.block + SIZE * row * room.tall, room.h + SIZE * row * room.wide
        store_state(block, h, after, b, head, H, V, share)
        here = h_BTHV + SIZE * (b * places.row + head * V + share.unit)
        clear_steps(here, places.step, share.units, length, T)
        if kept.saved_E != 0:
            here = kept.past_HBTV + SIZE * ((head * B + b) * T * V + share.unit)
            clear_steps(here, V, share.units, length, T)


@kernel(G=4)
def forward_scan(first: int, last: int, sizes: Sizes, barrier: Barrier, packed: bool, x_BTHGV: F32, inputs: Inputs,
                 r: Recurrent, call: Call, before: State, h_BTHV: F32Rows, places: Steps, after: State, kept: Kept,
                 bf16: bool) -> None:  # fmt: skip
    """Items of h, at these places, and the state after the last step, from x or from what it projects. bf16: of R.

    For the backward, unless saved_E is 0: past_HBTV is filled with h before every step, and saved_E with blocks
    [H, B, T, V].
    """
    rows, mixing, B, T, H, _, V, _ = sizes
    tiles, threads, waits, size = -(-B // rows), last, 0, saved_size_in_kernels(call.variant)
    share, own = share_of(barrier, first, last, H * tiles, V)
    groups, keeps, unit = own.end - own.begin, kept.saved_E != 0, SIZE * share.unit
    lengths, resets = tensor_at(call.lengths_B, B, np.int64), tensor_at(call.reset_BT, (B, T), np.bool_)
    panels = 4 * V * groups * PANEL if mixing and packed else 0
    work = np.empty(room_at(0, sizes, inputs, own, size).panels // SIZE + panels, float32)
    room = room_at(address_of(work), sizes, inputs, own, size)
    for item in range(share.first, share.last):
        head, row0 = item // tiles, item % tiles * rows
        count = min(rows, B - row0)
        if mixing and packed:
            pack(r, head, bf16, V, own, room.panels)
        for t in range(begin_item(room, sizes, share, before, lengths, head, row0, count)):
            if inputs.steps > 0 and t % inputs.steps == 0:
                project(room.projected, inputs, head, own, lengths, row0, count, t, T)
            if call.reset_BT != 0:
                reset_rows(resets, lengths, row0, count, t, room.block, room.tall, room.h, room.wide)
            if mixing and packed:
                product(room.block, room.tall, BLOCK, room.h, room.wide, count, room.panels, V, 4 * groups)
            for row in range(count):
                b, block, h = row0 + row, room.block + SIZE * row * room.tall, room.h + SIZE * row * room.wide
                if t >= lengths[b]:
                    continue
                step, x, saved = (head * B + b) * T + t, x_BTHGV + SIZE * ((b * T + t) * H + head) * 4 * V, room.spare
                if mixing and not packed:
                    r_KJ = r.r_HKGV + (2 if bf16 else SIZE) * head * r.head
                    read_product(block, own.all, h, r_KJ, bf16, V, room.raw)
                if keeps:
                    copy(kept.past_HBTV + SIZE * step * V + unit, h + unit, share.units)
                    saved = kept.saved_E + SIZE * step * own.all * size
                if inputs.steps > 0:
                    x = room.projected + SIZE * (row * inputs.steps + t % inputs.steps) * groups * COLUMNS
                step_units(block, h, x, inputs.steps > 0, keeps, saved, mixing, H, V, own, call.variant)
                copy(h_BTHV + SIZE * (b * places.row + t * places.step + head * V) + unit, h + unit, share.units)
            if barrier.arrived != 0:
                waits += 1
                wait_for_all(barrier, waits * threads)
                for row in range(count):
                    if t < lengths[row0 + row]:
                        place = (row0 + row) * places.row + t * places.step + head * V
                        copy_others(room.h + SIZE * row * room.wide, h_BTHV + SIZE * place, V, share)
        end_item(room, sizes, share, after, lengths, head, row0, count, h_BTHV, places, kept)
    hold(work)


@helper()
def read_others(
    draw: int, draw_BTHGV: int, sizes: Sizes, lengths: Array, head: int, row0: int, t: int, own: Groups
) -> None:
    """Reads the gradients of the gates of others' units at a step of all rows of an item."""
    V = sizes.V
    for row in range(min(sizes.rows, sizes.B - row0)):
        place = (((row0 + row) * sizes.T + t) * sizes.H + head) * 4 * V
        for u in range(own.all if t < lengths[row0 + row] else 0):
            if u < own.begin or u >= own.end:
                here = draw + SIZE * (row * own.all + u) * DRAW
                for g in range(4):
                    copy(here + SIZE * g * PANEL, draw_BTHGV + SIZE * (place + g * V + u * PANEL), width(V, u))


@helper()
def add_to_units(dh: int, dy: int, share: Share) -> None:
    """Adds the gradients of a step's outputs."""
    for v in range(share.unit, share.unit + share.units):
        put(dh, v, at(dh, v) + at(dy, v))


@helper()
def load_gradients(carry: int, given: StateGradients, b: int, head: int, V: int, share: Share) -> None:
    """Reads the gradients of c and n of some units of a row."""
    for part, x in enumerate((given.c_BHV, given.n_BHV)):
        if part < given.parts:
            load(carry, CARRY, part, x + SIZE * (b * given.apart + head * V + share.unit), share.units)


@helper()
def store_gradients(dh: int, carry: int, out: StateGradients, b: int, head: int, sizes: Sizes, share: Share) -> None:
    """Writes the gradients of h, c and n of some units of a row."""
    V = sizes.V
    store(dh, PANEL, 0, out.h_BHV + SIZE * ((b * sizes.H + head) * V + share.unit), share.units)
    for part, x in enumerate((out.c_BHV, out.n_BHV)):
        if part < out.parts:
            store(carry, CARRY, part, x + SIZE * (b * out.apart + head * V + share.unit), share.units)


@kernel(G=4)
def backward_scan(first: int, last: int, sizes: Sizes, barrier: Barrier, dh_BTHV: F32Rows, places: Steps, r: Recurrent,
                  call: Call, dafter: StateGradients, draw_BTHGV: F32, dbefore: StateGradients, saved_E: F32
                  ) -> None:  # fmt: skip
    """Items as in `forward_scan`. Fills the gradients of x and of the first h, c, n from those of h and of the last."""
    rows, mixing, B, T, H, _, V, _ = sizes
    tiles, threads, waits, size = -(-B // rows), last, 0, saved_size_in_kernels(call.variant)
    share, own = share_of(barrier, first, last, H * tiles, V)
    groups, unit, wide, room = own.end - own.begin, SIZE * share.unit, own.all * PANEL, rows_by_four(rows)
    lengths, resets = tensor_at(call.lengths_B, B, np.int64), tensor_at(call.reset_BT, (B, T), np.bool_)
    work = np.empty(room * (5 * wide + groups * CARRY) + (4 * wide * groups * PANEL if mixing else 0), float32)
    draw = address_of(work)
    carry = draw + SIZE * room * 4 * wide
    dh = carry + SIZE * room * groups * CARRY
    panels = dh + SIZE * room * wide
    for item in range(share.first, share.last):
        head, row0, steps = item // tiles, item % tiles * rows, 0
        count = min(rows, B - row0)
        clear(draw, room * (5 * wide + groups * CARRY))
        if mixing:
            pack_transposed(r, head, V, own, panels)
        for row in range(count):
            load_gradients(carry + SIZE * row * groups * CARRY, dafter, row0 + row, head, V, share)
            steps = max(steps, lengths[row0 + row])
        for t in range(steps - 1, -1, -1):
            for row in range(count):
                b, dh_r, draw_r = row0 + row, dh + SIZE * row * wide, draw + SIZE * row * 4 * wide
                if t >= lengths[b]:
                    continue
                if t == lengths[b] - 1:
                    load(dh_r + unit, PANEL, 0, dafter.h_BHV + SIZE * (b * H + head) * V + unit, share.units)
                place, step = ((b * T + t) * H + head) * 4 * V, (head * B + b) * T + t
                dy = dh_BTHV + SIZE * (b * places.row + t * places.step + head * V)
                add_to_units(dh_r, dy, share)
                for u in range(own.begin, own.end):
                    saved = saved_E + SIZE * (step * own.all + u) * size
                    carry_u = carry + SIZE * (row * groups + u - own.begin) * CARRY
                    any_backward(draw_r + SIZE * u * DRAW, carry_u, dh_r + SIZE * u * PANEL, saved, call.variant)
                    prefetch(dy, u * PANEL - places.step)
                    for g in range(7):  # of the step before
                        prefetch(saved, g * PANEL - own.all * size)
                    store_parts(draw_BTHGV + SIZE * (place + u * PANEL), V, draw_r + SIZE * u * DRAW, 4, width(V, u))
            if barrier.arrived != 0:
                waits += 1
                wait_for_all(barrier, waits * threads)
                read_others(draw, draw_BTHGV, sizes, lengths, head, row0, t, own)
            if mixing:
                product(dh + unit, wide, 4 * PANEL, draw, 4 * wide, count, panels, 4 * wide, groups)
            else:
                clear(dh, room * wide)
            if call.reset_BT != 0:
                reset_rows(resets, lengths, row0, count, t, dh, wide, carry, groups * CARRY)
        for row in range(count):
            b, length, dh_r = row0 + row, lengths[row0 + row], dh + SIZE * row * wide + unit
            if length == 0:
                load(dh_r, PANEL, 0, dafter.h_BHV + SIZE * (b * H + head) * V + unit, share.units)
            store_gradients(dh_r, carry + SIZE * row * groups * CARRY, dbefore, b, head, sizes, share)
            for g in range(4):
                here = draw_BTHGV + SIZE * ((b * T * H + head) * 4 + g) * V + unit
                clear_steps(here, 4 * H * V, share.units, length, T)
    hold(work)
