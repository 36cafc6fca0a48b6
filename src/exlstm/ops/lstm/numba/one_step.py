"""One step of an LSTM layer, forward and backward, from weights in the order of torch. See `exlstm.ops.layer`."""

import numpy as np
from numpy import float32

from exlstm.ops.layer.numba.pre_activations import (
    StepInputs,
    StepSizes,
    fill_gates,
    room_for_step,
    rows_together,
    turn_inputs,
)
from exlstm.ops.lstm.numba.cell import GATES, SAVED, cell, cell_backward
from exlstm.runtime.cpu.blocks import store_parts, width
from exlstm.runtime.cpu.kernel import F32, Bools, kernel
from exlstm.runtime.cpu.memory import SIZE, address_of, clear, copy, hold, tensor_at
from exlstm.runtime.cpu.tile import PANEL


@kernel()
def step_forward(first: int, last: int, sizes: StepSizes, x: StepInputs, c_BS: F32, next_h_BM: F32, next_c_BS: F32,
                 saved_E: F32) -> None:  # fmt: skip
    """h and c after the step. For the backward saved_E holds a block per item and row."""
    B, K, M = sizes.B, sizes.K, sizes.M
    units, resets, room = -(-K // PANEL), tensor_at(x.reset_B, B, np.bool_), room_for_step(sizes, GATES)
    numbers = np.empty(room + SAVED + 2 * PANEL, float32)
    work = address_of(numbers)
    spare = work + SIZE * room
    c = spare + SIZE * SAVED
    h = c + SIZE * PANEL
    turn_inputs(sizes, x, resets, work, GATES)
    for item in range(first, last):
        u = item % units
        head, count = item // units * K, width(K, u)
        unit, b = head + u * PANEL, 0
        while b < B:
            rows = rows_together(B - b, B)
            fill_gates(sizes, x, resets, unit, head, count, b, rows, work, GATES)
            for row in range(b, b + rows):
                place, saved = SIZE * (row * M + unit), spare
                clear(c, PANEL)
                if x.reset_B == 0 or not resets[row]:
                    copy(c, c_BS + place, count)
                if saved_E != 0:
                    saved = saved_E + SIZE * (item * B + row) * SAVED
                cell(work + SIZE * (row - b) * GATES, c, h, saved)
                copy(next_h_BM + place, h, count)
                copy(next_c_BS + place, c, count)
            b += rows
    hold(numbers)


@kernel()
def step_backward(first: int, last: int, sizes: StepSizes, reset_B: Bools, saved_E: F32, dh_BM: F32, dc_BS: F32,
                  draw_BJ: F32, dfirst_c_BS: F32) -> None:  # fmt: skip
    """Gradients of the gates before their activations and of the first c, from those of h and c."""
    B, K, M, J = sizes.B, sizes.K, sizes.M, sizes.J
    units, resets = -(-K // PANEL), tensor_at(reset_B, B, np.bool_)
    work = np.zeros(GATES + 2 * PANEL, float32)
    draw = address_of(work)
    dc = draw + SIZE * GATES
    dh = dc + SIZE * PANEL
    for item in range(first, last):
        u = item % units
        count, unit = width(K, u), item // units * K + u * PANEL
        for b in range(B):
            place = SIZE * (b * M + unit)
            copy(dh, dh_BM + place, count)
            copy(dc, dc_BS + place, count)
            cell_backward(draw, dc, dh, saved_E + SIZE * (item * B + b) * SAVED)
            store_parts(draw_BJ + SIZE * (b * J + unit), M, draw, 4, count)
            if reset_B != 0 and resets[b]:
                clear(dc, PANEL)
            copy(dfirst_c_BS + place, dc, count)
    hold(work)
