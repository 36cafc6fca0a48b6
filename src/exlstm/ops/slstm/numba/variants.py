"""Variants of the sLSTM cell: other input gates and cell inputs, and no normalizer, around the usual step of 16 units.

A variant is one integer, the same for a whole call, so that the usual cell takes none of these branches. The cell of
the LSTM is one, too: it has the same gates in the same places, c alone, and scans like any other.
"""

from typing import Any

from exlstm.ops.gates import INPUT_GATES, SMALL, InputGate
from exlstm.ops.lstm.numba.cell import SAVED as LSTM_SAVED
from exlstm.ops.lstm.numba.cell import cell as lstm_cell
from exlstm.ops.lstm.numba.cell import cell_backward as lstm_cell_backward
from exlstm.ops.slstm.numba.activations import KINDS, apply_activation
from exlstm.ops.slstm.numba.gates import SAVED, SAVED_MORE, gates, gates_backward, gates_of_activated
from exlstm.ops.slstm.reference import SHUT, CellActivation
from exlstm.runtime.cpu.blocks import Units, simd16
from exlstm.runtime.cpu.jit import helper
from exlstm.runtime.cpu.memory import SIZE
from exlstm.runtime.cpu.simd import SimdValue, exp, log_sigmoid, sigmoid, where
from exlstm.runtime.cpu.tile import PANEL

EXP, SIGMOID, SOFTPLUS, RELU = (INPUT_GATES.index(gate) for gate in ("exp", "sigmoid", "softplus", "relu"))
# the bits of a variant; from INPUT_GATE on the input gate's place in INPUT_GATES, from ACTIVATION on that in KINDS
EXP_FORGET, NO_NORM, INPUT_GATE, ACTIVATION = 1, 2, 4, 32
LSTM = -1


def variant_of(input_gate: InputGate, exp_forget: bool, normalize: bool, cell_activation: CellActivation) -> int:
    """The variant of these options, as one integer: several arguments would take a kernel longer to read."""
    cell = INPUT_GATE * INPUT_GATES.index(input_gate) + ACTIVATION * KINDS.index(cell_activation)
    return EXP_FORGET * exp_forget + NO_NORM * (not normalize) + cell


def saved_size(variant: int) -> int:
    """Numbers in a block of `saved`."""
    if variant == LSTM:
        return LSTM_SAVED
    return SAVED if variant < NO_NORM else SAVED_MORE


saved_size_in_kernels: Any = helper()(saved_size)


def log(x: SimdValue) -> SimdValue:
    """log x of a normal positive number: x = 2^n y, y within a factor of sqrt 2, and 2 artanh((y - 1) / (y + 1))."""
    builder, bits = x.builder, x.bits()
    # shifted by the bits of 1 / sqrt 2, so that n is the exponent
    more = builder.add(bits.value, bits.constant(0x3F800000 - 0x3F3504F3))
    exponent = builder.sub(builder.ashr(more, bits.constant(23)), bits.constant(127))
    y = x.with_bits(builder.sub(bits.value, builder.shl(exponent, bits.constant(23))))
    n = SimdValue(builder, builder.sitofp(exponent, x.value.type))
    s = (y - 1.0) / (y + 1.0)
    s2 = s * s
    p = s2 * (1 / 11) + 1 / 9
    for odd in (7, 5, 3):
        p = p * s2 + 1 / odd
    # x - x: NaN and infinity become NaN
    return (s + s * s2 * p) * 2.0 + n * -2.12194440e-4 + n * 0.693359375 + (x - x)


@simd16
def sigmoid_gate(block: Units, saved: Units) -> None:
    """Sigmoid gate: i becomes log i, and its slope is saved."""
    i = block[0]
    block[0], saved[7] = log_sigmoid(i), sigmoid(-i)


@simd16
def softplus_gate(block: Units, saved: Units) -> None:
    """Softplus gate. Far below zero log log(1 + e^i) is i to all digits of float32."""
    i = block[0]
    near = where(i < -15.0, -15.0, i)
    softplus = -log_sigmoid(-near)
    block[0] = where(i < -15.0, i, log(softplus))
    saved[7] = where(i < -15.0, 1.0, sigmoid(near) / softplus)


