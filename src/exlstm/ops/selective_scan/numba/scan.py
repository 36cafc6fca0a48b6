"""The selective scan over a whole sequence on a CPU. An item is 64 channels of one row of the batch, or the last few.

The states of an item, [Z, 64], stay in the first cache from its first step to its last. For the backward the forward
saves them every L steps. The backward takes these chunks from behind: it computes the states and decays of L steps
again, which the second cache holds, and goes back through them.

B batch  T time  E channels  Z states of a channel  Q items of a row  C channels of an item  N chunks of L steps
"""

from typing import NamedTuple

import numpy as np
from numpy import float32

from exlstm.ops.selective_scan.numba.tile import (
    LANES,
    ROW,
    TILE,
    advance,
    advance_again,
    lone_step_1,
    lone_step_16,
    retreat,
    softplus,
    softplus_backward,
)
from exlstm.runtime.cpu.jit import helper
from exlstm.runtime.cpu.kernel import F32, I64, Bools, F32Rows, kernel
from exlstm.runtime.cpu.loops import add_at
from exlstm.runtime.cpu.memory import LINE_NUMBERS, SIZE, at, byte_at, clear, copy, hold, line_of, long_at, put


class Inputs(NamedTuple):
    """Inputs of every kernel. *_row, *_step: strides in bytes."""

    B: int
    T: int
    E: int
    Z: int
    Q: int
    N: int
    L: int
    x_BTE: F32Rows
    x_row: int
    x_step: int
    dt_BTE: F32Rows
    dt_row: int
    dt_step: int
    b_BTZ: F32Rows
    b_row: int
    b_step: int
    c_BTZ: F32Rows
    c_row: int
    c_step: int
    a_EZ: F32
    skip_E: F32
    h_BEZ: F32
    reset_BT: Bools
    lengths_B: I64
    softplus: bool


class Gradients(NamedTuple):
    """Gradients that the backward reads and fills; those of a and skip of every row, of b and c of every item."""

    dy_BTE: F32
    dafter_BEZ: F32
    dx_BTE: F32
    ddt_BTE: F32
    da_BEZ: F32
    db_BQTZ: F32
    dc_BQTZ: F32
    dskip_BE: F32
    dh_BEZ: F32


@helper()
def place(x: Inputs, item: int) -> tuple[int, int, int, int]:
    """Of an item: its row, its first channel, how many channels it has, and the steps of the row."""
    row, channel = item // x.Q, item % x.Q * TILE
    length = long_at(x.lengths_B + 8 * row) if x.lengths_B != 0 else x.T
    return row, channel, min(TILE, x.E - channel), length


@helper()
def is_reset(x: Inputs, row: int, t: int) -> bool:
    """Whether the row is reset before step t."""
    return bool(x.reset_BT != 0 and byte_at(x.reset_BT + row * x.T + t) != 0)


@helper()
def read_tile(tile: int, x_CZ: int, count: int, Z: int) -> None:
    """The tile of `count` channels, zeros beyond."""
    clear(tile, Z * TILE)
    for e in range(count):
        for z in range(Z):
            put(tile, z * TILE + e, at(x_CZ, e * Z + z))


@helper()
def write_tile(x_CZ: int, tile: int, count: int, Z: int) -> None:
    """The channels of a tile."""
    for e in range(count):
        for z in range(Z):
            put(x_CZ, e * Z + z, at(tile, z * TILE + e))


@helper()
def whole(x_C: int, count: int, room: int) -> int:
    """The address of 64 numbers: in place, or, of fewer channels, in `room`, which has zeros beyond them."""
    if count == TILE:
        return x_C
    copy(room, x_C, count)
    return room


@helper()
def step_sizes(x: Inputs, dt: int, room: int) -> int:
    """The address of the step sizes of 64 channels, in `room` where the softplus makes them."""
    if not x.softplus:
        return dt
    softplus(dt, room)
    return room


