"""The loops over time of the associative LSTM, forward and backward.

An item is some rows of the batch, and one thread takes it through all of time. A step is one product of all rows with
R, packed, and the cell of one row after another. The keys of a copy are gathered into its order first.

B batch  T time  N, M units  C copies  G planes of x  P planes, real and imaginary  E numbers saved
"""

from typing import NamedTuple

import numpy as np
from numpy import float32

from exlstm.ops.assoc_lstm.numba.cell import (
    RAW,
    SAVED,
    A,
    copy_backward,
    prepare,
    prepare_backward,
    read,
    read_backward,
    update_copy,
)
from exlstm.runtime.cpu.blocks import add_parts, reset_rows, store_parts, width
from exlstm.runtime.cpu.jit import helper
from exlstm.runtime.cpu.kernel import F32, I64, Bools, kernel
from exlstm.runtime.cpu.loops import add_at
from exlstm.runtime.cpu.memory import SIZE, address_of, at, clear, copy, hold, long_at, put, tensor_at
from exlstm.runtime.cpu.tile import PANEL, pack_columns, pack_rows, product, rows_by_four

LINE, KEYS = 4 * PANEL, 4 * PANEL  # numbers from a block of `product` to the next; of the keys of 16 units


class Sizes(NamedTuple):
    """Sizes of a scan. rows: of the batch, in an item. mixing: whether R h is added here."""

    rows: int
    mixing: bool
    B: int
    T: int
    C: int
    N: int
    M: int
    E: int


class Inputs(NamedTuple):
    """Addresses of what both scans read."""

    r_GNPM: F32
    order_CN: I64
    reset_BT: Bools
    lengths_B: I64


class State(NamedTuple):
    """Addresses of a state, or of its gradients."""

    h_BPN: F32
    c_BCPN: F32


class Saved(NamedTuple):
    """Addresses of what the backward reads, all 0 without one: h and c before every step, and the residuals."""

    past_BTPN: F32
    past_BTCPN: F32
    saved_E: F32


@helper()
def load_planes(out: int, wide: int, x: int, planes: int, N: int) -> None:
    """Planes of N numbers to planes of `wide`."""
    for plane in range(planes):
        copy(out + SIZE * plane * wide, x + SIZE * plane * N, N)


@helper()
def store_planes(x: int, out: int, wide: int, planes: int, N: int) -> None:
    """The inverse of `load_planes`."""
    for plane in range(planes):
        copy(x + SIZE * plane * N, out + SIZE * plane * wide, N)


@helper()
def gather(out: int, keys: int, wide: int, order: int, N: int) -> None:
    """The planes of both keys in the order of a copy."""
    for n in range(N):
        place = long_at(order + 8 * n)
        for plane in range(4):
            put(out, plane * wide + n, at(keys, plane * wide + place))


@helper()
def gather_blocks(out: int, keys: int, wide: int, order: int, N: int) -> None:
    """As `gather`, to blocks of four parts."""
    for n in range(N):
        place, block = long_at(order + 8 * n), n // PANEL * KEYS + n % PANEL
        for plane in range(4):
            put(out, block + plane * PANEL, at(keys, plane * wide + place))


@helper()
def add_from_blocks(keys: int, blocks: int, wide: int, order: int, N: int) -> None:
    """The transpose of `gather_blocks`."""
    for n in range(N):
        place, block = long_at(order + 8 * n), n // PANEL * KEYS + n % PANEL
        for plane in range(4):
            here = plane * wide + place
            put(keys, here, at(keys, here) + at(blocks, block + plane * PANEL))


