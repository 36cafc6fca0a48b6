"""Products of a few rows with a matrix that stays in cache, the sums held in vector registers.

The matrix is packed once into panels of 16 columns: p[panel, k, column]. A tile is the product of some rows with some
panels: one pass over k, all sums in registers. LLVM's vectoriser does not find this form by itself, so the tile is
written in its language; everything around it is plain Numba. Vectors are as long as the CPU has them.

Matrices are addresses of float32 numbers; *_at and *_stride count these.
"""

from typing import Any

from llvmlite import binding, ir  # type: ignore[import-untyped]
from numba import types
from numba.extending import intrinsic

from exlstm.runtime.cpu.internals import alloca, llvm_function, loop
from exlstm.runtime.cpu.jit import helper
from exlstm.runtime.cpu.memory import place

PANEL = 16  # columns
TOGETHER = 128  # products that are summed before they join the others: short sums round less than a long one


def lanes() -> int:
    """float32 numbers in a vector register of this CPU: 16 with AVX-512, 8 with AVX, else 4."""
    features = binding.get_host_cpu_features()
    return 16 if features.get("avx512f") else 8 if features.get("avx") else 4


LANES = lanes()
# panels that four rows take at once: sixteen sums of 16 lanes, eight of 8 or sixteen of 4, with room for the operands
WIDE = 4 if LANES == 16 else 1


def add_to(builder: Any, at_first: Any, sums: list[list[Any]], begins: list[Any]) -> None:
    """Writes sums, of vectors, to where each row begins; adds them to what is there unless this is the first time."""
    targets = []
    for row, begin in zip(sums, begins, strict=True):
        for part, total in enumerate(row):
            value = builder.load(total)
            offset = ir.Constant(ir.IntType(64), part * LANES)
            targets.append((builder.bitcast(builder.gep(begin, [offset]), value.type.as_pointer()), value))
    with builder.if_else(at_first) as (then, otherwise):
        with then:
            for target, value in targets:
                builder.store(value, target, align=4)
        with otherwise:
            for target, value in targets:
                builder.store(builder.fadd(builder.load(target, align=4), value), target, align=4)


def tile(rows: int, panels: int) -> Any:
    """An intrinsic (out, out_at, out_stride, x, x_at, x_stride, p, p_at, steps): out = x P for so many rows and panels.

    Row n of x begins at x_at + n x_stride and has `steps` numbers; row n of out at out_at + n out_stride.
    """
    parts = panels * PANEL // LANES  # vectors in a row of the tile

    def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        out, out_at, out_stride, x, x_at, x_stride, p, p_at, steps = arguments
        kind, number = ir.VectorType(ir.FloatType(), LANES), steps.type

        def pointer(address: Any, first: Any, stride: Any, count: int) -> Any:
            return place(builder, address, builder.add(first, builder.mul(stride, ir.Constant(number, count))))

        x_rows = [pointer(x, x_at, x_stride, n) for n in range(rows)]
        step = ir.Constant(number, PANEL)
        p_panels = [pointer(p, p_at, builder.mul(steps, step), n) for n in range(panels)]
        add = llvm_function(builder, f"llvm.fmuladd.v{LANES}f32", kind, [kind] * 3)
        zero = ir.Constant(kind, [0.0] * LANES)
        sums = [[alloca(builder, kind) for _ in range(parts)] for _ in range(rows)]
        everywhere = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
        most = ir.Constant(number, TOGETHER)
        with loop(builder, ir.Constant(number, 0), steps, most) as (begin, _):
            end = builder.add(begin, most)
            end = builder.select(builder.icmp_signed("<", end, steps), end, steps)
            for total in (total for row in sums for total in row):
                builder.store(zero, total)
            with loop(builder, begin, end, ir.Constant(number, 1)) as (index, _):
                start = builder.mul(index, step)
                vectors = []
                for part in range(parts):
                    panel, offset = divmod(part * LANES, PANEL)
                    part_at = builder.gep(p_panels[panel], [builder.add(start, ir.Constant(number, offset))])
                    vectors.append(builder.load(builder.bitcast(part_at, kind.as_pointer()), align=4))
                for row in range(rows):
                    value = builder.load(builder.gep(x_rows[row], [index]), align=4)
                    first = builder.insert_element(
                        ir.Constant(kind, ir.Undefined), value, ir.Constant(ir.IntType(32), 0)
                    )
                    spread = builder.shuffle_vector(first, ir.Constant(kind, ir.Undefined), everywhere)
                    for part in range(parts):
                        old = builder.load(sums[row][part])
                        builder.store(builder.call(add, [spread, vectors[part], old]), sums[row][part])
            begins = [pointer(out, out_at, out_stride, n) for n in range(rows)]
            add_to(builder, builder.icmp_signed("==", begin, ir.Constant(number, 0)), sums, begins)
        return context.get_dummy_value()

    def typed(_context: Any, _out: Any, _out_at: Any, _out_stride: Any, _x: Any, _x_at: Any, _x_stride: Any,
              _p: Any, _p_at: Any, _steps: Any) -> Any:  # fmt: skip
        return types.void(*[types.intp] * 9), generate

    return intrinsic(typed)


four_rows, four_rows_narrow, one_row, one_row_narrow = tile(4, WIDE), tile(4, 1), tile(1, 4), tile(1, 1)


@helper()
def rows_by_four(rows: int) -> int:
    """How many rows `product` writes: one that is left over goes alone, two or three as four, with some to spare."""
    return rows + (0 if rows % 4 < 2 else 4 - rows % 4)


@helper()
def product(out: int, out_stride: int, out_block: int, x: int, x_stride: int, rows: int, p: int, steps: int,
            panels: int) -> None:  # fmt: skip
    """out = x P for `rows` rows from the first on; x and out have room for `rows_by_four(rows)`.

    Four panels lie side by side in a row of out; the next four begin out_block floats later.
    A panel, which is small, meets all rows before the next one's turn: the matrix is read once.
    """
    fours = rows_by_four(rows) // 4 * 4
    for panel in range(0, panels if fours else 0, WIDE):
        column = panel // 4 * out_block + panel % 4 * PANEL
        for row in range(0, fours, 4):
            if panels - panel < WIDE:
                for n in range(panels - panel):
                    four_rows_narrow(out, row * out_stride + column + n * PANEL, out_stride, x, row * x_stride,
                                     x_stride, p, (panel + n) * steps * PANEL, steps)  # fmt: skip
            else:
                four_rows(out, row * out_stride + column, out_stride, x, row * x_stride, x_stride,
                          p, panel * steps * PANEL, steps)  # fmt: skip
    if rows > fours:
        for panel in range(0, panels, 4):
            column = fours * out_stride + panel // 4 * out_block
            if panels - panel < 4:
                for n in range(panels - panel):
                    one_row_narrow(out, column + n * PANEL, out_stride, x, fours * x_stride, x_stride,
                                   p, (panel + n) * steps * PANEL, steps)  # fmt: skip
            else:
                one_row(out, column, out_stride, x, fours * x_stride, x_stride, p, panel * steps * PANEL, steps)
