"""Linear attention with a decay per channel on a CPU, forward: a loop over steps with S in registers.

An item is a head of a row and a tile of the values, whose columns of S meet no others. It goes through spans of steps.
Its q, k, v and e^g come to planes in cache, padded; every block of S goes through the span, and o is the sum of what
they read. One step is a span like any other, and the state of a decoding step is read once and written once.

B batch  T time  H heads  N spans  K key width  V value width
"""

import numpy as np
from numpy import float32

from exlstm.ops.gated_linear_attention.numba.planes import (
    Inputs,
    Planes,
    Span,
    bonus_of,
    is_reset,
    length_of,
    read_inputs,
    read_row,
    rounded_up,
    vectors_of,
    write_row,
)
from exlstm.ops.gated_linear_attention.numba.tiles import (
    KEY_PLANES,
    ROWS,
    VALUE_PLANES,
    WIDTH,
    O,
    V,
    advance,
    advance_by_value,
    advance_strictly,
    advance_strictly_by_value,
)
from exlstm.runtime.cpu.jit import helper
from exlstm.runtime.cpu.kernel import F32, Floats, kernel
from exlstm.runtime.cpu.memory import LINE_NUMBERS, SIZE, at, clear, copy, hold, line_of, put

SPAN = 64  # steps: the states of a block along the way, which the backward holds, are 32 KB


@helper()
def begin_reads(x: Inputs, span: Span, p: Planes, strict: bool) -> None:
    """o becomes what a step reads of itself by the bonus, or zeros."""
    for t in range(span.steps):
        o, v = p.values + O * p.v_plane + t * p.v_step, p.values + V * p.v_plane + t * p.v_step
        if not strict:
            clear(o, p.v_step // SIZE)
            continue
        weight = bonus_of(x, span, p, t)
        for n in range(p.v_step // SIZE):
            put(o, n, weight * at(v, n))


@helper()
def advance_tile(x: Inputs, count: int, s: int, p: Planes, start: int, end: int) -> None:
    """A tile of S through steps start to end - 1 of a span."""
    steps, values = end - start, p.values + start * p.v_step
    for row in range(0, rounded_up(x.K, ROWS), ROWS):
        block, keys = s + row * p.v_step, p.keys + start * p.k_step + SIZE * row
        if x.bonus_HK == 0 and not x.by_value:
            advance(count, block, keys, p.k_step, p.k_plane, values, p.v_step, p.v_plane, steps)
        elif x.bonus_HK == 0:
            advance_by_value(count, block, keys, p.k_step, p.k_plane, values, p.v_step, p.v_plane, steps)
        elif not x.by_value:
            advance_strictly(count, block, keys, p.k_step, p.k_plane, values, p.v_step, p.v_plane, steps)
        else:
            advance_strictly_by_value(count, block, keys, p.k_step, p.k_plane, values, p.v_step, p.v_plane, steps)


@helper()
def advance_span(x: Inputs, span: Span, count: int, s: int, p: Planes) -> None:
    """A tile of S through a span, cleared at every reset: what is forgotten may be infinite."""
    start = 0
    while start < span.steps:
        if is_reset(x, span.row, span.begin + start):
            clear(s, rounded_up(x.K, ROWS) * p.v_step // SIZE)
        end = start + 1
        while end < span.steps and not is_reset(x, span.row, span.begin + end):
            end += 1
        advance_tile(x, count, s, p, start, end)
        start = end


@helper()
def copy_tile(x: Inputs, s_KV: int, s: int, step: int, span: Span, out: bool) -> None:
    """Columns of S [K, V] to a tile whose rows are `step` bytes apart, or out of it."""
    for row in range(x.K):
        here = s_KV + SIZE * (row * x.V + span.first)
        if out:
            copy(here, s + row * step, span.width)
        else:
            read_row(here, False, s + row * step, span.width, step // SIZE)


@helper()
def write_reads(x: Inputs, span: Span, p: Planes, o_BTHV: int, bf16: bool) -> None:
    """Rows of o."""
    size = 2 if bf16 else SIZE
    for t in range(span.steps):
        here = ((span.row * x.T + span.begin + t) * x.H + span.head) * x.V + span.first
        write_row(p.values + O * p.v_plane + t * p.v_step, o_BTHV + size * here, bf16, span.width)


@kernel()
def forward_items(
    first: int,
    last: int,
    x: Inputs,
    s_BHKV: F32,
    o_BTHV: Floats,
    after_BHKV: F32,
    borders_NBHKV: F32,
    N: int,
    bf16: bool,
) -> None:
    """Items of o and of S after the last step; N: how many states are kept for the backward, before every span."""
    count, most, rows = vectors_of(x.V), min(SPAN, x.T), rounded_up(x.K, ROWS)
    tile, matrix = count * WIDTH, SIZE * x.K * x.V
    cuts = (x.V + tile - 1) // tile
    memory = np.empty(KEY_PLANES * most * rows + VALUE_PLANES * most * tile + rows * tile + LINE_NUMBERS, float32)
    s = line_of(memory)
    values = s + SIZE * rows * tile
    p = Planes(
        values + SIZE * VALUE_PLANES * most * tile,
        SIZE * rows,
        SIZE * most * rows,
        values,
        SIZE * tile,
        SIZE * most * tile,
    )
    for item in range(first, last):
        head, channel = item // cuts, item % cuts * tile
        row, length, width = head // x.H, length_of(x, head // x.H), min(tile, x.V - channel)
        state = Span(row, head % x.H, 0, 0, channel, width)
        clear(s, rows * tile)
        copy_tile(x, s_BHKV + head * matrix, s, p.v_step, state, False)
        for begin in range(0, length, SPAN):
            if N > 0:
                place = (begin // SPAN * x.B * x.H + head) * matrix
                copy_tile(x, borders_NBHKV + place, s, p.v_step, state, True)
            span = Span(row, head % x.H, begin, min(SPAN, length - begin), channel, width)
            read_inputs(x, bf16, span, p)
            begin_reads(x, span, p, x.bonus_HK != 0)
            advance_span(x, span, count, s, p)
            write_reads(x, span, p, o_BTHV, bf16)
        copy_tile(x, after_BHKV + head * matrix, s, p.v_step, state, True)
        clear(p.values + O * p.v_plane, most * tile)
        for begin in range(length, x.T, most):
            span = Span(row, head % x.H, begin, min(most, x.T - begin), channel, width)
            write_reads(x, span, p, o_BTHV, bf16)
    hold(memory)
