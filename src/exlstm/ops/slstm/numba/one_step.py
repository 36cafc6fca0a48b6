"""One step of an sLSTM or LSTM layer, forward and backward, from weights in the order of torch.

c of a row is c, n, m side by side, S numbers, or c alone. See `exlstm.ops.layer`.
"""

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
from exlstm.ops.slstm.numba.gates import BLOCK, CARRY, DRAW
from exlstm.ops.slstm.numba.variants import any_backward, any_step, saved_size_in_kernels
from exlstm.runtime.cpu.blocks import store_parts, width
from exlstm.runtime.cpu.kernel import F32, Bools, kernel
from exlstm.runtime.cpu.memory import SIZE, address_of, clear, copy, hold, tensor_at
from exlstm.runtime.cpu.tile import PANEL


@kernel()
def step_forward(first: int, last: int, sizes: StepSizes, x: StepInputs, c_BS: F32, next_h_BM: F32, next_c_BS: F32,
                 saved_E: F32, variant: int) -> None:  # fmt: skip
    """h and c after the step. For the backward saved_E holds a block per item and row."""
    B, K, M, S = sizes.B, sizes.K, sizes.M, sizes.S
    units, resets, room = -(-K // PANEL), tensor_at(x.reset_B, B, np.bool_), room_for_step(sizes, BLOCK)
    parts, size = S // M, saved_size_in_kernels(variant)
    numbers = np.empty(room + size + PANEL, float32)
    work = address_of(numbers)
    spare = work + SIZE * room
    h = spare + SIZE * size
    turn_inputs(sizes, x, resets, work, BLOCK)
    for item in range(first, last):
        u = item % units
        head, count = item // units * K, width(K, u)
        unit, b = head + u * PANEL, 0
        while b < B:
            rows = rows_together(B - b, B)
            fill_gates(sizes, x, resets, unit, head, count, b, rows, work, BLOCK)
            for row in range(b, b + rows):
                block, saved = work + SIZE * (row - b) * BLOCK, spare
                clear(block + SIZE * 4 * PANEL, 3 * PANEL)
                if x.reset_B == 0 or not resets[row]:
                    for part in range(parts):
                        copy(block + SIZE * (4 + part) * PANEL, c_BS + SIZE * (row * S + part * M + unit), count)
                if saved_E != 0:
                    saved = saved_E + SIZE * (item * B + row) * size
                any_step(block, h, saved, variant)
                copy(next_h_BM + SIZE * (row * M + unit), h, count)
                store_parts(next_c_BS + SIZE * (row * S + unit), M, block + SIZE * 4 * PANEL, parts, count)
            b += rows
    hold(numbers)


@kernel()
def step_backward(first: int, last: int, sizes: StepSizes, reset_B: Bools, saved_E: F32, dh_BM: F32, dc_BS: F32,
                  draw_BJ: F32, dfirst_c_BS: F32, variant: int) -> None:  # fmt: skip
    """Gradients of the gates before their activations and of the first c, from those of h and c. m has none."""
    B, K, M, J, S = sizes.B, sizes.K, sizes.M, sizes.J, sizes.S
    units, resets = -(-K // PANEL), tensor_at(reset_B, B, np.bool_)
    parts, size = min(S // M, 2), saved_size_in_kernels(variant)
    work = np.zeros(DRAW + CARRY + PANEL, float32)
    draw = address_of(work)
    carry = draw + SIZE * DRAW
    dh = carry + SIZE * CARRY
    for item in range(first, last):
        u = item % units
        count, unit = width(K, u), item // units * K + u * PANEL
        for b in range(B):
            copy(dh, dh_BM + SIZE * (b * M + unit), count)
            for part in range(parts):
                copy(carry + SIZE * part * PANEL, dc_BS + SIZE * (b * S + part * M + unit), count)
            any_backward(draw, carry, dh, saved_E + SIZE * (item * B + b) * size, variant)
            store_parts(draw_BJ + SIZE * (b * J + unit), M, draw, 4, count)
            if reset_B != 0 and resets[b]:
                clear(carry, CARRY)
            out = dfirst_c_BS + SIZE * (b * S + unit)
            store_parts(out, M, carry, parts, count)
            if parts == 2:
                clear(out + SIZE * 2 * M, count)
    hold(work)