@kernel(C=TILE)
def forward_items(first: int, last: int, x: Inputs, y_BTE: F32, after_BEZ: F32, borders_BQNZC: F32) -> None:
    """Items of y, of the states after the last step and, if there is to be a backward, of those before every chunk."""
    Z, size = x.Z, x.Z * TILE
    work = np.zeros(2 * size + 5 * TILE + LINE_NUMBERS, float32)
    h = line_of(work)
    a, skip = h + size * SIZE, h + 2 * size * SIZE
    x_room, raw_room, dt_room, y_room = skip + ROW, skip + 2 * ROW, skip + 3 * ROW, skip + 4 * ROW
    for item in range(first, last):
        row, channel, count, length = place(x, item)
        states, there = (row * x.E + channel) * Z * SIZE, (row * x.T * x.E + channel) * SIZE
        read_tile(h, x.h_BEZ + states, count, Z)
        read_tile(a, x.a_EZ + channel * Z * SIZE, count, Z)
        clear(skip, 5 * TILE)
        copy(skip, x.skip_E + channel * SIZE, count)
        for t in range(length):
            if borders_BQNZC != 0 and t % x.L == 0:
                copy(borders_BQNZC + (item * x.N + t // x.L) * size * SIZE, h, size)
            if is_reset(x, row, t):  # what is forgotten may be infinite, so it is not multiplied by zero
                clear(h, size)
            y = y_BTE + there + t * x.E * SIZE
            x_t = whole(x.x_BTE + row * x.x_row + t * x.x_step + channel * SIZE, count, x_room)
            raw_t = whole(x.dt_BTE + row * x.dt_row + t * x.dt_step + channel * SIZE, count, raw_room)
            dt_t = step_sizes(x, raw_t, dt_room)
            b_t, c_t = x.b_BTZ + row * x.b_row + t * x.b_step, x.c_BTZ + row * x.c_row + t * x.c_step
            y_t = y if count == TILE else y_room
            advance(h, a, dt_t, x_t, skip, b_t, c_t, y_t, Z)
            if count < TILE:
                copy(y, y_room, count)
        for t in range(length, x.T):
            clear(y_BTE + there + t * x.E * SIZE, count)
        write_tile(after_BEZ + states, h, count, Z)
    hold(work)


@kernel()
def step_items(first: int, last: int, x: Inputs, y_BTE: F32, after_BEZ: F32) -> None:
    """Items of a single step, without what a backward needs."""
    Z = x.Z
    work = np.zeros(Z + TILE + LINE_NUMBERS, float32)
    dt = line_of(work)
    zeros = dt + ROW
    for item in range(first, last):
        row, channel, count, length = place(x, item)
        b, c, fresh = x.b_BTZ + row * x.b_row, x.c_BTZ + row * x.c_row, is_reset(x, row, 0)
        copy(dt, x.dt_BTE + row * x.dt_row + channel * SIZE, count)
        step_sizes(x, dt, dt)
        for e in range(channel, channel + count):
            own, y = (row * x.E + e) * Z * SIZE, y_BTE + (row * x.E + e) * SIZE
            h, a, after = x.h_BEZ + own, x.a_EZ + e * Z * SIZE, after_BEZ + own
            if length == 0:
                clear(y, 1)
                copy(after, h, Z)
                continue
            if fresh:
                h = zeros
            dt_1, x_1 = dt + (e - channel) * SIZE, x.x_BTE + row * x.x_row + e * SIZE
            if Z % LANES == 0:
                lone_step_16(h, a, dt_1, x_1, x.skip_E + e * SIZE, b, c, after, y, Z // LANES)
            else:
                lone_step_1(h, a, dt_1, x_1, x.skip_E + e * SIZE, b, c, after, y, Z)
    hold(work)


class Work(NamedTuple):
    """Addresses of an item's room in the backward: tiles, then rows of 64 numbers, then the slots of a chunk's steps.

    chunk_da is the share of a chunk in da. A slot is two tiles: the states before the step, and its decays.
    """

    a: int
    da: int
    dh: int
    chunk_da: int
    skip: int
    dskip: int
    rows: int  # six: x, dt before and after the softplus, dy, dx, ddt
    slots: int


@helper()
def work_at(base: int, size: int) -> Work:
    """The addresses in room that begins at `base`. size: numbers of a tile."""
    tile, rows = size * SIZE, base + 4 * size * SIZE
    return Work(base, base + tile, base + 2 * tile, base + 3 * tile, rows, rows + ROW, rows + 2 * ROW, rows + 8 * ROW)


@helper()
def chunk_forward(x: Inputs, w: Work, item: int, start: int, end: int) -> None:
    """The states before steps start to end - 1, and their decays."""
    row, channel, count, _ = place(x, item)
    tile = x.Z * ROW
    for t in range(start, end):
        slot = w.slots + 2 * (t - start) * tile
        if is_reset(x, row, t):
            clear(slot, x.Z * TILE)
        x_t = whole(x.x_BTE + row * x.x_row + t * x.x_step + channel * SIZE, count, w.rows)
        raw_t = whole(x.dt_BTE + row * x.dt_row + t * x.dt_step + channel * SIZE, count, w.rows + ROW)
        dt_t = step_sizes(x, raw_t, w.rows + 2 * ROW)
        b_t = x.b_BTZ + row * x.b_row + t * x.b_step
        advance_again(slot, slot + 2 * tile, slot + tile, w.a, dt_t, x_t, b_t, x.Z)


@helper()
def chunk_backward(x: Inputs, g: Gradients, w: Work, item: int, start: int, end: int) -> None:
    """The gradients of steps start to end - 1, from behind."""
    row, channel, count, _ = place(x, item)
    Z, tile = x.Z, x.Z * ROW
    clear(w.chunk_da, Z * TILE)
    for t in range(end - 1, start - 1, -1):
        slot, here = w.slots + 2 * (t - start) * tile, ((row * x.T + t) * x.E + channel) * SIZE
        x_t = whole(x.x_BTE + row * x.x_row + t * x.x_step + channel * SIZE, count, w.rows)
        raw_t = whole(x.dt_BTE + row * x.dt_row + t * x.dt_step + channel * SIZE, count, w.rows + ROW)
        dt_t, dy_t = step_sizes(x, raw_t, w.rows + 2 * ROW), whole(g.dy_BTE + here, count, w.rows + 3 * ROW)
        dx_t = g.dx_BTE + here if count == TILE else w.rows + 4 * ROW
        ddt_t = g.ddt_BTE + here if count == TILE else w.rows + 5 * ROW
        b_t, c_t = x.b_BTZ + row * x.b_row + t * x.b_step, x.c_BTZ + row * x.c_row + t * x.c_step
        share = (item * x.T + t) * Z * SIZE
        db_t, dc_t = g.db_BQTZ + share, g.dc_BQTZ + share
        retreat(w.dh, slot, w.a, w.skip, dt_t, x_t, dy_t, b_t, c_t, dx_t, ddt_t, db_t, dc_t, Z)
        if x.softplus:
            softplus_backward(raw_t, ddt_t)
        if count < TILE:
            copy(g.dx_BTE + here, dx_t, count)
            copy(g.ddt_BTE + here, ddt_t, count)
        if is_reset(x, row, t):
            clear(w.dh, Z * TILE)
    add_at(w.da, w.chunk_da, Z * TILE)


@kernel(C=TILE)
def backward_items(first: int, last: int, x: Inputs, borders_BQNZC: F32, g: Gradients) -> None:
    """Items of the gradients."""
    Z, size = x.Z, x.Z * TILE
    work = np.zeros((4 + 2 * x.L + 1) * size + 8 * TILE + LINE_NUMBERS, float32)
    w = work_at(line_of(work), size)
    for item in range(first, last):
        row, channel, count, length = place(x, item)
        states, there = (row * x.E + channel) * Z * SIZE, (row * x.T * x.E + channel) * SIZE
        read_tile(w.a, x.a_EZ + channel * Z * SIZE, count, Z)
        read_tile(w.dh, g.dafter_BEZ + states, count, Z)
        clear(w.da, size)
        clear(w.skip, 8 * TILE)
        copy(w.skip, x.skip_E + channel * SIZE, count)
        for n in range((length - 1) // x.L, -1, -1):
            copy(w.slots, borders_BQNZC + (item * x.N + n) * size * SIZE, size)
            end = min((n + 1) * x.L, length)
            chunk_forward(x, w, item, n * x.L, end)
            chunk_backward(x, g, w, item, n * x.L, end)
        for t in range(length, x.T):
            clear(g.dx_BTE + there + t * x.E * SIZE, count)
            clear(g.ddt_BTE + there + t * x.E * SIZE, count)
            clear(g.db_BQTZ + (item * x.T + t) * Z * SIZE, Z)
            clear(g.dc_BQTZ + (item * x.T + t) * Z * SIZE, Z)
        write_tile(g.dh_BEZ + states, w.dh, count, Z)
        write_tile(g.da_BEZ + states, w.da, count, Z)
        copy(g.dskip_BE + (row * x.E + channel) * SIZE, w.dskip, count)
    hold(work)
