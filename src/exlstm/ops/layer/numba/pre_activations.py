"""W x + R h + b of all gates in one step of a recurrent layer on a CPU, from weights in the order of torch.

W and R are read as they are. A few rows of the batch are multiplied four at a time, sums along rows of W; of many rows,
the numbers of one input lie side by side, so that a vector has those of 16 rows. An item of a kernel is a group of 16
units of a head. Rows of W, R and b are in the order (gate, head, unit).

B rows of the batch  D width of the input  K width of a head  M of all heads  J gates of all heads (4 M)  S width of c
N columns of a matrix  E numbers saved for the backward
"""

from typing import Any, NamedTuple

from exlstm.ops.linear.numba.maps import FLOAT32
from exlstm.ops.linear.numba.op import STEP_FLOAT32, tile_sums
from exlstm.runtime.cpu.blocks import add_parts
from exlstm.runtime.cpu.jit import helper
from exlstm.runtime.cpu.kernel import F32, Bools
from exlstm.runtime.cpu.matmul import product, transpose
from exlstm.runtime.cpu.memory import SIZE, at, clear, put, rows_at
from exlstm.runtime.cpu.tile import PANEL, PARTIAL_SUM_STEPS

ROWS = 4  # of the batch at a time, if they are few
MANY = 8  # rows from which on a vector of rows costs less than sums along four of them
SPAN = 64  # rows side by side: four long vectors
ROOM = 2 * PANEL  # numbers for the sums of two tiles
Array = Any  # a NumPy array inside Numba


class StepSizes(NamedTuple):
    """Sizes of a step, see the module's docstring."""

    B: int
    D: int
    K: int
    M: int
    J: int
    S: int
    E: int


class StepInputs(NamedTuple):
    """Addresses of what the gates of a step are computed from."""

    x_BD: F32
    w_JD: F32
    r_JK: F32
    b_J: F32
    more_b_J: F32
    reset_B: Bools
    h_BM: F32


@helper(inline=True)
def span_of(B: int) -> int:
    """Rows that lie side by side; 0: there are too few."""
    return 0 if B < MANY else min(B, SPAN)


@helper(inline=True)
def room_for_step(sizes: StepSizes, block: int) -> int:
    """Numbers that `turn_inputs` and `fill_gates` work in, blocks of so many numbers included."""
    span: int = span_of(sizes.B)
    if span == 0:
        return ROWS * block + ROOM
    return span * (block + 4 * PANEL) + -(-sizes.B // span) * span * (sizes.D + sizes.M)


@helper()
def turn_inputs(sizes: StepSizes, x: StepInputs, resets: Array, work: int, block: int) -> None:
    """Lays h and x of many rows side by side: [D + M, span] for every span of rows, h of a reset row as 0."""
    B, D, M = sizes.B, sizes.D, sizes.M
    span = span_of(B)
    if span == 0:
        return
    turned = work + SIZE * span * (block + 4 * PANEL)
    for b in range(0, B, span):
        rows = min(span, B - b)
        transpose(rows_at(turned, D, rows, span), rows_at(x.x_BD + SIZE * b * D, rows, D, D))
        h = turned + SIZE * D * span
        transpose(rows_at(h, M, rows, span), rows_at(x.h_BM + SIZE * b * M, rows, M, M))
        for i in range(rows):
            if x.reset_B != 0 and resets[b + i]:
                for n in range(M):
                    put(h, n * span + i, 0.0)
        turned += SIZE * span * (D + M)
    clear(work, span * (block + 4 * PANEL))  # sums of units that there are not


@helper()
def add_in_spans(
    sums: int, w: int, row: int, M: int, x: int, N: int, count: int, rows: int, span: int, first: bool
) -> None:
    """Adds W x of a group of units to sums [4 gates of 16 units, rows]. first: they are not read. x: [N, span]."""
    for g in range(4):
        out = rows_at(sums + SIZE * g * PANEL * span, count, rows, span)
        begin = w + SIZE * (g * M + row) * N
        for n in range(0, N, PARTIAL_SUM_STEPS):
            some = min(PARTIAL_SUM_STEPS, N - n)
            keep = 0.0 if first and n == 0 else 1.0
            product(
                out, rows_at(begin + SIZE * n, count, some, N), rows_at(x + SIZE * n * span, some, rows, span), keep
            )


@helper()
def add_by_four(
    block: int, size: int, w: int, row: int, M: int, x: int, x_row: int, N: int, count: int, batch: int, out: int
) -> None:
    """Adds W x of a group of units to `batch` rows' blocks, 1, 2 or 4. x_row: numbers from a row of x to the next.

    row: of W, for the first unit's first gate. N: columns of W. size: numbers of a block.
    """
    rows, lines = 4 // batch, N // STEP_FLOAT32
    for v in range(count):
        for g in range(0, 4, rows):
            tile_sums(FLOAT32, w, SIZE * N, 0, 0, 0, g * M + row + v, M, rows, x, SIZE * x_row, batch, lines,
                      lines * STEP_FLOAT32, N, out)  # fmt: skip
            for i in range(batch):
                for n in range(rows):
                    place = i * size + (g + n) * PANEL + v
                    put(block, place, at(block, place) + at(out, i * rows + n))


@helper(inline=True)
def rows_together(left: int, B: int) -> int:
    """How many of the rows that are left `fill_gates` takes at once."""
    span: int = span_of(B)
    if span > 0:
        return min(span, left)
    return 4 if left >= 4 else (2 if left >= 2 else 1)


@helper()
def fill_gates(
    sizes: StepSizes, x: StepInputs, resets: Array, unit: int, head: int, count: int, b: int, rows: int, work: int,
    block: int,
) -> None:  # fmt: skip
    """W x + R h + b of a group of units, in the first four parts of the blocks of rows b, b + 1, ..., at `work`.

    unit, head: the first ones' places in h. block: numbers of a block.
    """
    B, D, K, M = sizes.B, sizes.D, sizes.K, sizes.M
    span = span_of(B)
    if span > 0:
        sums = work + SIZE * span * block
        turned = sums + SIZE * span * 4 * PANEL + SIZE * b * (D + M)
        h = turned + SIZE * (D + head) * span
        add_in_spans(sums, x.r_JK, unit, M, h, K, count, rows, span, True)
        add_in_spans(sums, x.w_JD, unit, M, turned, D, count, rows, span, False)
        transpose(rows_at(work, rows, 4 * PANEL, block), rows_at(sums, 4 * PANEL, rows, span))
    else:
        out = work + SIZE * ROWS * block
        for i in range(rows):
            clear(work + SIZE * i * block, 4 * PANEL)
        add_by_four(work, block, x.r_JK, unit, M, x.h_BM + SIZE * (b * M + head), M, K, count, rows, out)
        for i in range(rows):
            if x.reset_B != 0 and resets[b + i]:
                clear(work + SIZE * i * block, 4 * PANEL)
        add_by_four(work, block, x.w_JD, unit, M, x.x_BD + SIZE * b * D, D, D, count, rows, out)
    for i in range(rows):
        here = work + SIZE * i * block
        if x.b_J != 0:
            add_parts(here, 4, x.b_J + SIZE * unit, M, count)
        if x.more_b_J != 0:
            add_parts(here, 4, x.more_b_J + SIZE * unit, M, count)
