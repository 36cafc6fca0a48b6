"""Products of a few rows with a matrix that stays in cache, the sums held in vector registers.

The matrix is packed once into panels of 16 columns: p[panel, k, column]. A tile is the product of some rows with some
panels: one pass over k, all sums in registers. LLVM's vectoriser does not find this form by itself, so the tile is
written in its language; everything around it is plain Numba. Vectors are as long as the CPU has them.

Matrices are addresses of float32 numbers; *_stride count these.
"""

from typing import Any

from exlstm.runtime.cpu.jit import helper
from exlstm.runtime.cpu.launch import threads_for
from exlstm.runtime.cpu.memory import at, put
from exlstm.runtime.cpu.simd import SimdValue
from exlstm.runtime.cpu.vectors import LONG, Vectors, inlined, loop, register_width

PANEL = 16  # columns
PARTIAL_SUM_STEPS = 128  # products that are summed before they join the others: short sums round less than a long one
VECTOR_WIDTH = register_width()
# panels that four rows take at once: sixteen sums of 16 numbers, eight of 8 or sixteen of 4, with room for the operands
WIDE = 4 if VECTOR_WIDTH == 16 else 1


def add_to(v: Vectors, at_first: Any, sums: list[list[SimdValue]], begins: list[Any]) -> None:
    """Writes sums to where each row begins; adds them to what is there unless this is the first time."""
    targets = [
        (v.offset(begin, 4 * VECTOR_WIDTH * part), total)
        for row, begin in zip(sums, begins, strict=True)
        for part, total in enumerate(row)
    ]
    with v.builder.if_else(at_first) as (then, otherwise):
        with then:
            for target, total in targets:
                v.store(total, target)
        with otherwise:
            for target, total in targets:
                v.store(v.load(target) + total, target)


def tile(rows: int, panels: int) -> Any:
    """A function (out, out_step, x, x_step, p, steps, begin): out = x P for so many rows and panels, some of its steps.

    Rows of x, of `steps` numbers, and of out begin *_step bytes after one another. From step `begin` on these are
    PARTIAL_SUM_STEPS at most; but for the first ones their sums are added to out.
    """
    parts = panels * PANEL // VECTOR_WIDTH  # vectors in a row of the tile

    @inlined(7)
    def product_tile(builder: Any, out: Any, out_step: Any, x: Any, x_step: Any, p: Any, steps: Any, begin: Any
                     ) -> None:  # fmt: skip
        v = Vectors(builder, VECTOR_WIDTH)
        panel_bytes = builder.mul(steps, LONG(4 * PANEL))
        x_rows, outs = ([v.row(begin, step, n) for n in range(rows)] for begin, step in ((x, x_step), (out, out_step)))
        sums = [[v.variable(v.zeros()) for _ in range(parts)] for _ in range(rows)]
        end = builder.add(begin, LONG(PARTIAL_SUM_STEPS))
        end = builder.select(builder.icmp_signed("<", end, steps), end, steps)
        with loop(builder, begin, end, LONG(1)) as (k, _):
            p_k = v.offset(p, builder.mul(k, LONG(4 * PANEL)))
            vectors = []
            for part in range(parts):
                panel, column = divmod(part * VECTOR_WIDTH, PANEL)
                vectors.append(v.load(v.offset(v.row(p_k, panel_bytes, panel), 4 * column)))
            for x_row, row in zip(x_rows, sums, strict=True):
                number = v.number(v.offset(x_row, builder.mul(k, LONG(4))))
                for vector, total in zip(vectors, row, strict=True):
                    total.set(v.fma(number, vector, total.get()))
        add_to(v, builder.icmp_signed("==", begin, LONG(0)), [[x.get() for x in row] for row in sums], outs)

    return product_tile


four_rows, four_rows_narrow, one_row, one_row_narrow = tile(4, WIDE), tile(4, 1), tile(1, 4), tile(1, 1)


@helper()
def rows_by_four(rows: int) -> int:
    """How many rows `product` writes: one that is left over goes alone, two or three as four, with some to spare."""
    return rows + (0 if rows % 4 < 2 else 4 - rows % 4)


@helper()
def product(
    out: int, out_stride: int, out_block: int, x: int, x_stride: int, rows: int, p: int, steps: int, panels: int
) -> None:
    """out = x P for `rows` rows from the first on; x and out have room for `rows_by_four(rows)`.

    Four panels lie side by side in a row of out; the next four begin out_block floats later.
    Some steps of a panel, which the first cache holds, meet all rows before the next ones: the matrix is read once.
    """
    fours = rows_by_four(rows) // 4 * 4
    for panel in range(0, panels if fours else 0, WIDE):
        column, here = panel // 4 * out_block + panel % 4 * PANEL, p + 4 * panel * steps * PANEL
        narrow = panels - panel if panels - panel < WIDE else 0
        for begin in range(0, max(steps, 1), PARTIAL_SUM_STEPS):
            for row in range(0, fours, 4):
                out_r, x_r = out + 4 * (row * out_stride + column), x + 4 * row * x_stride
                for n in range(narrow):
                    four_rows_narrow(out_r + 4 * n * PANEL, 4 * out_stride, x_r, 4 * x_stride,
                                     here + 4 * n * steps * PANEL, steps, begin)  # fmt: skip
                if narrow == 0:
                    four_rows(out_r, 4 * out_stride, x_r, 4 * x_stride, here, steps, begin)
    for panel in range(0, panels if rows > fours else 0, 4):
        out_r, x_r = out + 4 * (fours * out_stride + panel // 4 * out_block), x + 4 * fours * x_stride
        here, narrow = p + 4 * panel * steps * PANEL, panels - panel if panels - panel < 4 else 0
        for begin in range(0, max(steps, 1), PARTIAL_SUM_STEPS):
            for n in range(narrow):
                one_row_narrow(out_r + 4 * n * PANEL, 4 * out_stride, x_r, 4 * x_stride, here + 4 * n * steps * PANEL,
                               steps, begin)  # fmt: skip
            if narrow == 0:
                one_row(out_r, 4 * out_stride, x_r, 4 * x_stride, here, steps, begin)


def tile_rows(rows: int, groups: int, cost: float) -> int:
    """Rows of an item of a scan whose groups (heads) go alone: as few as keep all threads busy, four or eight.

    A matrix is read once for all rows of an item. cost: of all items, in microseconds on one thread.
    """
    return 4 if groups * -(-rows // 8) < threads_for(cost) else 8


@helper()
def pack_columns(w: int, parts: int, apart: int, V: int, row: int, K: int, p: int, steps: int, first: int) -> None:
    """Packs rows of W, parts of V units in each, as columns of P in the order of `blocks`; P has room for V rounded up.

    apart, row: numbers from a part of W to the next, and from a unit's row of K numbers to the next. The numbers of a
    row become the steps of P, of which there are `steps`, from `first` on.
    """
    for part in range(parts):
        for v in range(V):
            panel = p + 4 * (((v // PANEL * parts + part) * steps + first) * PANEL + v % PANEL)
            for k in range(K):
                put(panel, k * PANEL, at(w, part * apart + v * row + k))


@helper()
def pack_rows(w: int, parts: int, apart: int, V: int, row: int, K: int, p: int, steps: int, first: int) -> None:
    """As `pack_columns`, transposed: rows of W are steps of P in the order of `blocks`, their numbers columns."""
    for part in range(parts):
        for v in range(V):
            step = (v // PANEL * parts + part) * PANEL + v % PANEL
            for k in range(K):
                column = first + k
                put(p, (column // PANEL * steps + step) * PANEL + column % PANEL, at(w, part * apart + v * row + k))
