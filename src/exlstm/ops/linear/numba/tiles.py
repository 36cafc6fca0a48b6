"""Products of a few rows of W with a few rows of x, written in LLVM's own vectors: `tile(kind, rows, batch)`.

LLVM's vectorizer leaves these loops half as fast as memory allows. Every product is summed in 16 lanes from left to
right, then over the lanes, whatever the tile and whatever the processor's vectors: a row's result does not depend on
how many rows of x there are. The rows of W in a tile should lie far apart, each followed by the row that the next tile
has in its place: the processor then sees a few long streams and fetches ahead. Of neighbours it sees a zigzag, and
half of the speed is lost.

kinds of weights, 64 bytes of a row at a time:
    float32, bfloat16    as they are
    int8                 whole numbers, scaled afterwards
    int4                 eight whole numbers 0..15 in each 32-bit word, 128 per group; number j of a word's lane is
                         column 16 j + lane. It is masked where it stands, which leaves it 16^j times too large, and x
                         comes divided by that. A group has a scale and an offset. What is summed is (q - 8) x, for
                         sums of q x would be large and mostly cancel: after the 128 numbers of x for a group come
                         16, by lane, where its sum begins: -8 times the sum of x
"""

from typing import Any

from llvmlite import ir  # type: ignore[import-untyped]

from exlstm.runtime.cpu.simd import WORD, SimdValue
from exlstm.runtime.cpu.vectors import LONG, Vectors, inlined, repeated

WIDTH, LINE = 16, 64  # numbers that are summed side by side; bytes of a line
SIZES = {"float32": 4, "bfloat16": 2, "int8": 1, "int4": 0.5}
STEPS = {kind: int(LINE / size) for kind, size in SIZES.items()}  # columns of one line
SPREAD = STEPS["int4"] + WIDTH  # numbers of x for a line of int4
WORDS, BYTES = ir.VectorType(WORD, WIDTH), ir.VectorType(ir.IntType(8), WIDTH)


def weights(v: Vectors, kind: str, line: Any, part: int) -> SimdValue:
    """16 weights: vector `part` of the line at this address."""
    builder = v.builder
    if kind == "float32":
        return v.load(line)
    if kind == "bfloat16":
        return v.load_bf16(v.offset(line, 32 * part))
    if kind == "int8":
        words = builder.sext(v.raw(v.offset(line, 16 * part), BYTES), WORDS)
    else:
        words, shift = v.raw(line, WORDS), ir.Constant(WORDS, [28] * WIDTH)
        # the uppermost would be negative
        mask = ir.Constant(WORDS, [15 << (4 * part)] * WIDTH)
        words = builder.lshr(words, shift) if part == 7 else builder.and_(words, mask)
    return SimdValue(builder, builder.sitofp(words, v.kind))


def factors(v: Vectors, scale: Any, offset: Any) -> tuple[SimdValue, SimdValue]:
    """Factors of a group's sum and of its start, -8 sum x: s sum (q - 8) x + (o + 8 s) sum x."""
    s, o = v.number(scale), v.number(offset)
    return s, (o + s * 8.0) * -0.125


def tile(kind: str, rows: int, batch: int) -> Any:
    """A function (w, bytes between its rows, x, the same, scale, offset, the same, lines >= 1, out).

    All are addresses; x is float32. Writes the sums of products over so many whole lines to out[batch, rows]. Scales
    and offsets are for int4.
    """
    grid = [(m, n) for m in range(batch) for n in range(rows)]
    step, grouped = STEPS[kind], kind == "int4"

    @inlined(9)
    def body(builder: Any, w: Any, w_step: Any, x: Any, x_step: Any, scale: Any, offset: Any, group_step: Any,
             lines: Any, out: Any) -> None:  # fmt: skip
        v = Vectors(builder, WIDTH)
        totals = {at: v.variable(v.zeros()) for at in grid}
        with repeated(builder, lines) as line:
            w_line, x_line = builder.mul(line, LONG(LINE)), builder.mul(line, LONG(4 * (SPREAD if grouped else step)))
            w_rows = [v.offset(v.row(w, w_step, n), w_line) for n in range(rows)]
            x_rows = [v.offset(v.row(x, x_step, m), x_line) for m in range(batch)]
            # a group of int4 has a sum of its own
            begins = [v.load(v.offset(x_row, 4 * step)) for x_row in x_rows] if grouped else []
            sums = {(m, n): begins[m] if grouped else totals[m, n].get() for m, n in grid}
            for part in range(step // WIDTH):
                numbers = [v.load(v.offset(x_row, 4 * WIDTH * part)) for x_row in x_rows]
                for n in range(rows):
                    w_part = weights(v, kind, w_rows[n], part)
                    for m in range(batch):
                        sums[m, n] = v.fma(w_part, numbers[m], sums[m, n])
            for n in range(rows if grouped else 0):
                group = builder.add(builder.mul(group_step, LONG(n)), builder.mul(line, LONG(4)))
                factor, shift = factors(v, v.offset(scale, group), v.offset(offset, group))
                for m in range(batch):
                    sums[m, n] = v.fma(sums[m, n], factor, v.fma(begins[m], shift, totals[m, n].get()))
            for at in grid:
                totals[at].set(sums[at])
        # sums over lanes side by side, in the same order for any tile
        found = v.totals([totals[at].get() for at in grid])
        Vectors(builder, len(grid)).store(found, out)

    return body
