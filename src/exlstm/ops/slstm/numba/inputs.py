"""The input projection of the sLSTM inside its scan, and its gradients.

The scan computes the pre-activations of some steps at a time, in room that stays in a core's cache: they are as many
numbers as four times the output, and writing them to memory and reading them again takes longer than the product.

W of a head is packed for this: panels of 64 columns, the four gates of 16 units, as `blocks` has them. Gates i and f
may be of another input than z and o. A head reads all numbers of an input, or its own.

B batch  T time  M rows and steps  D width of an input  H heads  V head width  G gates: i, f, z, o  N inputs of a head
U groups of 16 units  P panels  Q columns of all panels
"""

from typing import Any, NamedTuple

import numpy as np
from numpy import float32

from exlstm.ops.slstm.numba.recurrent import Groups
from exlstm.runtime.cpu.blocks import add16, width
from exlstm.runtime.cpu.jit import helper
from exlstm.runtime.cpu.kernel import F32, I64, F32Rows, kernel
from exlstm.runtime.cpu.matmul import product, transpose
from exlstm.runtime.cpu.memory import SIZE, address_of, at, clear, copy, hold, put, rows_at, tensor_at
from exlstm.runtime.cpu.tile import PANEL, PARTIAL_SUM_STEPS

COLUMNS = 4 * PANEL  # of a panel
ROWS = 128  # rows and steps of a gradient at a time: a sum of weights' gradients is short, too

Array = Any  # a NumPy array inside Numba


class Steps(NamedTuple):
    """Where steps of a sequence are: numbers from a row of the batch to the next, and from a step to the next."""

    row: int
    step: int


class Inputs(NamedTuple):
    """Inputs that a scan projects. apart: numbers from the inputs of a head to those of the next, 0 if they share them.

    steps: that are projected at a time, 0 if nothing is. if_BTD, zo_BTD: inputs of the gates i, f and of z, o.
    places: of both.
    """

    D: int
    places: Steps
    N: int
    apart: int
    steps: int
    P: int
    Q: int
    if_BTD: F32Rows
    zo_BTD: F32Rows
    panels_P: F32
    bias_Q: F32


NOTHING = Inputs(0, Steps(0, 0), 0, 0, 0, 0, 0, None, None, None, None)


class Places(NamedTuple):
    """Where rows of W and biases are: rows from a head to the next, and from a gate to the next."""

    head: int
    gate: int


