"""Products of a few rows of W with a few rows of x, written in LLVM's own vectors: `tile(kind, rows, batch)`.

LLVM's vectoriser leaves these loops half as fast as memory allows. Every product is summed in 16 lanes from left to
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

from functools import cache
from typing import Any

from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.extending import intrinsic

FLOAT, BYTE, SHORT, WORD, LONG = ir.FloatType(), ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.IntType(64)
LANES, LINE = 16, 64
FLOATS, WORDS = ir.VectorType(FLOAT, LANES), ir.VectorType(WORD, LANES)
SIZES = {"float32": 4, "bfloat16": 2, "int8": 1, "int4": 0.5}
FUSED = ("contract",)
STEPS = {kind: int(LINE / size) for kind, size in SIZES.items()}  # columns of one line
SPREAD = STEPS["int4"] + LANES  # numbers of x for a line of int4


def load(builder: Any, address: Any, kind: Any) -> Any:
    """What is at `address`, which need not be aligned."""
    return builder.load(builder.inttoptr(address, kind.as_pointer()), align=1)


def every(number: int) -> Any:
    """The same word in all lanes."""
    return ir.Constant(WORDS, [number] * LANES)


def spread_out(builder: Any, x: Any) -> Any:
    """The same float in all lanes."""
    first = builder.insert_element(ir.Constant(FLOATS, ir.Undefined), x, WORD(0))
    return builder.shuffle_vector(first, first, every(0))


def times_plus(builder: Any, x: Any, y: Any, total: Any) -> Any:
    """x y + total, rounded once where the processor can."""
    return builder.fadd(total, builder.fmul(x, y, flags=FUSED), flags=FUSED)


def over_lanes(builder: Any, x: Any) -> Any:
    """Sum of all lanes, always in the same order."""
    width = LANES
    while width > 1:
        width //= 2
        low, high = (ir.Constant(ir.VectorType(WORD, width), list(range(n, n + width))) for n in (0, width))
        x = builder.fadd(builder.shuffle_vector(x, x, low), builder.shuffle_vector(x, x, high))
    return builder.extract_element(x, WORD(0))


def numbers(builder: Any, kind: str, address: Any, part: int) -> Any:
    """16 weights as float32: number `part` of the line at `address`."""
    if kind == "float32":
        return load(builder, address, FLOATS)
    if kind == "bfloat16":
        raw = load(builder, builder.add(address, LONG(32 * part)), ir.VectorType(SHORT, LANES))
        return builder.bitcast(builder.shl(builder.zext(raw, WORDS), every(16)), FLOATS)
    if kind == "int8":
        raw = load(builder, builder.add(address, LONG(16 * part)), ir.VectorType(BYTE, LANES))
        return builder.sitofp(builder.sext(raw, WORDS), FLOATS)
    raw = load(builder, address, WORDS)
    # the uppermost would be negative
    word = builder.lshr(raw, every(28)) if part == 7 else builder.and_(raw, every(15 << (4 * part)))
    return builder.sitofp(word, FLOATS)


def scaled(builder: Any, scale: Any, offset: Any) -> tuple[Any, Any]:
    """The factors of a group's sum and of what it began with, -8 sum x: s sum (q - 8) x + (o + 8 s) sum x."""
    scale, offset = (load(builder, address, FLOAT) for address in (scale, offset))
    middle = builder.fadd(offset, builder.fmul(scale, FLOAT(8.0)))
    return spread_out(builder, scale), spread_out(builder, builder.fmul(middle, FLOAT(-0.125)))


def body(builder: Any, kind: str, rows: int, batch: int, arguments: Any) -> None:
    """The loop over the lines of a row; see `tile`."""
    w, w_stride, x, x_stride, scale, offset, group_stride, lines, out = arguments
    step, grouped = STEPS[kind], kind == "int4"
    grid = [(m, n) for m in range(batch) for n in range(rows)]
    starts = [builder.add(w, builder.mul(w_stride, LONG(n))) for n in range(rows)]
    inputs = [builder.add(x, builder.mul(x_stride, LONG(m))) for m in range(batch)]
    groups = [builder.mul(group_stride, LONG(n)) for n in range(rows)]
    entry, loop, end = builder.block, builder.append_basic_block("loop"), builder.append_basic_block("end")
    builder.branch(loop)
    builder.position_at_end(loop)
    line = builder.phi(LONG)
    line.add_incoming(LONG(0), entry)
    totals = {at: builder.phi(FLOATS) for at in grid}
    for total in totals.values():
        total.add_incoming(ir.Constant(FLOATS, [0.0] * LANES), entry)
    here = [builder.add(start, builder.mul(line, LONG(LINE))) for start in starts]
    x_line = builder.mul(line, LONG(4 * (SPREAD if grouped else step)))
    here_x = [builder.add(start, x_line) for start in inputs]
    # a group of int4 has a sum of its own
    begins = [load(builder, builder.add(start, LONG(4 * step)), FLOATS) for start in here_x] if grouped else []
    sums = {(m, n): begins[m] for m, n in grid} if grouped else dict(totals)
    for part in range(step // LANES):
        values = [load(builder, builder.add(start, LONG(4 * LANES * part)), FLOATS) for start in here_x]
        for n in range(rows):
            weights = numbers(builder, kind, here[n], part)
            for m in range(batch):
                sums[m, n] = times_plus(builder, weights, values[m], sums[m, n])
    for n in range(rows if grouped else 0):
        group = builder.add(groups[n], builder.mul(line, LONG(4)))
        factor, shift = scaled(builder, builder.add(scale, group), builder.add(offset, group))
        for m in range(batch):
            total = times_plus(builder, begins[m], shift, totals[m, n])
            sums[m, n] = times_plus(builder, sums[m, n], factor, total)
    following = builder.add(line, LONG(1))
    line.add_incoming(following, builder.block)
    for at in grid:
        totals[at].add_incoming(sums[at], builder.block)
    builder.cbranch(builder.icmp_signed("<", following, lines), loop, end)
    builder.position_at_end(end)
    for place, at in enumerate(grid):
        address = builder.inttoptr(builder.add(out, LONG(4 * place)), FLOAT.as_pointer())
        builder.store(over_lanes(builder, sums[at]), address)


@cache
def tile(kind: str, rows: int, batch: int) -> Any:
    """A function for Numba: (w, bytes between its rows, x, the same, scale, offset, the same, lines >= 1, out).

    All are addresses; x is float32. Writes the sums of products over so many whole lines to out[batch, rows]. Scales
    and offsets are for int4.
    """

    def typed(context: Any, *_types: Any) -> Any:
        def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
            body(builder, kind, rows, batch, arguments)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 9), generate

    def plain(_context: Any, w: Any, w_stride: Any, x: Any, x_stride: Any, scale: Any, offset: Any, group_stride: Any,
              lines: Any, out: Any) -> Any:  # fmt: skip
        return typed(_context, w, w_stride, x, x_stride, scale, offset, group_stride, lines, out)

    return intrinsic(plain)
