"""The loops over time of recurrent nets with a matrix memory, forward and backward.

An item is a head of a row of the batch. A step is the product of the matrix with R, packed, and one pass over the
result: tanh, gate and read-out. For the backward the matrix is saved every SPAN steps; the steps between are computed
again, and the gradient of R is one product for all of them, by BLAS.

B batch  T time  H heads  K key width  U, V value width  N spans  I rows of all steps of a span
"""

from typing import NamedTuple

import numpy as np
from numpy import float32

from exlstm.ops.matrix_rnn.numba.step import Inputs, Sizes, advance, clear_step, retreat, room_of
from exlstm.runtime.cpu import matmul
from exlstm.runtime.cpu.jit import helper
from exlstm.runtime.cpu.kernel import F32, I64, Bools, kernel
from exlstm.runtime.cpu.loops import add_at
from exlstm.runtime.cpu.memory import LINE_NUMBERS, SIZE, byte_at, clear, copy, hold, line_of, long_at, rows_at
from exlstm.runtime.cpu.tile import PANEL, pack_columns, pack_rows, product, rows_by_four

SPAN = 16  # steps: their matrices, twice, are half a megabyte with K = V = 64


class Rows(NamedTuple):
    """Addresses of resets and lengths; 0 for none."""

    reset_BT: Bools
    lengths_B: I64


@helper()
def load(h: int, wide: int, x: int, K: int, V: int) -> None:
    """Rows of V numbers to rows of `wide`."""
    for k in range(K):
        copy(h + SIZE * k * wide, x + SIZE * k * V, V)


@helper()
def store(x: int, h: int, wide: int, K: int, V: int) -> None:
    """The inverse of `load`."""
    for k in range(K):
        copy(x + SIZE * k * V, h + SIZE * k * wide, V)


@helper()
def is_reset(rows: Rows, T: int, b: int, t: int) -> bool:
    """Whether row b is reset before step t."""
    return bool(rows.reset_BT != 0 and byte_at(rows.reset_BT + b * T + t) != 0)


@kernel()
def forward_scan(
    first: int,
    last: int,
    sizes: Sizes,
    x: Inputs,
    r_HUV: F32,
    rows: Rows,
    h_BHKV: F32,
    o_BTHV: F32,
    after_BHKV: F32,
    starts_NBHKV: F32,
) -> None:
    """Items of o, of the matrix after the last step, and before every span."""
    B, T, H, K, V, _, N, _, mixing = sizes
    wide = -(-V // PANEL) * PANEL
    matrix, room = rows_by_four(K) * wide, room_of(sizes)
    memory = np.empty(2 * matrix + 4 * room + V * wide + LINE_NUMBERS, float32)
    h = line_of(memory)
    z, work = h + SIZE * matrix, h + 2 * SIZE * matrix
    panels = work + 4 * SIZE * room
    for item in range(first, last):
        b, head = item // H, item % H
        clear(h, 2 * matrix + 4 * room + V * wide)
        if mixing:
            pack_rows(r_HUV + SIZE * head * V * V, 1, 0, V, V, V, panels, V, 0)
        load(h, wide, h_BHKV + SIZE * item * K * V, K, V)
        length = long_at(rows.lengths_B + 8 * b) if rows.lengths_B != 0 else T
        for t in range(length):
            if is_reset(rows, T, b, t):
                clear(h, matrix)
            if N > 0 and t % SPAN == 0:
                store(starts_NBHKV + SIZE * (t // SPAN * B * H + item) * K * V, h, wide, K, V)
            place = (b * T + t) * H + head
            advance(x, sizes, place, h, z, panels, work)
            copy(o_BTHV + SIZE * place * V, work + 3 * SIZE * room, V)
        store(after_BHKV + SIZE * item * K * V, h, wide, K, V)
        for t in range(length, T):
            clear(o_BTHV + SIZE * ((b * T + t) * H + head) * V, V)
    hold(memory)


class Gradients(NamedTuple):
    """Addresses of gradients beside those of the inputs: given of o and the last matrix, found of R and the first."""

    do_BTHV: F32
    dafter_BHKV: F32
    dr_BHUV: F32
    dbefore_BHKV: F32


@kernel()
def backward_scan(
    first: int,
    last: int,
    sizes: Sizes,
    x: Inputs,
    r_HUV: F32,
    rows: Rows,
    starts_NBHKV: F32,
    dx: Inputs,
    d: Gradients,
) -> None:
    """Items of all gradients; that of R for every row of the batch."""
    B, T, H, K, V, _, _, _, mixing = sizes
    units = -(-V // PANEL)
    wide, room = units * PANEL, room_of(sizes)
    tall = rows_by_four(K)
    matrix, smaller = tall * wide, 6 * room + 3 * PANEL
    numbers = (2 * SPAN + 3) * matrix + smaller + 2 * V * wide
    memory = np.empty(numbers + LINE_NUMBERS, float32)
    before = line_of(memory)
    z = before + SPAN * SIZE * matrix
    h, dh, dmixed = z + SPAN * SIZE * matrix, z + (SPAN + 1) * SIZE * matrix, z + (SPAN + 2) * SIZE * matrix
    work = dmixed + SIZE * matrix
    panels = work + SIZE * smaller
    turned = panels + SIZE * V * wide
    for item in range(first, last):
        b, head = item // H, item % H
        clear(before, numbers)
        if mixing:
            pack_rows(r_HUV + SIZE * head * V * V, 1, 0, V, V, V, panels, V, 0)
            pack_columns(r_HUV + SIZE * head * V * V, 1, 0, V, V, V, turned, V, 0)
            clear(d.dr_BHUV + SIZE * item * V * V, V * V)
        load(dh, wide, d.dafter_BHKV + SIZE * item * K * V, K, V)
        length = long_at(rows.lengths_B + 8 * b) if rows.lengths_B != 0 else T
        for start in range((length - 1) // SPAN * SPAN, -1, -SPAN):
            steps = SPAN if length - start > SPAN else length - start
            load(h, wide, starts_NBHKV + SIZE * (start // SPAN * B * H + item) * K * V, K, V)
            for n in range(steps):
                if is_reset(rows, T, b, start + n):
                    clear(h, matrix)
                copy(before + n * SIZE * matrix, h, matrix)
                advance(x, sizes, (b * T + start + n) * H + head, h, z + n * SIZE * matrix, panels, work)
            for n in range(steps - 1, -1, -1):
                place, here = (b * T + start + n) * H + head, n * SIZE * matrix
                retreat(x, dx, sizes, place, before + here, z + here, dh, d.do_BTHV + SIZE * place * V, work)
                if mixing:
                    product(dmixed, wide, 4 * PANEL, z + here, wide, K, turned, V, units)
                    add_at(dh, dmixed, K * wide)
                else:
                    add_at(dh, z + here, K * wide)
                if is_reset(rows, T, b, start + n):
                    clear(dh, matrix)
            if mixing:
                before_IU, dz_IV = rows_at(before, steps * tall, V, wide), rows_at(z, steps * tall, V, wide)
                matmul.product(rows_at(d.dr_BHUV + SIZE * item * V * V, V, V, V), before_IU.T, dz_IV, 1.0)
        store(d.dbefore_BHKV + SIZE * item * K * V, dh, wide, K, V)
        for t in range(length, T):
            clear_step(dx, sizes, (b * T + t) * H + head)
    hold(memory)
