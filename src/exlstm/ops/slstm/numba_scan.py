"""The loops over time of the sLSTM, forward and backward: only what is truly sequential is in them.

An item is a head and a tile of rows of the batch, and one thread takes it through all of time: R of the head, packed,
stays in its cache. A step is one product of all rows with R, then the gates of one row after another, 16 units at a
time. Numbers of one unit that meet in the gates stand in blocks of a fixed form, so that LLVM needs to know no sizes to
see that they do not overlap:

    block  7 x 16: i, f, z, o before their activations, c, n, m
    kept   7 x 16: what the backward needs of a step: c and n before it, decay, write, phi(z), sigmoid(o), d log f / df
    draw   4 x 16: the gradients of i, f, z, o before their activations
    carry  2 x 16: the gradients of c, n

B batch  T time  H heads  K, V head width  G gates: i, f, z, o  Q state parts: h, c, n, m
"""

from typing import Any

import numpy as np
from numba import njit
from numpy import float32

from exlstm.ops.numba_jit import compiled
from exlstm.ops.numba_math import FASTMATH, exp_below, log_sigmoid, sigmoid, tanh, where
from exlstm.ops.slstm.numba_tile import PANEL, add_sixteen, at, prefetch, product, put, rows_by_four

Array = Any  # a contiguous NumPy array inside Numba, float32 where nothing else is said

BLOCK, KEPT, DRAW, CARRY = 7 * PANEL, 7 * PANEL, 4 * PANEL, 2 * PANEL