@helper()
def step(raw: int, h: int, c: int, saved: int, work: int, order: int, C: int, N: int) -> None:
    """One step of a row, from sums in raw. work: [11, wide]: keys, keys in order, sums, and one over C."""
    units = -(-N // PANEL)
    wide = units * PANEL
    keys, ordered, sums = work, work + 4 * SIZE * wide, work + 8 * SIZE * wide
    share = sums + 2 * SIZE * wide
    plane = SIZE * wide
    for u in range(units):
        here = keys + SIZE * u * PANEL
        saved_u = saved + SIZE * u * SAVED
        prepare(raw + SIZE * u * RAW, saved_u, here, here + plane, here + 2 * plane, here + 3 * plane)
    clear(sums, 2 * wide)
    for s in range(C):
        gather(ordered, keys, wide, order + 8 * s * N, N)
        c_s = c + 2 * plane * s
        for u in range(units):
            key, c_u, sum_u = ordered + SIZE * u * PANEL, c_s + SIZE * u * PANEL, sums + SIZE * u * PANEL
            update_copy(
                saved + SIZE * u * SAVED,
                key,
                key + plane,
                key + 2 * plane,
                key + 3 * plane,
                c_u,
                c_u + plane,
                sum_u,
                sum_u + plane,
            )
    for u in range(units):
        sum_u, h_u = sums + SIZE * u * PANEL, h + SIZE * u * PANEL
        read(saved + SIZE * u * SAVED, share, sum_u, sum_u + plane, h_u, h_u + plane)


@helper()
def fill_share(share: int, C: int) -> None:
    """One over the number of copies, 16 times."""
    for n in range(PANEL):
        put(share, n, float32(1.0) / float32(C))


@kernel(G=9, P=2)
def forward_scan(
    first: int, last: int, sizes: Sizes, x: Inputs, x_BTGN: F32, before: State, h_BTPN: F32, after: State, saved: Saved
) -> None:
    """Items of h, and the state after the last step."""
    rows, mixing, B, T, C, N, _, _ = sizes
    units, room, saving = -(-N // PANEL), rows_by_four(rows), saved.saved_E != 0
    wide = units * PANEL
    tall = 2 * C * wide  # of c
    lengths, resets = tensor_at(x.lengths_B, B, np.int64), tensor_at(x.reset_BT, (B, T), np.bool_)
    numbers = room * (11 * wide + tall)
    memory = np.empty(numbers + units * SAVED + 12 * wide + (18 * wide * wide if mixing else 0), float32)
    h = address_of(memory)
    raw, c = h + SIZE * room * 2 * wide, h + SIZE * room * 11 * wide
    spare = h + SIZE * numbers
    work = spare + SIZE * units * SAVED
    panels = work + SIZE * 12 * wide
    clear(work, 12 * wide)
    fill_share(work + 10 * SIZE * wide, C)
    if mixing:
        clear(panels, 18 * wide * wide)
        for plane in range(2):
            pack_columns(x.r_GNPM + SIZE * plane * N, 9, 2 * N * N, N, 2 * N, N, panels, 2 * wide, plane * wide)
    for item in range(first, last):
        row0 = item * rows
        count, steps = rows if B - row0 > rows else B - row0, 0
        clear(h, numbers)
        for row in range(count):
            load_planes(h + SIZE * row * 2 * wide, wide, before.h_BPN + SIZE * (row0 + row) * 2 * N, 2, N)
            load_planes(c + SIZE * row * tall, wide, before.c_BCPN + SIZE * (row0 + row) * 2 * C * N, 2 * C, N)
            steps = max(steps, lengths[row0 + row])
        for t in range(steps):
            if x.reset_BT != 0:
                reset_rows(resets, lengths, row0, count, t, h, 2 * wide, c, tall)
            if mixing:
                product(raw, 9 * wide, LINE, h, 2 * wide, count, panels, 2 * wide, 9 * units)
            for row in range(count):
                b, raw_r, h_r = row0 + row, raw + SIZE * row * 9 * wide, h + SIZE * row * 2 * wide
                if t < lengths[b]:
                    c_r, place, to = c + SIZE * row * tall, b * T + t, spare
                    if not mixing:
                        clear(raw_r, 9 * wide)
                    if saving:
                        to = saved.saved_E + SIZE * place * units * SAVED
                        store_planes(saved.past_BTPN + SIZE * place * 2 * N, h_r, wide, 2, N)
                        store_planes(saved.past_BTCPN + SIZE * place * 2 * C * N, c_r, wide, 2 * C, N)
                    for u in range(units):
                        x_u = x_BTGN + SIZE * (place * 9 * N + u * PANEL)
                        add_parts(raw_r + SIZE * u * RAW, 9, x_u, N, width(N, u))
                    step(raw_r, h_r, c_r, to, work, x.order_CN, C, N)
                    store_planes(h_BTPN + SIZE * place * 2 * N, h_r, wide, 2, N)
        for row in range(count):
            b, length = row0 + row, lengths[row0 + row]
            store_planes(after.h_BPN + SIZE * b * 2 * N, h + SIZE * row * 2 * wide, wide, 2, N)
            store_planes(after.c_BCPN + SIZE * b * 2 * C * N, c + SIZE * row * tall, wide, 2 * C, N)
            clear(h_BTPN + SIZE * (b * T + length) * 2 * N, (T - length) * 2 * N)
            if saving:
                clear(saved.past_BTPN + SIZE * (b * T + length) * 2 * N, (T - length) * 2 * N)
    hold(memory)


@helper()
def step_backward(draw: int, dh: int, dc: int, saved: int, c: int, work: int, order: int, C: int, N: int) -> None:
    """The backward of one step of a row. c: before it, [C, 2, N].

    work: [17, wide]: keys, their gradients, keys in order as blocks, gradients of the sums, c of a copy, one over C.
    """
    units = -(-N // PANEL)
    wide = units * PANEL
    plane = SIZE * wide
    keys, dkeys, blocks, dsums = work, work + 4 * plane, work + 8 * plane, work + 12 * plane
    c_s, share = work + 14 * plane, work + 16 * plane
    clear(draw, 9 * wide)
    clear(dkeys, 4 * wide)
    for u in range(units):
        saved_u, dsum_u, dh_u = saved + SIZE * u * SAVED, dsums + SIZE * u * PANEL, dh + SIZE * u * PANEL
        read_backward(draw + SIZE * u * RAW, saved_u, share, dsum_u, dsum_u + plane, dh_u, dh_u + plane)
        for part in range(4):
            copy(keys + plane * part + SIZE * u * PANEL, saved_u + SIZE * (A + part) * PANEL, PANEL)
    for s in range(C):
        gather_blocks(blocks, keys, wide, order + 8 * s * N, N)
        load_planes(c_s, wide, c + SIZE * s * 2 * N, 2, N)
        for u in range(units):
            c_u, dc_u, dsum_u = c_s + SIZE * u * PANEL, dc + 2 * plane * s + SIZE * u * PANEL, dsums + SIZE * u * PANEL
            copy_backward(
                saved + SIZE * u * SAVED,
                draw + SIZE * u * RAW,
                blocks + SIZE * u * KEYS,
                c_u,
                c_u + plane,
                dc_u,
                dc_u + plane,
                dsum_u,
                dsum_u + plane,
            )
        add_from_blocks(dkeys, blocks, wide, order + 8 * s * N, N)
    for u in range(units):
        dk = dkeys + SIZE * u * PANEL
        prepare_backward(
            draw + SIZE * u * RAW, saved + SIZE * u * SAVED, dk, dk + plane, dk + 2 * plane, dk + 3 * plane
        )


@kernel(G=9, P=2)
def backward_scan(
    first: int,
    last: int,
    sizes: Sizes,
    x: Inputs,
    dh_BTPN: F32,
    dafter: State,
    dx_BTGN: F32,
    dbefore: State,
    saved: Saved,
) -> None:
    """Items as in `forward_scan`: gradients of x and of the state before the first step."""
    rows, _, B, T, C, N, _, _ = sizes
    units, room = -(-N // PANEL), rows_by_four(rows)
    wide = units * PANEL
    tall = 2 * C * wide  # of c
    lengths, resets = tensor_at(x.lengths_B, B, np.int64), tensor_at(x.reset_BT, (B, T), np.bool_)
    numbers = room * (11 * wide + tall)
    memory = np.empty(numbers + 18 * wide + 18 * wide * wide, float32)
    dh = address_of(memory)
    draw, dc = dh + SIZE * room * 2 * wide, dh + SIZE * room * 11 * wide
    work = dh + SIZE * numbers
    panels = work + SIZE * 18 * wide
    clear(work, 18 * wide + 18 * wide * wide)
    fill_share(work + 16 * SIZE * wide, C)
    for plane in range(2):
        pack_rows(x.r_GNPM + SIZE * plane * N, 9, 2 * N * N, N, 2 * N, N, panels, 9 * wide, plane * wide)
    for item in range(first, last):
        row0 = item * rows
        count, steps = rows if B - row0 > rows else B - row0, 0
        clear(dh, numbers)
        for row in range(count):
            load_planes(dc + SIZE * row * tall, wide, dafter.c_BCPN + SIZE * (row0 + row) * 2 * C * N, 2 * C, N)
            steps = max(steps, lengths[row0 + row])
        for t in range(steps - 1, -1, -1):
            for row in range(count):
                b, draw_r, dh_r = row0 + row, draw + SIZE * row * 9 * wide, dh + SIZE * row * 2 * wide
                if t < lengths[b]:
                    place = b * T + t
                    if t == lengths[b] - 1:
                        load_planes(dh_r, wide, dafter.h_BPN + SIZE * b * 2 * N, 2, N)
                    for plane in range(2):
                        add_at(dh_r + SIZE * plane * wide, dh_BTPN + SIZE * (place * 2 + plane) * N, N)
                    here, c = saved.saved_E + SIZE * place * units * SAVED, saved.past_BTCPN + SIZE * place * 2 * C * N
                    step_backward(draw_r, dh_r, dc + SIZE * row * tall, here, c, work, x.order_CN, C, N)
                    for u in range(units):
                        to = dx_BTGN + SIZE * (place * 9 * N + u * PANEL)
                        store_parts(to, N, draw_r + SIZE * u * RAW, 9, width(N, u))
            product(dh, 2 * wide, LINE, draw, 9 * wide, count, panels, 9 * wide, 2 * units)
            if x.reset_BT != 0:
                reset_rows(resets, lengths, row0, count, t, dh, 2 * wide, dc, tall)
        for row in range(count):
            b, length, dh_r = row0 + row, lengths[row0 + row], dh + SIZE * row * 2 * wide
            if length == 0:
                load_planes(dh_r, wide, dafter.h_BPN + SIZE * b * 2 * N, 2, N)
            store_planes(dbefore.h_BPN + SIZE * b * 2 * N, dh_r, wide, 2, N)
            store_planes(dbefore.c_BCPN + SIZE * b * 2 * C * N, dc + SIZE * row * tall, wide, 2 * C, N)
            clear(dx_BTGN + SIZE * (b * T + length) * 9 * N, (T - length) * 9 * N)
    hold(memory)