@simd16
def relu_gate(block: Units, saved: Units, square: SimdValue) -> None:
    """ReLU gate, squared or not: shut at and below zero, without a gradient there."""
    i = block[0]
    opening, shut = where(i < SMALL, SMALL, i), -i >= 0.0
    log_i, slope = log(opening), 1.0 / opening
    block[0] = where(shut, SHUT, where(square, 2.0 * log_i, log_i))
    saved[7] = where(shut, 0.0, where(square, 2.0 * slope, slope))


@simd16
def exp_gate(block: Units, saved: Units) -> None:
    """Exponential gate: i is log i, with slope 1."""
    i = block[0]
    saved[7] = SimdValue(i.builder, i.constant(1.0))


@helper()
def apply_input_gate(block: int, saved: int, variant: int) -> None:
    """The input gate of a variant: i of a block becomes log i."""
    gate = variant % ACTIVATION // INPUT_GATE
    if gate == EXP:
        exp_gate(block, saved)
    elif gate == SIGMOID:
        sigmoid_gate(block, saved)
    elif gate == SOFTPLUS:
        softplus_gate(block, saved)
    else:
        relu_gate(block, saved, gate != RELU)


@simd16
def without_norm(block: Units, h: Units, saved: Units) -> None:
    """h without the normalizer, after a usual step. e^m as two factors overflows only at twice the m."""
    root = exp(block[6] * 0.5)
    saved[8] = root
    h[0] = saved[5] * (block[4] * root * root)


@simd16
def tanh_slope(saved: Units) -> None:
    """The slope of tanh at the cell input, which a step has saved as phi(z)."""
    saved[9] = 1.0 - saved[4] * saved[4]


def backward(draw: Units, carry: Units, dh: Units, saved: Units, normalize: bool) -> None:
    """As `gates_backward`, for a step with another input gate or cell input or without the normalizer."""
    c0, n0, decay, write, cell, gate, slope, slope_i, root, slope_z = (saved[part] for part in range(10))
    c, n, h, dc, dn = decay * c0 + write * cell, decay * n0 + write, dh[0], carry[0], carry[1]
    if normalize:
        read, dmemory = c / n, h * gate / n
        # a ReLU that is nearly shut has a large slope: where c is this step's alone, the difference has to be exactly 0
        dwrite = (cell - read) * dmemory + (cell * dc + dn)
        dc, dn = dc + dmemory, dn - dmemory * read
    else:
        read, dmemory = c * root * root, h * gate * root * root
        dc = dc + dmemory
        dwrite = cell * dc + dn
    draw[0] = dwrite * write * slope_i
    draw[1] = (c0 * dc + n0 * dn) * decay * slope
    draw[2] = write * dc * slope_z
    draw[3] = h * read * gate * (1.0 - gate)
    carry[0], carry[1] = decay * dc, decay * dn


@simd16
def with_norm_backward(draw: Units, carry: Units, dh: Units, saved: Units) -> None:
    """Backward of a step with any input gate and the normalizer."""
    backward(draw, carry, dh, saved, normalize=True)


@simd16
def without_norm_backward(draw: Units, carry: Units, dh: Units, saved: Units) -> None:
    """Backward of a step with any input gate, without the normalizer."""
    backward(draw, carry, dh, saved, normalize=False)


@helper()
def any_step(block: int, h: int, saved: int, variant: int) -> None:
    """As `gates`, for any variant."""
    if variant == LSTM:
        lstm_cell(block, block + SIZE * 4 * PANEL, h, saved)
        return
    if variant >= NO_NORM:
        apply_input_gate(block, saved, variant)
    if variant >= ACTIVATION:
        apply_activation(block, saved, variant // ACTIVATION)
        gates_of_activated(block, h, saved, variant & EXP_FORGET != 0)
    else:
        gates(block, h, saved, variant & EXP_FORGET != 0)
        if variant >= NO_NORM:
            tanh_slope(saved)
    if variant & NO_NORM != 0:
        without_norm(block, h, saved)


@helper()
def any_backward(draw: int, carry: int, dh: int, saved: int, variant: int) -> None:
    """As `gates_backward`, for any variant."""
    if variant == LSTM:
        lstm_cell_backward(draw, carry, dh, saved)
    elif variant < NO_NORM:
        gates_backward(draw, carry, dh, saved)
    elif variant & NO_NORM == 0:
        with_norm_backward(draw, carry, dh, saved)
    else:
        without_norm_backward(draw, carry, dh, saved)
