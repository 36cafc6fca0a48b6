"""The loops over time of the sLSTM, forward and backward: only what is truly sequential is in them.

An item is a head and a tile of rows of the batch, and one thread takes it through all of time: R of the head, packed,
stays in its cache. A step is one product of all rows with R, then the gates of one row after another, 16 units at a
time, in the blocks of `numba_gates`.

Tensors are addresses of contiguous float32 numbers; *_at count these.

B batch  T time  H heads  K, V head width  G gates: i, f, z, o  Q state parts: h, c, n, m
"""

from typing import Any

import numpy as np
from numpy import float32

from exlstm.ops.slstm.numba.gates import BLOCK, CARRY, DRAW, add_sixteen
from exlstm.ops.slstm.numba.recurrent import pack, pack_transposed, read_product, width
from exlstm.ops.slstm.numba.tile import PANEL, product, rows_by_four
from exlstm.ops.slstm.numba.variants import any_backward, any_step, kept_in_kernels
from exlstm.runtime.cpu.jit import compiled, helper
from exlstm.runtime.cpu.memory import SIZE, address_of, at, clear, copy, keep, prefetch, put, tensor_at

Array = Any  # a NumPy array inside Numba


@helper()
def add_input(block: int, x: int, V: int, u: int) -> None:
    """x to the sums of a block. They were summed on their own: x may be large and would round every partial sum."""
    for g in range(4):
        if width(V, u) == PANEL:
            add_sixteen(block + SIZE * g * PANEL, x + SIZE * g * V)
        else:
            for j in range(width(V, u)):
                put(block, g * PANEL + j, at(block, g * PANEL + j) + at(x, g * V + j))


