"""What the sLSTM's other input gates, and no normaliser, add to a step of 16 units, before it and behind it.

The usual cell has none of this in its way: a kernel asks for it by a number that is the same in all of a call.
"""

from typing import Any

from exlstm.ops.gates import INPUT_GATES, SMALL, InputGate
from exlstm.ops.slstm.numba.gates import SAVED, SAVED_MORE, Block, gates, gates_backward, simd16
from exlstm.ops.slstm.reference import SHUT
from exlstm.runtime.cpu.jit import helper
from exlstm.runtime.cpu.simd import SimdValue, exp, log_sigmoid, sigmoid, where

EXP, SIGMOID, SOFTPLUS, RELU = (INPUT_GATES.index(gate) for gate in ("exp", "sigmoid", "softplus", "relu"))


NO_NORM, GATE = 2, 4  # places of a variant's parts: the exponential forget gate is 1, the normaliser's absence 2


def variant_of(input_gate: InputGate, exp_forget: bool, normalize: bool) -> int:
    """Which cell it is, as one number: on their way into a kernel several take longer."""
    return exp_forget + NO_NORM * (not normalize) + GATE * INPUT_GATES.index(input_gate)


def saved_size(variant: int) -> int:
    """Numbers of a block of `saved`."""
    return SAVED if variant < NO_NORM else SAVED_MORE


saved_size_in_kernels: Any = helper()(saved_size)


def log(x: SimdValue) -> SimdValue:
    """log x of a normal positive number: x = 2^n y, y within a factor of sqrt 2, and 2 artanh((y - 1) / (y + 1))."""
    builder, bits = x.builder, x.bits()
    # as if 1 / sqrt 2, whose bits these are, were 1: then n is the exponent
    more = builder.add(bits.value, bits.constant(0x3F800000 - 0x3F3504F3))
    exponent = builder.sub(builder.ashr(more, bits.constant(23)), bits.constant(127))
    y = x.with_bits(builder.sub(bits.value, builder.shl(exponent, bits.constant(23))))
    n = SimdValue(builder, builder.sitofp(exponent, x.value.type))
    s = (y - 1.0) / (y + 1.0)
    s2 = s * s
    p = s2 * (1 / 11) + 1 / 9
    for odd in (7, 5, 3):
        p = p * s2 + 1 / odd
    # what is no number stays none
    return (s + s * s2 * p) * 2.0 + n * -2.12194440e-4 + n * 0.693359375 + (x - x)


@simd16
def sigmoid_gate(block: Block, saved: Block) -> None:
    """i becomes log i, and its slope is saved."""
    i = block[0]
    block[0], saved[7] = log_sigmoid(i), sigmoid(-i)


@simd16
def softplus_gate(block: Block, saved: Block) -> None:
    """Far below zero log log(1 + e^i) is i to all digits of float32."""
    i = block[0]
    near = where(i < -15.0, -15.0, i)
    softplus = -log_sigmoid(-near)
    block[0] = where(i < -15.0, i, log(softplus))
    saved[7] = where(i < -15.0, 1.0, sigmoid(near) / softplus)


@simd16
def relu_gate(block: Block, saved: Block, square: SimdValue) -> None:
    """Shut at and below zero, and no gradient there."""
    i = block[0]
    opening, shut = where(i < SMALL, SMALL, i), -i >= 0.0
    log_i, slope = log(opening), 1.0 / opening
    block[0] = where(shut, SHUT, where(square, 2.0 * log_i, log_i))
    saved[7] = where(shut, 0.0, where(square, 2.0 * slope, slope))


@simd16
def exp_gate(block: Block, saved: Block) -> None:
    """i is log i."""
    i = block[0]
    saved[7] = SimdValue(i.builder, i.constant(1.0))


@helper()
def other_gate(block: int, saved: int, variant: int) -> None:
    """i of a block becomes log i."""
    gate = variant // GATE
    if gate == EXP:
        exp_gate(block, saved)
    elif gate == SIGMOID:
        sigmoid_gate(block, saved)
    elif gate == SOFTPLUS:
        softplus_gate(block, saved)
    else:
        relu_gate(block, saved, gate != RELU)


@simd16
def without_norm(block: Block, h: Block, saved: Block) -> None:
    """h without the normaliser, after a usual step; e^m in two factors reaches twice as far."""
    root = exp(block[6] * 0.5)
    saved[8] = root
    h[0] = saved[5] * (block[4] * root * root)


def backward(draw: Block, carry: Block, dh: Block, saved: Block, normalize: bool) -> None:
    """As `gates_backward`, of a step with another gate or without the normaliser."""
    c0, n0, decay, write, cell, gate, slope, slope_i, root = (saved[part] for part in range(9))
    c, n, h, dc, dn = decay * c0 + write * cell, decay * n0 + write, dh[0], carry[0], carry[1]
    if normalize:
        read, dmemory = c / n, h * gate / n
        # a ReLU that is all but shut has a large slope: what cancels has to cancel exactly where c is this cell's alone
        dwrite = (cell - read) * dmemory + (cell * dc + dn)
        dc, dn = dc + dmemory, dn - dmemory * read
    else:
        read, dmemory = c * root * root, h * gate * root * root
        dc = dc + dmemory
        dwrite = cell * dc + dn
    draw[0] = dwrite * write * slope_i
    draw[1] = (c0 * dc + n0 * dn) * decay * slope
    draw[2] = write * dc * (1.0 - cell * cell)
    draw[3] = h * read * gate * (1.0 - gate)
    carry[0], carry[1] = decay * dc, decay * dn


@simd16
def with_norm_backward(draw: Block, carry: Block, dh: Block, saved: Block) -> None:
    """The usual cell but for the input gate."""
    backward(draw, carry, dh, saved, normalize=True)


@simd16
def without_norm_backward(draw: Block, carry: Block, dh: Block, saved: Block) -> None:
    """Any input gate."""
    backward(draw, carry, dh, saved, normalize=False)


@helper()
def any_step(block: int, h: int, saved: int, variant: int) -> None:
    """As `gates`, of any cell."""
    if variant >= NO_NORM:
        other_gate(block, saved, variant)
    gates(block, h, saved, variant % NO_NORM == 1)
    if variant // NO_NORM % 2 == 1:
        without_norm(block, h, saved)


@helper()
def any_backward(draw: int, carry: int, dh: int, saved: int, variant: int) -> None:
    """As `gates_backward`, of any cell."""
    if variant < NO_NORM:
        gates_backward(draw, carry, dh, saved)
    elif variant // NO_NORM % 2 == 0:
        with_norm_backward(draw, carry, dh, saved)
    else:
        without_norm_backward(draw, carry, dh, saved)
