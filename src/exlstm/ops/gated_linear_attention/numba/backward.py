"""Linear attention with a decay per channel on a CPU, backward: spans from the last to the first.

An item is a head of a row. S before every span is there; each block of S goes through the span once more, its states
along the way stay in cache, and its gradient goes back through them. S and its gradient are transposed here:
vectors lie along the keys.

B batch  T time  H heads  N spans  K key width  V value width  I either of them, where the decay is
"""

from typing import NamedTuple

import numpy as np
from numpy import float32

from exlstm.ops.gated_linear_attention.numba.forward import SPAN
from exlstm.ops.gated_linear_attention.numba.planes import (
    Inputs,
    Planes,
    Span,
    bonus_of,
    is_reset,
    length_of,
    parts_of,
    read_inputs,
    read_values,
    rounded_up,
)
from exlstm.ops.gated_linear_attention.numba.tiles import (
    DG,
    DG_V,
    DK,
    DQ,
    DV,
    KEY_PLANES,
    ROWS,
    VALUE_PLANES,
    WIDTH,
    K,
    O,
    Q,
    V,
    turn,
    turn_by_value,
    turn_strictly,
    turn_strictly_by_value,
)
from exlstm.runtime.cpu.jit import helper
from exlstm.runtime.cpu.kernel import F32, kernel
from exlstm.runtime.cpu.loops import REORDER, Number
from exlstm.runtime.cpu.memory import LINE_NUMBERS, SIZE, at, clear, copy, hold, line_of, put


class Gradients(NamedTuple):
    """Gradients of the inputs. dbonus: the share of every row."""

    dq_BTHK: F32
    dk_BTHK: F32
    dv_BTHV: F32
    dg_BTHI: F32
    dbonus_BHK: F32


class Matrices(NamedTuple):
    """Room for S and its gradient [V, K], both padded, for rows of zeros, and for the states of a block."""

    s: int
    ds: int
    zeros: int
    states: int


@helper()
def transpose(x: int, rows: int, columns: int, out: int, step: int) -> None:
    """The transpose of a contiguous matrix, whose rows begin `step` bytes after one another."""
    for first in range(0, columns, LINE_NUMBERS):  # as many rows of the result at a time as cache lines meet
        for i in range(rows):
            for j in range(first, min(first + LINE_NUMBERS, columns)):
                put(out + j * step, i, at(x, i * columns + j))


@helper()
def transpose_back(x: int, step: int, rows: int, columns: int, out: int) -> None:
    """The inverse of `transpose`."""
    for first in range(0, columns, LINE_NUMBERS):
        for i in range(rows):
            for j in range(first, min(first + LINE_NUMBERS, columns)):
                put(out, i * columns + j, at(x + j * step, i))


@helper()
def turn_block(x: Inputs, count: int, s: int, ds: int, p: Planes, states: int, steps: int) -> None:
    """A block of S through some steps and its gradient back. Addresses of planes are those of the block."""
    if x.bonus_HK == 0 and not x.by_value:
        turn(count, s, ds, p.keys, p.k_step, p.k_plane, p.values, p.v_step, p.v_plane, states, steps)
    elif x.bonus_HK == 0:
        turn_by_value(count, s, ds, p.keys, p.k_step, p.k_plane, p.values, p.v_step, p.v_plane, states, steps)
    elif not x.by_value:
        turn_strictly(count, s, ds, p.keys, p.k_step, p.k_plane, p.values, p.v_step, p.v_plane, states, steps)
    else:
        turn_strictly_by_value(count, s, ds, p.keys, p.k_step, p.k_plane, p.values, p.v_step, p.v_plane, states, steps)


@helper()
def block_backward(x: Inputs, span: Span, count: int, m: Matrices, p: Planes, place: int) -> None:
    """A block of S through a span. place: of its first number in the matrices. m, p: at the block."""
    end = span.steps
    while end > 0:
        start = end - 1
        while start > 0 and not is_reset(x, span.row, span.begin + start):
            start -= 1
        fresh = is_reset(x, span.row, span.begin + start)
        here = Planes(p.keys + start * p.k_step, p.k_step, p.k_plane, p.values + start * p.v_step, p.v_step, p.v_plane)
        turn_block(x, count, m.zeros if fresh else m.s + place, m.ds + place, here, m.states, end - start)
        if fresh:
            for row in range(ROWS):
                clear(m.ds + place + row * p.k_step, count * WIDTH)
        end = start


@helper(REORDER)
def add_scaled(x: int, y: int, factor: Number, out: int, count: int) -> None:
    """out += factor x y"""
    for n in range(count):
        put(out, n, at(out, n) + factor * at(x, n) * at(y, n))


@helper(REORDER)
def add_scaled_row(x: int, factor: Number, out: int, count: int) -> None:
    """out += factor x"""
    for n in range(count):
        put(out, n, at(out, n) + factor * at(x, n))


@helper(REORDER)
def dot(x: int, y: int, count: int) -> Number:
    """The sum of x y."""
    total = float32(0.0)
    for n in range(count):
        total += at(x, n) * at(y, n)
    return total


