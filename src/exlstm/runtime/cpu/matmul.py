"""Products of matrices inside Numba kernels, the sums held in vector registers.

A tile is some rows of the result in some vectors of columns: one pass over the inner dimension, which reads vectors of
the right matrix and single numbers of the left one. So rows of the result and of the right matrix are contiguous; the
left matrix may be the transpose of such a one, which costs nothing, and `transpose` makes a right one. Sums go from the
first product to the last, whatever the tile: a number of the result depends on nothing but its row and its column.

Matrices are those of `memory.rows_at`, of sizes that fit the caches of one core.

M rows of the result  N columns  I inner dimension  L steps of a chunk, of both sides of a triangle
"""

from typing import Any

from llvmlite import ir  # type: ignore[import-untyped]
from numpy import float32

from exlstm.runtime.cpu.jit import helper
from exlstm.runtime.cpu.memory import SIZE, address_of, at, part, put
from exlstm.runtime.cpu.simd import FLOAT, WORD, SimdValue
from exlstm.runtime.cpu.vectors import LONG, Vectors, inlined, loop, register_width

Array = Any  # a float32 NumPy array inside Numba
VECTOR_WIDTH = register_width()
LINE = 16  # columns of a narrow tile
# columns of a wide one, of four rows: sixteen sums of 16 numbers, eight of 8 or sixteen of 4, and room for operands
WIDE = 64 if VECTOR_WIDTH == 16 else LINE
TALL = 8 if VECTOR_WIDTH == 16 else 4  # rows of a narrow tile: with fewer sums it would wait for each
STRIP = 16  # rows of a triangle that are computed alike, up to the last one's diagonal


def tile(rows: int, columns: int, masked: bool = False) -> Any:
    """A function (count, out, out_row, a, a_row, a_step, b, b_row, steps, keep): out = a b + keep out for such a tile.

    *_row: bytes from row to row. a_step: bytes from a number of a row to the next. masked: only `count` columns exist.
    """
    width = columns if masked else min(columns, VECTOR_WIDTH)
    offsets = range(0, columns * SIZE, width * SIZE)  # of the vectors of a row

    @inlined(10)
    def body(builder: Any, count: Any, out: Any, out_row: Any, a: Any, a_row: Any, a_step: Any, b: Any, b_row: Any,
             steps: Any, keep: Any) -> None:  # fmt: skip
        v = Vectors(builder, width)
        mask = v.first_places(count) if masked else None
        sums = [[v.variable(v.zeros()) for _ in offsets] for _ in range(rows)]
        places = [
            (v.offset(v.row(out, out_row, n), offset), total)
            for n, row in enumerate(sums)
            for offset, total in zip(offsets, row, strict=True)
        ]
        with loop(builder, LONG(0), steps, LONG(1)) as (step, _):
            right = v.offset(b, builder.mul(step, b_row))
            vectors = [v.load(v.offset(right, offset), mask) for offset in offsets]
            left = v.offset(a, builder.mul(step, a_step))
            for n, row in enumerate(sums):
                number = v.number(v.row(left, a_row, n))
                for vector, total in zip(vectors, row, strict=True):
                    total.set(v.fma(number, vector, total.get()))
        # last: what is there may be large, and would round every partial sum
        with builder.if_then(builder.fcmp_ordered("!=", keep, FLOAT(0.0))):
            factor = v.broadcast(keep)
            for place, total in places:
                total.set(v.fma(v.load(place, mask), factor, total.get()))
        for place, total in places:
            v.store(total.get(), place, mask)

    return body


wide, line, line_of_one_row = tile(4, WIDE), tile(TALL, LINE, masked=True), tile(1, LINE, masked=True)


@helper()
def fill_wide(out_MN: Array, a_MI: Array, b_IN: Array, keep: float) -> None:
    """`product` of whole wide tiles."""
    (M, N), steps, (out_row, _), (a_row, a_step) = out_MN.shape, b_IN.shape[0], out_MN.strides, a_MI.strides
    for n in range(0, N, WIDE):
        out, b = address_of(out_MN) + SIZE * n, address_of(b_IN) + SIZE * n
        for m in range(0, M, 4):
            a = address_of(a_MI) + m * a_row
            wide(WIDE, out + m * out_row, out_row, a, a_row, a_step, b, b_IN.strides[0], steps, keep)