@njit(inline="always", fastmath=FASTMATH)
def tile_rows(item: int, B: int, rows: int) -> tuple[int, int, int]:
    """(head, first row, number of rows) of an item; a tile has `rows` rows, the last one of a head what is left."""
    tiles = -(-B // rows)
    first = item % tiles * rows
    return item // tiles, first, min(rows, B - first)


@njit(fastmath=FASTMATH)
def pack(r_HKGV: Array, head: int, units: int) -> Array:
    """R of a head in panels, for h R: the four gates of 16 units are neighbours. Units beyond V are zeros."""
    _, V, _, _ = r_HKGV.shape
    p = np.zeros((units, 4, V, PANEL), dtype=np.float32)
    for u in range(units):
        for g in range(4):
            for k in range(V):
                for j in range(min(PANEL, V - u * PANEL)):
                    p[u, g, k, j] = r_HKGV[head, k, g, u * PANEL + j]
    return p


@njit(fastmath=FASTMATH)
def pack_transposed(r_HKGV: Array, head: int, units: int) -> Array:
    """R^T of a head in panels, its rows in the order of the blocks, for d(gates) R^T."""
    _, V, _, _ = r_HKGV.shape
    p = np.zeros((units, units, 4, PANEL, PANEL), dtype=np.float32)
    for u in range(units):
        for v in range(V):
            for g in range(4):
                for k in range(min(PANEL, V - u * PANEL)):
                    p[u, v // PANEL, g, v % PANEL, k] = r_HKGV[head, u * PANEL + k, g, v]
    return p


@njit(fastmath=FASTMATH)
def read_product(block: Array, block_at: int, units: int, h: Array, h_at: int, r_HKGV: Array, head: int) -> None:
    """h R for one row, R read where it lies: for a step or two, packing it would take longer than the step."""
    _, V, _, _ = r_HKGV.shape
    raw_J = np.zeros(4 * V, dtype=np.float32)
    r_at, J = head * V * 4 * V, 4 * V
    whole = V - V % 8
    for k in range(0, whole, 8):
        x0, x1, x2, x3 = at(h, h_at + k), at(h, h_at + k + 1), at(h, h_at + k + 2), at(h, h_at + k + 3)
        x4, x5, x6, x7 = at(h, h_at + k + 4), at(h, h_at + k + 5), at(h, h_at + k + 6), at(h, h_at + k + 7)
        a = r_at + k * J
        for j in range(J):
            left = x0 * at(r_HKGV, a + j) + x1 * at(r_HKGV, a + J + j) + x2 * at(r_HKGV, a + 2 * J + j)
            left += x3 * at(r_HKGV, a + 3 * J + j)
            right = x4 * at(r_HKGV, a + 4 * J + j) + x5 * at(r_HKGV, a + 5 * J + j) + x6 * at(r_HKGV, a + 6 * J + j)
            right += x7 * at(r_HKGV, a + 7 * J + j)
            raw_J[j] += left + right
    for k in range(whole, V):
        x0 = at(h, h_at + k)
        for j in range(J):
            raw_J[j] += x0 * at(r_HKGV, r_at + k * J + j)
    for u in range(units):
        for g in range(4):
            for j in range(min(PANEL, V - u * PANEL)):
                put(block, block_at + u * BLOCK + g * PANEL + j, raw_J[g * V + u * PANEL + j])


@njit(inline="always", fastmath=FASTMATH)
def add_input(block: Array, a: int, x: Array, x_at: int, V: int, width: int) -> None:
    """x to the sums of a block. They were summed on their own: x may be large and would round every partial sum."""
    if width == PANEL:
        for g in range(4):
            add_sixteen(block, a + g * PANEL, x, x_at + g * V)
    else:
        for g in range(4):
            for j in range(width):
                put(block, a + g * PANEL + j, at(block, a + g * PANEL + j) + at(x, x_at + g * V + j))


@njit(inline="always", fastmath=FASTMATH)
def gates(block: Array, a: int, h: Array, h_at: int, kept: Array, e: int, exp_forget: bool) -> None:
    """One step of 16 units: from i, f, z, o and c, n, m before to c, n, m and h after, and what the backward needs."""
    # two loops: what depends on the state waits for little else, and a processor's window holds more of each
    for j in range(PANEL):
        f = at(block, a + PANEL + j)
        put(kept, e + 6 * PANEL + j, where(exp_forget, float32(1.0), sigmoid(-f)))
        put(block, a + PANEL + j, where(exp_forget, f, log_sigmoid(f)))
        put(kept, e + 4 * PANEL + j, tanh(at(block, a + 2 * PANEL + j)))
        put(kept, e + 5 * PANEL + j, sigmoid(at(block, a + 3 * PANEL + j)))
    for j in range(PANEL):
        i, past = at(block, a + j), at(block, a + PANEL + j) + at(block, a + 6 * PANEL + j)
        c, n = at(block, a + 4 * PANEL + j), at(block, a + 5 * PANEL + j)
        fresh, rises = n == float32(0.0), past < i
        m = where(fresh | rises, i, past)
        # the larger of the two has weight 1, but not where it is infinite: then inf - inf shows
        one, less = (m - m) + float32(1.0), exp_below(-abs(past - i))
        decay, write = where(rises, less, one), where(fresh | rises, one, less)
        put(kept, e + j, c)
        put(kept, e + PANEL + j, n)
        put(kept, e + 2 * PANEL + j, decay)
        put(kept, e + 3 * PANEL + j, write)
        c = decay * c + write * at(kept, e + 4 * PANEL + j)
        n = decay * n + write
        put(block, a + 4 * PANEL + j, c)
        put(block, a + 5 * PANEL + j, n)
        put(block, a + 6 * PANEL + j, m)
        put(h, h_at + j, at(kept, e + 5 * PANEL + j) * c / n)


@njit(inline="always", fastmath=FASTMATH)
def gates_backward(draw: Array, w: int, carry: Array, a: int, dh: Array, dh_at: int, kept: Array, e: int) -> None:
    """The gradients of i, f, z, o of 16 units, and of c and n before the step, from those of h, c and n after it."""
    for j in range(PANEL):
        c0, n0 = at(kept, e + j), at(kept, e + PANEL + j)
        decay, write = at(kept, e + 2 * PANEL + j), at(kept, e + 3 * PANEL + j)
        cell, gate = at(kept, e + 4 * PANEL + j), at(kept, e + 5 * PANEL + j)
        c, n = decay * c0 + write * cell, decay * n0 + write
        h = at(dh, dh_at + j)
        dratio, ratio = h * gate / n, c / n
        dc = at(carry, a + j) + dratio
        dn = at(carry, a + PANEL + j) - dratio * ratio
        put(draw, w + j, (cell * dc + dn) * write)
        put(draw, w + PANEL + j, (c0 * dc + n0 * dn) * decay * at(kept, e + 6 * PANEL + j))
        put(draw, w + 2 * PANEL + j, write * dc * (float32(1.0) - cell * cell))
        put(draw, w + 3 * PANEL + j, h * ratio * gate * (float32(1.0) - gate))
        put(carry, a + j, decay * dc)
        put(carry, a + PANEL + j, decay * dn)


@njit(fastmath=FASTMATH)
def load(block: Array, size: int, part: int, row: int, state_BHV: Array, state_at: int, V: int) -> None:
    """Part `part` of the blocks of a row, of `size` floats each, from a row of a state."""
    place = row * -(-V // PANEL) * size + part * PANEL
    for v in range(V):
        put(block, place + v // PANEL * size + v % PANEL, at(state_BHV, state_at + v))


@njit(fastmath=FASTMATH)
def store(block: Array, size: int, part: int, row: int, state_BHV: Array, state_at: int, V: int) -> None:
    """The way back."""
    place = row * -(-V // PANEL) * size + part * PANEL
    for v in range(V):
        put(state_BHV, state_at + v, at(block, place + v // PANEL * size + v % PANEL))


@njit(fastmath=FASTMATH)
def copy(out: Array, out_at: int, x: Array, x_at: int, count: int) -> None:
    """out = x, for `count` floats."""
    for n in range(count):
        put(out, out_at + n, at(x, x_at + n))


@njit(fastmath=FASTMATH)
def clear_beyond(out_BTHV: Array, b: int, length: int, head: int) -> None:
    """Zeros in the steps that do not belong to row b."""
    for t in range(length, out_BTHV.shape[1]):
        out_BTHV[b, t, head] = float32(0.0)


@compiled
def forward_scan(first: int, last: int, rows: int, packed: bool, x_BTHGV: Array, r_HKGV: Array, reset_BT: Array,
                 lengths_B: Array, exp_forget: bool, before: Array, h_BTHV: Array, after: Array,
                 past_HBTV: Array, kept_E: Array) -> None:  # fmt: skip
    """Items first to last - 1 of tiles of `rows` rows. Fills h_BTHV, and after with the state after the last step.

    before and after: four arrays each. R of no rows: no mixing. reset_BT may be empty: none. For the
    backward, unless kept_E is empty: past_HBTV is filled with h before every step, and kept_E with blocks [H, B, T, V].
    """
    B, T, H, _, V = x_BTHGV.shape
    units = -(-V // PANEL)
    wide, tall = units * PANEL, units * BLOCK
    mixing, resets, keep = r_HKGV.shape[1] > 0, reset_BT.size > 0, kept_E.size > 0
    room = rows_by_four(rows)
    block, h, spare = np.zeros(room * tall, np.float32), np.zeros(room * wide, np.float32), np.empty(KEPT, np.float32)
    for item in range(first, last):
        head, row0, count = tile_rows(item, B, rows)
        panels = pack(r_HKGV, head, units) if mixing and packed else np.zeros((0, 0, 0, 0), np.float32)
        block[:], h[:], steps = 0.0, 0.0, 0
        for row in range(count):
            place = ((row0 + row) * H + head) * V
            load(h, PANEL, 0, row, before[0], place, V)
            for part in range(1, 4):
                load(block, BLOCK, 3 + part, row, before[part], place, V)
            steps = max(steps, lengths_B[row0 + row])
        for t in range(steps):
            if resets:
                for row in range(count):
                    if reset_BT[row0 + row, t] and t < lengths_B[row0 + row]:
                        block[row * tall : (row + 1) * tall] = 0.0
                        h[row * wide : (row + 1) * wide] = 0.0
            if mixing and packed:
                product(block, tall, BLOCK, h, wide, count, panels, V, 4 * units)
            for row in range(count):
                b = row0 + row
                if t >= lengths_B[b]:
                    continue
                if mixing and not packed:
                    read_product(block, row * tall, units, h, row * wide, r_HKGV, head)
                step = (head * B + b) * T + t
                if keep:
                    copy(past_HBTV, step * V, h, row * wide, V)
                for u in range(units):
                    a = row * tall + u * BLOCK
                    if not mixing:
                        block[a : a + 4 * PANEL] = 0.0
                    place = ((b * T + t) * H + head) * 4 * V + u * PANEL
                    add_input(block, a, x_BTHGV, place, V, min(PANEL, V - u * PANEL))
                    for g in range(4):  # of the next step
                        prefetch(x_BTHGV, place + 4 * H * V + g * V)
                    gates(block, a, h, row * wide + u * PANEL,
                          kept_E if keep else spare, (step * units + u) * KEPT if keep else 0, exp_forget)  # fmt: skip
                copy(h_BTHV, ((b * T + t) * H + head) * V, h, row * wide, V)
        for row in range(count):
            b = row0 + row
            store(h, PANEL, 0, row, after[0], (b * H + head) * V, V)
            for part in range(1, 4):
                store(block, BLOCK, 3 + part, row, after[part], (b * H + head) * V, V)
            clear_beyond(h_BTHV, b, lengths_B[b], head)
            if keep:
                past_HBTV[head, b, lengths_B[b] :] = 0.0


@compiled
def backward_scan(first: int, last: int, rows: int, dh_BTHV: Array, r_HKGV: Array, reset_BT: Array, lengths_B: Array,
                  dafter: Array, draw_BTHGV: Array, dbefore: Array, kept_E: Array) -> None:  # fmt: skip
    """Items as in `forward_scan`. Fills draw_BTHGV, the gradient of x, and dbefore, that of the first state.

    dafter and dbefore: three arrays each, for h, c and n.
    """
    B, T, H, _, V = draw_BTHGV.shape
    units = -(-V // PANEL)
    wide = units * PANEL
    mixing, resets = r_HKGV.shape[1] > 0, reset_BT.size > 0
    room = rows_by_four(rows)
    draw, carry = np.zeros(room * 4 * wide, np.float32), np.zeros(room * 2 * wide, np.float32)
    dh = np.zeros(room * wide, np.float32)
    for item in range(first, last):
        head, row0, count = tile_rows(item, B, rows)
        panels = pack_transposed(r_HKGV, head, units) if mixing else np.zeros((0, 0, 0, 0, 0), np.float32)
        draw[:], carry[:], dh[:], steps = 0.0, 0.0, 0.0, 0
        for row in range(count):
            place = ((row0 + row) * H + head) * V
            for part in range(2):
                load(carry, CARRY, part, row, dafter[1 + part], place, V)
            steps = max(steps, lengths_B[row0 + row])
        for t in range(steps - 1, -1, -1):
            for row in range(count):
                b = row0 + row
                if t >= lengths_B[b]:
                    continue
                if t == lengths_B[b] - 1:
                    load(dh, PANEL, 0, row, dafter[0], (b * H + head) * V, V)
                place = ((b * T + t) * H + head) * V
                for v in range(V):
                    put(dh, row * wide + v, at(dh, row * wide + v) + at(dh_BTHV, place + v))
                for u in range(units):
                    w = (row * units + u) * DRAW
                    gates_backward(draw, w, carry, (row * units + u) * CARRY, dh, row * wide + u * PANEL,
                                   kept_E, (((head * B + b) * T + t) * units + u) * KEPT)  # fmt: skip
                    prefetch(dh_BTHV, place - H * V + u * PANEL)
                    for g in range(7):  # of the step before
                        prefetch(kept_E, ((((head * B + b) * T + t - 1) * units + u) * 7 + g) * PANEL)
                    for g in range(4):
                        copy(draw_BTHGV, place * 4 + g * V + u * PANEL, draw, w + g * PANEL, min(PANEL, V - u * PANEL))
            if mixing:
                product(dh, wide, 4 * PANEL, draw, 4 * wide, count, panels, 4 * wide, units)
            else:
                dh[:] = 0.0
            if resets:
                for row in range(count):
                    if reset_BT[row0 + row, t] and t < lengths_B[row0 + row]:
                        dh[row * wide : (row + 1) * wide] = 0.0
                        carry[row * 2 * wide : (row + 1) * 2 * wide] = 0.0
        for row in range(count):
            b = row0 + row
            place = (b * H + head) * V
            if lengths_B[b] == 0:
                load(dh, PANEL, 0, row, dafter[0], place, V)
            store(dh, PANEL, 0, row, dbefore[0], place, V)
            for part in range(2):
                store(carry, CARRY, part, row, dbefore[1 + part], place, V)
            for t in range(lengths_B[b], T):
                draw_BTHGV[b, t, head] = 0.0
