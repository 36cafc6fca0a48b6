"""Linear map y = x W^T + b of tens of rows of x and more, on a CPU: products of some rows of W with panels of x^T.

Each number of W meets all rows of a panel, in vectors, and each vector of x^T several rows of W. Weights of other kinds
become float32 first, some rows and columns at a time, which stay in cache for all panels. Sums go from the first column
to the last, in parts of one length: a row's result is the same in any number of rows.

M rows of x  K columns  N rows of W  L rows of x in a panel
"""

from typing import Any, NamedTuple

import numpy as np

from exlstm.ops.linear.formats import GROUP
from exlstm.ops.linear.numba.maps import (
    BFLOAT16,
    FLOAT32,
    INT4,
    INT8,
    MAP_BYTES,
    NONE,
    Map,
    map_at,
    map_of,
    number,
)
from exlstm.ops.linear.numba.tiles import LINE, STEPS, WIDTH, weights
from exlstm.runtime.cpu.bfloat16 import write_numbers
from exlstm.runtime.cpu.jit import helper
from exlstm.runtime.cpu.kernel import F32, Addresses, Constants, kernel
from exlstm.runtime.cpu.matmul import product, transpose
from exlstm.runtime.cpu.memory import SIZE, address_of, at, clear, hold, long_at, part, prefetch, put, row, rows_at
from exlstm.runtime.cpu.vectors import Vectors, inlined

PANEL = 64  # rows of x
ROWS = 64  # of W in a block
PART = 128  # columns that are summed before they join the others, for short sums round less: whole groups and lines
MOST = 1024  # rows of x whose results are held before they are written
STEP_BFLOAT16, STEP_INT8 = STEPS["bfloat16"], STEPS["int8"]