@kernel(G=4)
def pack_inputs(
    first: int, last: int, H: int, V: int, N: int, Q: int, places: Places, w_HGVN: F32Rows, b_HGV: F32Rows,
    panels_QN: F32, bias_Q: F32,
) -> None:  # fmt: skip
    """Panels [N, 64] of W and b, an item for 16 units of a head. Columns beyond V are zeros."""
    units = -(-V // PANEL)
    for item in range(first, last):
        head, u = item // units, item % units
        panel, bias, count = panels_QN + SIZE * item * COLUMNS * N, bias_Q + SIZE * item * COLUMNS, width(V, u)
        if count < PANEL:
            clear(panel, COLUMNS * N)
        clear(bias, COLUMNS)
        for g in range(4):
            row, column = head * places.head + g * places.gate + u * PANEL, SIZE * g * PANEL
            transpose(rows_at(panel + column, N, count, COLUMNS), rows_at(w_HGVN + SIZE * row * N, count, N, N))
            if b_HGV != 0:
                copy(bias + column, b_HGV + SIZE * row, count)


@helper()
def project(out: int, x: Inputs, head: int, own: Groups, lengths: Array, row0: int, count: int, t: int, T: int) -> None:
    """Pre-activations of steps t, t + 1, ... of some rows of the batch, [row, steps, U, 64]."""
    steps, apart, before = min(x.steps, T - t), (own.end - own.begin) * COLUMNS, head * own.all + own.begin
    columns = COLUMNS if x.if_BTD == x.zo_BTD else COLUMNS // 2
    for u in range(before, head * own.all + own.end):
        panel = x.panels_P + SIZE * u * COLUMNS * x.N
        for k in range(0, x.N, PARTIAL_SUM_STEPS):
            some = min(PARTIAL_SUM_STEPS, x.N - k)
            for row in range(count):
                if t >= lengths[row0 + row]:
                    continue
                here = out + SIZE * (row * x.steps * apart + (u - before) * COLUMNS)
                place = SIZE * ((row0 + row) * x.places.row + t * x.places.step + head * x.apart + k)
                for step in range(steps if k == 0 else 0):
                    copy(here + SIZE * step * apart, x.bias_Q + SIZE * u * COLUMNS, COLUMNS)
                for column in range(0, COLUMNS, columns):
                    source = x.if_BTD if column == 0 else x.zo_BTD
                    product(
                        rows_at(here + SIZE * column, steps, columns, apart),
                        rows_at(source + place, steps, some, x.places.step),
                        rows_at(panel + SIZE * (k * COLUMNS + column), some, columns, COLUMNS),
                        1.0,
                    )


class InputSizes(NamedTuple):
    """Sizes of the gradients of a projection. apart: as in `Inputs`. shared: all gates have the same input."""

    B: int
    T: int
    D: int
    H: int
    V: int
    N: int
    apart: int
    shared: bool


@helper()
def row_of(places: Places, half: int, j: int, V: int) -> int:
    """The row of W of column j of the two gates i, f or z, o of a head; half: 2 head, or 2 head + 1 for z, o."""
    return half // 2 * places.head + (half % 2 * 2 + j // V) * places.gate + j % V


@kernel(G=4)
def input_gradients(
    first: int, last: int, sizes: InputSizes, places: Places, draw_BTHGV: F32, w_HGVN: F32Rows, dif_BTD: F32,
    dzo_BTD: F32,
) -> None:  # fmt: skip
    """Gradients of both inputs, an item for some rows and steps; dzo is not written if the input is shared."""
    B, T, D, H, V, N, apart, shared = sizes
    work = np.empty(PARTIAL_SUM_STEPS * COLUMNS, float32)
    weights = address_of(work)
    for item in range(first, last):
        m = item * ROWS
        rows = min(ROWS, B * T - m)
        for half in range(2 * H):
            head, of_zo = half // 2, half % 2
            dx = (dzo_BTD if of_zo and not shared else dif_BTD) + SIZE * (m * D + head * apart)
            is_first = (apart > 0 or head == 0) and (of_zo == 0 or not shared)
            for k in range(0, 2 * V, PARTIAL_SUM_STEPS):
                some = min(PARTIAL_SUM_STEPS, 2 * V - k)
                draw = rows_at(draw_BTHGV + SIZE * ((m * 2 * H + half) * 2 * V + k), rows, some, 4 * H * V)
                for n in range(0, N, COLUMNS):
                    columns = min(COLUMNS, N - n)
                    for i in range(some):
                        row = row_of(places, half, k + i, V)
                        copy(weights + SIZE * i * COLUMNS, w_HGVN + SIZE * (row * N + n), columns)
                    product(
                        rows_at(dx + SIZE * n, rows, columns, D),
                        draw,
                        rows_at(weights, some, columns, COLUMNS),
                        0.0 if is_first and k == 0 else 1.0,
                    )
    hold(work)


@helper()
def add_rows(total: int, x: int, count: int, apart: int, rows: int) -> None:
    """Adds rows of x, `apart` numbers after one another, to the total of so many columns."""
    whole = count // PANEL * PANEL
    for m in range(rows):
        here = x + SIZE * m * apart
        for j in range(0, whole, PANEL):
            add16(total + SIZE * j, here + SIZE * j)
        for j in range(whole, count):
            put(total, j, at(total, j) + at(here, j))


@kernel(G=4)
def weight_gradients(
    first: int,
    last: int,
    sizes: InputSizes,
    places: Places,
    lengths_B: I64,
    draw_BTHGV: F32,
    steps: Steps,
    if_BTD: F32Rows,
    zo_BTD: F32Rows,
    dw_HGVN: F32Rows,
    db_HGV: F32Rows,
) -> None:
    """Gradients of W and b, an item for up to 64 columns of two gates of a head. Padding is not read."""
    B, T, D, H, V, N, apart, _ = sizes
    blocks, lengths = -(-2 * V // COLUMNS), tensor_at(lengths_B, B, np.int64)
    work = np.empty(2 * ROWS * COLUMNS + COLUMNS, float32)
    turned = address_of(work)
    inputs = turned + SIZE * ROWS * COLUMNS
    total = inputs + SIZE * ROWS * COLUMNS
    for item in range(first, last):
        half, j = item // blocks, item % blocks * COLUMNS
        count = min(COLUMNS, 2 * V - j)
        split = min(count, V - j) if j < V else count  # where the second gate begins
        x = (zo_BTD if half % 2 else if_BTD) + SIZE * (half // 2 * apart)
        for begin, end in ((0, split), (split, count)):
            clear(db_HGV + SIZE * row_of(places, half, j + begin, V), end - begin)
        for m in range(0, B * T, ROWS):
            rows = min(ROWS, B * T - m)
            draw = draw_BTHGV + SIZE * ((m * 2 * H + half) * 2 * V + j)
            transpose(rows_at(turned, count, rows, ROWS), rows_at(draw, rows, count, 4 * H * V))
            clear(total, count)
            add_rows(total, draw, count, 4 * H * V, rows)
            for begin, end in ((0, split), (split, count)):
                add_rows(db_HGV + SIZE * row_of(places, half, j + begin, V), total + SIZE * begin, end - begin, 0, 1)
            for n in range(0, N, COLUMNS):
                columns = min(COLUMNS, N - n)
                for i in range(rows):
                    here, step = inputs + SIZE * i * COLUMNS, m + i
                    if step % T < lengths[step // T]:
                        copy(here, x + SIZE * (step // T * steps.row + step % T * steps.step + n), columns)
                    else:
                        clear(here, columns)
                for begin, end in ((0, split), (split, count)):
                    product(
                        rows_at(dw_HGVN + SIZE * (row_of(places, half, j + begin, V) * N + n), end - begin, columns, N),
                        rows_at(turned + SIZE * begin * ROWS, end - begin, rows, ROWS),
                        rows_at(inputs, rows, columns, COLUMNS),
                        0.0 if m == 0 else 1.0,
                    )
    hold(work)