@helper()
def bonus_backward(x: Inputs, span: Span, p: Planes, dbonus: int) -> None:
    """Gradients through what a step reads of itself, (q . (u k)) v."""
    u = x.bonus_HK + SIZE * span.head * x.K
    for t in range(span.steps):
        key, value = p.keys + t * p.k_step, p.values + t * p.v_step
        q, k, v, do = key + Q * p.k_plane, key + K * p.k_plane, value + V * p.v_plane, value + O * p.v_plane
        weight = dot(do, v, x.V)
        add_scaled(u, k, weight, key + DQ * p.k_plane, x.K)
        add_scaled(u, q, weight, key + DK * p.k_plane, x.K)
        add_scaled(q, k, weight, dbonus, x.K)
        add_scaled_row(do, bonus_of(x, span, p, t), value + DV * p.v_plane, x.V)


@helper()
def write_gradients(x: Inputs, span: Span, p: Planes, out: Gradients) -> None:
    """Rows of the gradients of a span."""
    for t in range(span.steps):
        place = (span.row * x.T + span.begin + t) * x.H + span.head
        key, value = p.keys + t * p.k_step, p.values + t * p.v_step
        copy(out.dq_BTHK + SIZE * place * x.K, key + DQ * p.k_plane, x.K)
        copy(out.dk_BTHK + SIZE * place * x.K, key + DK * p.k_plane, x.K)
        copy(out.dv_BTHV + SIZE * place * x.V, value + DV * p.v_plane, x.V)
        copy(out.dg_BTHI + SIZE * place * x.I, (value + DG_V * p.v_plane) if x.by_value else key + DG * p.k_plane, x.I)


@helper()
def span_backward(x: Inputs, span: Span, m: Matrices, p: Planes, do_BTHV: int, dbonus: int) -> None:
    """Gradients of a span in their planes; ds becomes that of S before it."""
    count, steps = parts_of(x.K), p.k_plane // p.k_step
    read_inputs(x, False, span, p)
    read_values(do_BTHV, False, x, span, O, p)
    clear(p.keys + DQ * p.k_plane, 3 * steps * p.k_step // SIZE)
    clear(p.values + DV * p.v_plane, 2 * steps * p.v_step // SIZE)
    # the planes of some keys stay in the first cache while all values pass
    for column in range(0, p.k_step // SIZE, count * WIDTH):
        for row in range(0, p.v_step // SIZE, ROWS):
            block = Planes(p.keys + SIZE * column, p.k_step, p.k_plane, p.values + SIZE * row, p.v_step, p.v_plane)
            block_backward(x, span, count, m, block, row * p.k_step + SIZE * column)
    if x.bonus_HK != 0:
        bonus_backward(x, span, p, dbonus)


@kernel()
def backward_items(
    first: int,
    last: int,
    x: Inputs,
    borders_NBHKV: F32,
    N: int,
    do_BTHV: F32,
    dafter_BHKV: F32,
    ds_BHKV: F32,
    out: Gradients,
) -> None:
    """Items of all gradients. borders: S before every span."""
    count, most = parts_of(x.K), min(SPAN, x.T)
    wide, rows = rounded_up(x.K, count * WIDTH), rounded_up(x.V, ROWS)
    planes, matrix = KEY_PLANES * most * wide + VALUE_PLANES * most * rows, SIZE * x.K * x.V
    numbers = planes + (2 * rows + ROWS) * wide + (most + 1) * ROWS * count * WIDTH
    memory = np.empty(numbers + LINE_NUMBERS, float32)
    s = line_of(memory)
    ds = s + SIZE * rows * wide
    zeros = ds + SIZE * rows * wide
    states = zeros + SIZE * ROWS * wide
    keys = states + SIZE * (most + 1) * ROWS * count * WIDTH
    p = Planes(
        keys, SIZE * wide, SIZE * most * wide, keys + SIZE * KEY_PLANES * most * wide, SIZE * rows, SIZE * most * rows
    )
    m = Matrices(s, ds, zeros, states)
    for item in range(first, last):
        row, dbonus = item // x.H, out.dbonus_BHK + SIZE * item * x.K
        length = length_of(x, row)
        clear(s, (2 * rows + ROWS) * wide)
        transpose(dafter_BHKV + item * matrix, x.K, x.V, ds, p.k_step)
        if x.bonus_HK != 0:
            clear(dbonus, x.K)
        clear(keys, planes)
        for begin in range(length, x.T, most):
            write_gradients(x, Span(row, item % x.H, begin, min(most, x.T - begin), 0, x.V), p, out)
        for number in range((length + SPAN - 1) // SPAN - 1, -1, -1):
            span = Span(row, item % x.H, number * SPAN, min(SPAN, length - number * SPAN), 0, x.V)
            transpose(borders_NBHKV + (number * x.B * x.H + item) * matrix, x.K, x.V, s, p.k_step)
            span_backward(x, span, m, p, do_BTHV, dbonus)
            write_gradients(x, span, p, out)
        transpose_back(ds, p.k_step, x.K, x.V, ds_BHKV + item * matrix)
    hold(memory)
