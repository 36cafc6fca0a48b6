"""One step of an sLSTM layer: W x + R h + b and the gates, forward and backward, from weights in the order of torch.

W and R are read as they are, once for four rows of the batch; an item is a group of 16 units of a head. Of many rows
W x is a matrix product beforehand. Rows of W, R and b are in the order (gate, head, unit), and c of a row is c, n, m
side by side.

B rows of the batch  D width of the input  K width of a head  M of all heads  J gates of all heads (4 M)  S width of c
(3 M)  E numbers saved for the backward
"""

from typing import NamedTuple

import numpy as np
from numpy import float32

from exlstm.ops.linear.numba.maps import FLOAT32
from exlstm.ops.linear.numba.op import STEP_FLOAT32, tile_sums
from exlstm.ops.slstm.numba.gates import BLOCK, CARRY, DRAW, SAVED, gates, gates_backward
from exlstm.runtime.cpu.blocks import add_parts, store_parts, width
from exlstm.runtime.cpu.jit import helper
from exlstm.runtime.cpu.kernel import F32, Bools, kernel
from exlstm.runtime.cpu.memory import SIZE, address_of, at, clear, copy, hold, put, tensor_at
from exlstm.runtime.cpu.tile import PANEL

ROWS = 4  # of the batch at a time
ROOM = 2 * PANEL  # numbers for the sums of two tiles


class StepSizes(NamedTuple):
    """Sizes of a step, see the module's docstring."""

    B: int
    D: int
    K: int
    M: int
    J: int
    S: int
    E: int


@helper()
def add_products(block: int, w: int, row: int, M: int, x: int, x_row: int, N: int, count: int, batch: int,
                 out: int) -> None:  # fmt: skip
    """Adds W x of a group of units to the gates of `batch` rows' blocks. x_row: numbers from a row of x to the next.

    row: of W, for the first unit's first gate. N: columns of W. batch: 1, 2 or 4.
    """
    rows, lines = 4 // batch, N // STEP_FLOAT32
    for v in range(count):
        for g in range(0, 4, rows):
            tile_sums(FLOAT32, w, SIZE * N, 0, 0, 0, g * M + row + v, M, rows, x, SIZE * x_row, batch, lines,
                      lines * STEP_FLOAT32, N, out)  # fmt: skip
            for i in range(batch):
                for n in range(rows):
                    place = i * BLOCK + (g + n) * PANEL + v
                    put(block, place, at(block, place) + at(out, i * rows + n))


@kernel()
def step_forward(
    first: int, last: int, sizes: StepSizes, raw_BJ: F32, x_BD: F32, w_JD: F32, r_JK: F32, b_J: F32, more_b_J: F32,
    reset_B: Bools, h_BM: F32, c_BS: F32, next_h_BM: F32, next_c_BS: F32, saved_E: F32,
) -> None:  # fmt: skip
    """h and c after the step; h_BM = 0: an empty state. For the backward saved_E holds a block per item and row.

    raw_BJ: W x, if that is known; 0: it is computed here.
    """
    B, D, K, M, J, S, _ = sizes
    units, resets = -(-K // PANEL), tensor_at(reset_B, B, np.bool_)
    work = np.empty(ROWS * BLOCK + SAVED + PANEL + ROOM, float32)
    blocks = address_of(work)
    spare = blocks + SIZE * ROWS * BLOCK
    h = spare + SIZE * SAVED
    out = h + SIZE * PANEL
    for item in range(first, last):
        u = item % units
        head, count = item // units * K, width(K, u)
        unit = head + u * PANEL
        b = 0
        while b < B:
            batch = 4 if B - b >= 4 else (2 if B - b >= 2 else 1)
            clear(blocks, batch * BLOCK)
            if h_BM != 0:
                add_products(blocks, r_JK, unit, M, h_BM + SIZE * (b * M + head), M, K, count, batch, out)
            for i in range(batch):
                block = blocks + SIZE * i * BLOCK
                if h_BM != 0 and reset_B != 0 and resets[b + i]:
                    clear(block, 4 * PANEL)
                elif h_BM != 0:
                    for part in range(3):
                        copy(block + SIZE * (4 + part) * PANEL, c_BS + SIZE * ((b + i) * S + part * M + unit), count)
            if raw_BJ == 0:
                add_products(blocks, w_JD, unit, M, x_BD + SIZE * b * D, D, D, count, batch, out)
            for i in range(batch):
                block, saved = blocks + SIZE * i * BLOCK, spare
                if raw_BJ != 0:
                    add_parts(block, 4, raw_BJ + SIZE * ((b + i) * J + unit), M, count)
                if b_J != 0:
                    add_parts(block, 4, b_J + SIZE * unit, M, count)
                    add_parts(block, 4, more_b_J + SIZE * unit, M, count)
                if saved_E != 0:
                    saved = saved_E + SIZE * (item * B + b + i) * SAVED
                gates(block, h, saved, False)
                copy(next_h_BM + SIZE * ((b + i) * M + unit), h, count)
                store_parts(next_c_BS + SIZE * ((b + i) * S + unit), M, block + SIZE * 4 * PANEL, 3, count)
            b += batch
    hold(work)


@kernel()
def step_backward(first: int, last: int, sizes: StepSizes, reset_B: Bools, saved_E: F32, dh_BM: F32, dc_BS: F32,
                  draw_BJ: F32, dfirst_c_BS: F32) -> None:  # fmt: skip
    """Gradients of the gates before their activations and of the first c, from those of h and c. m has none."""
    B, _, K, M, J, S, _ = sizes
    units, resets = -(-K // PANEL), tensor_at(reset_B, B, np.bool_)
    work = np.zeros(DRAW + CARRY + PANEL, float32)
    draw = address_of(work)
    carry = draw + SIZE * DRAW
    dh = carry + SIZE * CARRY
    for item in range(first, last):
        u = item % units
        count, unit = width(K, u), item // units * K + u * PANEL
        for b in range(B):
            copy(dh, dh_BM + SIZE * (b * M + unit), count)
            for part in range(2):
                copy(carry + SIZE * part * PANEL, dc_BS + SIZE * (b * S + part * M + unit), count)
            gates_backward(draw, carry, dh, saved_E + SIZE * (item * B + b) * SAVED)
            store_parts(draw_BJ + SIZE * (b * J + unit), M, draw, 4, count)
            if reset_B != 0 and resets[b]:
                clear(carry, CARRY)
            out = dfirst_c_BS + SIZE * (b * S + unit)
            store_parts(out, M, carry, 2, count)
            clear(out + SIZE * 2 * M, count)
    hold(work)