def padded(M: int) -> int:
    """Rows of x with those that fill the last vector."""
    return -(-M // WIDTH) * WIDTH


padded_in_kernels: Any = helper()(padded)


@kernel()
def pack_panels(first: int, last: int, M: int, K: int, x_MK: F32, panels: F32) -> None:
    """Panels of x^T, each [K, L]. What fills the last vectors is zero."""
    for item in range(first, last):
        m = PANEL * item
        rows = min(PANEL, M - m)
        out, L = panels + SIZE * m * K, padded_in_kernels(rows)
        if rows < L:
            clear(out, K * L)
        transpose(rows_at(out, K, rows, L), rows_at(x_MK + SIZE * m * K, rows, K, K))


def widened_line(kind: str) -> Any:
    """A function (line, scale, offset, out) that writes the weights of one line in float32."""

    @inlined(4)
    def body(builder: Any, line: Any, scale: Any, offset: Any, out: Any) -> None:
        v = Vectors(builder, WIDTH)
        for n in range(STEPS[kind] // WIDTH):
            x = weights(v, kind, line, n)
            if kind == "int8":
                x = x * v.number(scale)
            if kind == "int4":  # masked where they stand: too large by 16^n
                x = v.fma(x, v.number(scale) * (1.0 if n == 7 else 0.0625**n), v.number(offset))
            v.store(x, v.offset(out, SIZE * WIDTH * n))

    return body


line_of_bfloat16, line_of_int8, line_of_int4 = (widened_line(kind) for kind in ("bfloat16", "int8", "int4"))


@helper()
def widen_row(w: Map, n: int, K: int, k: int, columns: int, out: int) -> None:
    """Columns k, k + 1, ... of row n of W in float32, so many and those that fill a group of int4."""
    if w.kind == INT4:
        groups = (K + GROUP - 1) // GROUP
        for g in range(k // GROUP, (k + columns + GROUP - 1) // GROUP):
            place = n * groups + g
            prefetch(w.weight + LINE * (place + 1), 0)
            line_of_int4(
                w.weight + LINE * place, w.scale + SIZE * place, w.offset + SIZE * place, out + SIZE * (GROUP * g - k)
            )
        return
    step, size = (STEP_BFLOAT16, 2) if w.kind == BFLOAT16 else (STEP_INT8, 1)
    start, whole = w.weight + size * (n * K + k), columns // step * step
    for done in range(0, whole, step):
        # of what is next in this row: the rows of a block are too many streams for the processor to follow
        prefetch(start + size * (done + PART), 0)
        if w.kind == BFLOAT16:
            line_of_bfloat16(start + size * done, 0, 0, out + SIZE * done)
        else:
            line_of_int8(start + size * done, w.scale + SIZE * n, 0, out + SIZE * done)
    for done in range(whole, columns):
        value = number(w.kind, start, done)
        put(out, done, value * at(w.scale, n) if w.kind == INT8 else value)


class Spare(NamedTuple):
    """Addresses of room to work in: for results [ROWS, width], and for weights in float32 [ROWS, PART]."""

    width: int
    out: int
    weights: int


@helper()
def fill_block(w: Map, n: int, rows: int, M: int, K: int, panels: int, spare: Spare, y: int) -> None:
    """Results of rows n, n + 1, ... of W, so many."""
    for first in range(0, M, MOST):
        count, keep = min(MOST, M - first), 0.0
        if w.bias_kind != NONE:
            keep = 1.0
            for i in range(rows):
                bias = number(w.bias_kind, w.bias, n + i)
                for m in range(count):
                    put(spare.out, i * spare.width + m, bias)
        for k in range(0, K, PART):
            columns = min(PART, K - k)
            w_NK = rows_at(w.weight + SIZE * (n * K + k), rows, columns, K)
            if w.kind != FLOAT32:
                w_NK = rows_at(spare.weights, rows, columns, PART)
                for i in range(rows):
                    widen_row(w, n + i, K, k, columns, spare.weights + SIZE * i * PART)
            for m in range(first, first + count, PANEL):
                some = min(PANEL, M - m)
                out_NM, L = rows_at(spare.out + SIZE * (m - first), rows, some, spare.width), padded_in_kernels(some)
                product(out_NM, w_NK, rows_at(panels + SIZE * (m * K + k * L), columns, some, L), keep)
            keep = 1.0
        write_block(w, n, rows, first, count, spare, y)


@helper()
def write_block(w: Map, n: int, rows: int, first: int, count: int, spare: Spare, y: int) -> None:
    """The transpose of a block to the result, for some rows of x."""
    out_NM = rows_at(spare.out, rows, count, spare.width)
    if w.result_kind == FLOAT32:
        transpose(rows_at(y + SIZE * (first * w.rows + n), count, rows, w.rows), out_NM)
        return
    for m in range(0, count, PANEL):
        some = min(PANEL, count - m)
        y_MN = rows_at(spare.weights, some, rows, PART)
        transpose(y_MN, part(out_NM, 0, m, rows, some))
        for i in range(some):
            write_numbers(row(y_MN, i), y + 2 * ((first + m + i) * w.rows + n), True)


@kernel()
def map_blocks(first: int, last: int, M: int, K: int, panels: F32, num_maps: int, maps: Constants,
               results: Addresses) -> None:  # fmt: skip
    """Items of all maps: some rows of one W, with all rows of x."""
    width, n = min(MOST, padded_in_kernels(M)), num_maps - 1
    work = np.empty(ROWS * (width + PART), np.float32)
    spare = Spare(width, address_of(work), address_of(work) + SIZE * ROWS * width)
    for item in range(first, last):
        n = map_of(item, n, num_maps, maps)
        w, y = map_at(maps + MAP_BYTES * n), long_at(results + 8 * n)
        begin = (item - w.first_item) * w.item_rows
        end = min(w.rows, begin + w.item_rows)
        for i in range(begin, end, ROWS):
            fill_block(w, i, min(ROWS, end - i), M, K, panels, spare, y)
    hold(work)