@helper()
def fill_lines(out_MN: Array, a_MI: Array, b_IN: Array, keep: float) -> None:
    """`product` in narrow tiles, the last of which may have fewer columns."""
    (M, N), steps, (out_row, _), (a_row, a_step) = out_MN.shape, b_IN.shape[0], out_MN.strides, a_MI.strides
    tall = M // TALL * TALL
    for n in range(0, N, LINE):
        out, a, b = address_of(out_MN) + SIZE * n, address_of(a_MI), address_of(b_IN) + SIZE * n
        for m in range(0, tall, TALL):
            line(N - n, out + m * out_row, out_row, a + m * a_row, a_row, a_step, b, b_IN.strides[0], steps, keep)
        for m in range(tall, M):
            line_of_one_row(
                N - n, out + m * out_row, out_row, a + m * a_row, a_row, a_step, b, b_IN.strides[0], steps, keep
            )


@helper()
def product(out_MN: Array, a_MI: Array, b_IN: Array, keep: float) -> None:
    """out = a b + keep out. With a keep of 0 out is not read: it may hold NaN."""
    (M, N), inner, factor = out_MN.shape, b_IN.shape[0], float32(keep)
    rows, columns = M // 4 * 4, N // WIDE * WIDE
    below, right = M - rows, N - columns
    fill_wide(part(out_MN, 0, 0, rows, columns), a_MI, b_IN, factor)
    fill_lines(part(out_MN, rows, 0, below, columns), part(a_MI, rows, 0, below, inner), b_IN, factor)
    fill_lines(part(out_MN, 0, columns, M, right), a_MI, part(b_IN, 0, columns, inner, right), factor)


@helper()
def product_below(out_LL: Array, a_LI: Array, b_IL: Array) -> None:
    """out = a b on and below the diagonal; what is above it is undefined."""
    L, inner = out_LL.shape[0], b_IL.shape[0]
    for t in range(0, L, STRIP):
        rows = min(STRIP, L - t)
        end = t + rows
        product(part(out_LL, t, 0, rows, end), part(a_LI, t, 0, rows, inner), part(b_IL, 0, 0, inner, end), 0.0)


@helper()
def lower_product(out_LN: Array, a_LL: Array, b_LN: Array) -> None:
    """out = a b for an a that has zeros above the diagonal of each strip of rows; what is behind is not read."""
    L, N = out_LN.shape
    for t in range(0, L, STRIP):
        rows = min(STRIP, L - t)
        end = t + rows
        product(part(out_LN, t, 0, rows, N), part(a_LL, t, 0, rows, end), part(b_LN, 0, 0, end, N), 0.0)


@helper()
def upper_product(out_LN: Array, a_LL: Array, b_LN: Array) -> None:
    """out = a b for the transpose of an a of `lower_product`."""
    L, N = out_LN.shape
    for t in range(0, L, STRIP):
        rows, below = min(STRIP, L - t), L - t
        product(part(out_LN, t, 0, rows, N), part(a_LL, t, t, rows, below), part(b_LN, t, 0, below, N), 0.0)


@inlined(4)
def turn(builder: Any, out: Any, out_row: Any, x: Any, x_row: Any) -> None:
    """The transpose of VECTOR_WIDTH rows and columns: each bit of a row's number changes places with the column's."""
    v = Vectors(builder, VECTOR_WIDTH)
    rows = [v.load(v.row(x, x_row, n)).value for n in range(VECTOR_WIDTH)]
    bit = 1
    while bit < VECTOR_WIDTH:
        # places of two rows side by side: the second one's begin at VECTOR_WIDTH
        first = [n + VECTOR_WIDTH - bit if n & bit else n for n in range(VECTOR_WIDTH)]
        second = [n + VECTOR_WIDTH if n & bit else n + bit for n in range(VECTOR_WIDTH)]
        masks = [ir.Constant(ir.VectorType(WORD, VECTOR_WIDTH), places) for places in (first, second)]
        for n in range(VECTOR_WIDTH):
            if not n & bit:
                pair = rows[n], rows[n | bit]
                rows[n], rows[n | bit] = (builder.shuffle_vector(*pair, mask) for mask in masks)
        bit *= 2
    for n, row in enumerate(rows):
        v.store(SimdValue(builder, row), v.row(out, out_row, n))


@helper()
def transpose(out_NM: Array, x_MN: Array) -> None:
    """out = x^T"""
    M, N = x_MN.shape
    x, x_row, out, out_row = address_of(x_MN), x_MN.strides[0], address_of(out_NM), out_NM.strides[0]
    rows, columns = M // VECTOR_WIDTH * VECTOR_WIDTH, N // VECTOR_WIDTH * VECTOR_WIDTH
    for m in range(0, rows, VECTOR_WIDTH):
        for n in range(0, columns, VECTOR_WIDTH):
            turn(out + n * out_row + SIZE * m, out_row, x + m * x_row + SIZE * n, x_row)
    for m in range(M):
        for n in range(0 if m >= rows else columns, N):
            put(out + n * out_row, m, at(x + m * x_row, n))