@helper()
def all_gates(block: int, h: int, x: int, kept_step: int, kept: int, mixing: bool, H: int, V: int, variant: int
              ) -> None:  # fmt: skip
    """One step of all units of a row. x: of this step; kept_step: numbers from one block of `kept` to the next."""
    for u in range(-(-V // PANEL)):
        x_u, block_u = x + SIZE * u * PANEL, block + SIZE * u * BLOCK
        if not mixing:
            clear(block_u, 4 * PANEL)
        add_input(block_u, x_u, V, u)
        for g in range(4):  # of the next step
            prefetch(x_u, (4 * H + g) * V)
        any_step(block_u, h + SIZE * u * PANEL, kept + SIZE * u * kept_step, variant)


@helper()
def give_gradient(dx: int, draw: int, V: int, u: int) -> None:
    """The gradients of a block to those of x, which has no room for units beyond V."""
    for g in range(4):
        copy(dx + SIZE * g * V, draw + SIZE * g * PANEL, width(V, u))


@helper()
def load(block: int, size: int, part: int, x: int, V: int) -> None:
    """Part `part` of the blocks of a row, of `size` floats each, from a row of a state."""
    for v in range(V):
        put(block, v // PANEL * size + part * PANEL + v % PANEL, at(x, v))


@helper()
def store(block: int, size: int, part: int, x: int, V: int) -> None:
    """The way back."""
    for v in range(V):
        put(x, v, at(block, v // PANEL * size + part * PANEL + v % PANEL))


@helper()
def restart(reset_BT: Array, lengths_B: Array, row0: int, count: int, t: int, x: int, x_row: int, y: int, y_row: int
            ) -> None:  # fmt: skip
    """Zeros in x and y for the rows whose step t belongs to a new sequence; x_row and y_row: the numbers of a row."""
    for row in range(count):
        if reset_BT[row0 + row, t] and t < lengths_B[row0 + row]:
            clear(x + SIZE * row * x_row, x_row)
            clear(y + SIZE * row * y_row, y_row)


@helper()
def load_state(block: int, h: int, before: tuple[int, int, int, int], n: int, V: int) -> None:
    """Blocks of a row and its h from the states, where it is number n of the rows and heads."""
    load(h, PANEL, 0, before[0] + SIZE * n * V, V)
    for part in range(1, 4):
        load(block, BLOCK, 3 + part, before[part] + SIZE * n * V, V)


@helper()
def store_state(block: int, h: int, after: tuple[int, int, int, int], n: int, V: int) -> None:
    """The way back."""
    store(h, PANEL, 0, after[0] + SIZE * n * V, V)
    for part in range(1, 4):
        store(block, BLOCK, 3 + part, after[part] + SIZE * n * V, V)


@compiled
def forward_scan(first: int, last: int, rows: int, packed: bool, mixing: bool, B: int, T: int, H: int, V: int,
                 x_BTHGV: int, r_HKGV: int, short: bool, reset: int, lengths: int, variant: int,
                 before: tuple[int, int, int, int], h_BTHV: int, after: tuple[int, int, int, int],
                 past_HBTV: int, kept_E: int) -> None:  # fmt: skip
    """Items first to last - 1 of tiles of `rows` rows. Fills h_BTHV, and after with the state after the last step.

    short: R is bfloat16.
    reset: of bools [B, T], or 0: none; lengths: of int64. For the backward, unless kept_E is 0: past_HBTV is filled
    with h before every step, and kept_E with blocks [H, B, T, V].
    """
    units, tiles = -(-V // PANEL), -(-B // rows)
    wide, tall, room, size = units * PANEL, units * BLOCK, rows_by_four(rows), kept_in_kernels(variant)
    lengths_B, reset_BT = tensor_at(lengths, B, np.int64), tensor_at(reset, (B, T), np.bool_)
    work = np.empty(room * (tall + wide) + size + 4 * V + (4 * V * wide if mixing and packed else 0), float32)
    block = address_of(work)
    h = block + SIZE * room * tall
    spare = h + SIZE * room * wide
    raw = spare + SIZE * size
    panels = raw + SIZE * 4 * V
    for item in range(first, last):
        head, row0 = item // tiles, item % tiles * rows
        count, steps = rows if B - row0 > rows else B - row0, 0
        clear(block, room * (tall + wide))
        r_KJ = r_HKGV + (2 if short else SIZE) * head * V * 4 * V
        if mixing and packed:
            pack(r_KJ, short, V, units, panels)
        for row in range(count):
            load_state(block + SIZE * row * tall, h + SIZE * row * wide, before, (row0 + row) * H + head, V)
            steps = max(steps, lengths_B[row0 + row])
        for t in range(steps):
            if reset != 0:
                restart(reset_BT, lengths_B, row0, count, t, block, tall, h, wide)
            if mixing and packed:
                product(block, tall, BLOCK, h, wide, count, panels, V, 4 * units)
            for row in range(count):
                b = row0 + row
                if t >= lengths_B[b]:
                    continue
                block_r, h_r, step = block + SIZE * row * tall, h + SIZE * row * wide, (head * B + b) * T + t
                place, kept = (b * T + t) * H + head, spare
                if mixing and not packed:
                    read_product(block_r, units, h_r, r_KJ, short, V, raw)
                if kept_E != 0:
                    copy(past_HBTV + SIZE * step * V, h_r, V)
                    kept = kept_E + SIZE * step * units * size
                all_gates(block_r, h_r, x_BTHGV + SIZE * place * 4 * V, 0 if kept_E == 0 else size, kept, mixing, H, V,
                          variant)  # fmt: skip
                copy(h_BTHV + SIZE * place * V, h_r, V)
        for row in range(count):
            b, length = row0 + row, lengths_B[row0 + row]
            store_state(block + SIZE * row * tall, h + SIZE * row * wide, after, b * H + head, V)
            for t in range(length, T):
                clear(h_BTHV + SIZE * ((b * T + t) * H + head) * V, V)
            if kept_E != 0:
                clear(past_HBTV + SIZE * ((head * B + b) * T + length) * V, (T - length) * V)
    keep(work)


@compiled
def backward_scan(first: int, last: int, rows: int, mixing: bool, B: int, T: int, H: int, V: int, dh_BTHV: int,
                  r_HKGV: int, reset: int, lengths: int, dafter: tuple[int, int, int], draw_BTHGV: int,
                  dbefore: tuple[int, int, int], kept_E: int, variant: int) -> None:  # fmt: skip
    """Items as in `forward_scan`. Fills the gradients of x and of the first h, c, n from those of the last: dafter."""
    units, tiles = -(-V // PANEL), -(-B // rows)
    wide, room, size = units * PANEL, rows_by_four(rows), kept_in_kernels(variant)
    lengths_B, reset_BT = tensor_at(lengths, B, np.int64), tensor_at(reset, (B, T), np.bool_)
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
            pack_transposed(r_HKGV, head, V, units, panels)
        for row in range(count):
            state = SIZE * ((row0 + row) * H + head) * V
            for part in range(2):
                load(carry + SIZE * row * 2 * wide, CARRY, part, dafter[1 + part] + state, V)
            steps = max(steps, lengths_B[row0 + row])
        for t in range(steps - 1, -1, -1):
            for row in range(count):
                b, dh_r, draw_r = row0 + row, dh + SIZE * row * wide, draw + SIZE * row * 4 * wide
                if t >= lengths_B[b]:
                    continue
                if t == lengths_B[b] - 1:
                    load(dh_r, PANEL, 0, dafter[0] + SIZE * (b * H + head) * V, V)
                place, step = ((b * T + t) * H + head) * V, (head * B + b) * T + t
                for v in range(V):
                    put(dh_r, v, at(dh_r, v) + at(dh_BTHV, place + v))
                for u in range(units):
                    draw_u, kept = draw_r + SIZE * u * DRAW, kept_E + SIZE * (step * units + u) * size
                    carry_u = carry + SIZE * (row * units + u) * CARRY
                    any_backward(draw_u, carry_u, dh_r + SIZE * u * PANEL, kept, variant)
                    prefetch(dh_BTHV, place - H * V + u * PANEL)
                    for g in range(7):  # of the step before
                        prefetch(kept, g * PANEL - units * size)
                    give_gradient(draw_BTHGV + SIZE * (place * 4 + u * PANEL), draw_u, V, u)
            if mixing:
                product(dh, wide, 4 * PANEL, draw, 4 * wide, count, panels, 4 * wide, units)
            else:
                clear(dh, room * wide)
            if reset != 0:
                restart(reset_BT, lengths_B, row0, count, t, dh, wide, carry, 2 * wide)
        for row in range(count):
            b, length = row0 + row, lengths_B[row0 + row]
            state, dh_r = SIZE * (b * H + head) * V, dh + SIZE * row * wide
            if length == 0:
                load(dh_r, PANEL, 0, dafter[0] + state, V)
            store(dh_r, PANEL, 0, dbefore[0] + state, V)
            for part in range(2):
                store(carry + SIZE * row * 2 * wide, CARRY, part, dbefore[1 + part] + state, V)
            for t in range(length, T):
                clear(draw_BTHGV + SIZE * ((b * T + t) * H + head) * 4 * V, 4 * V)
    keep(work)
