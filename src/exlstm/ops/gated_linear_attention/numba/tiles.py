"""Blocks of S through some steps, in vector registers: forward, and backward from the states along the way.

Memory is never read or written between two steps of a block: its state stays in registers while time passes. Forward,
vectors lie along the values, so that a step's read is a sum of rows. Backward they lie along the keys: three of four
sums are then sums of rows, and only that of the values is one over lanes. With a decay over the values, so is its own.

Steps lie in planes, each [steps, width]: of the key width, q k e dq dk dg, and of the value width, v o e dv dg, where e
is the decay e^g and o may be a gradient. An address of them is that of plane 0 at the first step and column of a block.
"""

from typing import Any

from exlstm.runtime.cpu.jit import helper
from exlstm.runtime.cpu.simd import SimdValue
from exlstm.runtime.cpu.vectors import LONG, Vectors, inlined, register_width, repeated

Q, K, E, DQ, DK, DG, KEY_PLANES = range(7)
V, O, E_V, DV, DG_V, VALUE_PLANES = range(6)  # noqa: E741
WIDTH = register_width()
LINE = 4 * WIDTH  # bytes of a vector
ROWS = 4 if WIDTH == 16 else 2  # of a block: with AVX-512 there are 32 registers, else 16
VECTORS = (4, 2, 1)  # of a row of a block, forward
PARTS = (2, 1)  # of a row of a block, backward
Grid = list[list[Any]]


class Steps:
    """Planes at one step: their vectors, and their single numbers in all places of one."""

    def __init__(self, v: Vectors, begin: Any, step: Any, plane: Any, t: Any) -> None:
        self.v, self.plane, self.begin = v, plane, v.offset(begin, v.builder.mul(t, step))

    def address(self, plane: int, byte: int) -> Any:
        """Address of a byte of a plane's row."""
        return self.v.offset(self.v.row(self.begin, self.plane, plane), byte)

    def vectors(self, plane: int, count: int) -> list[SimdValue]:
        """Vectors of a row."""
        return [self.v.load(self.address(plane, LINE * n)) for n in range(count)]

    def numbers(self, plane: int) -> list[SimdValue]:
        """ROWS numbers of a row."""
        return [self.v.number(self.address(plane, 4 * r)) for r in range(ROWS)]

    def add(self, plane: int, sums: list[SimdValue]) -> None:
        """Adds vectors to a row."""
        for n, x in enumerate(sums):
            here = self.address(plane, LINE * n)
            self.v.store(self.v.load(here) + x, here)


def places(v: Vectors, begin: Any, step: Any, count: int) -> Grid:
    """Addresses of the vectors of a block whose rows begin `step` bytes after one another."""
    return [[v.offset(v.row(begin, step, r), LINE * n) for n in range(count)] for r in range(ROWS)]


def variables(v: Vectors, grid: Grid) -> Grid:
    """The vectors at these addresses."""
    return [[v.variable(v.load(at)) for at in row] for row in grid]


def store(v: Vectors, grid: Grid, held: Grid) -> None:
    """The inverse of `variables`."""
    for row, x_row in zip(grid, held, strict=True):
        for at, x in zip(row, x_row, strict=True):
            v.store(x.get(), at)


def sums_of(many: int, count: int) -> list[list[Any]]:
    """Lists of so many sums that are still without a term."""
    return [[None] * count for _ in range(many)]


def added(v: Vectors, total: SimdValue | None, x: SimdValue, y: SimdValue) -> SimdValue:
    """total + x y; the first product alone where there is no total yet."""
    return x * y if total is None else v.fma(x, y, total)


def advance_block(count: int, strict: bool, by_value: bool) -> Any:
    """A function (s, keys, step, plane, values, step, plane, steps >= 1): a block of S forward, and its share of o.

    strict: a step is read before it is written. by_value: the decay is over the values. Rows of S are keys.
    """

    @inlined(8)
    def body(
        builder: Any, s: Any, keys: Any, k_step: Any, k_plane: Any, values: Any, v_step: Any, v_plane: Any, steps: Any
    ) -> None:
        v = Vectors(builder, WIDTH)
        grid = places(v, s, v_step, count)
        state = variables(v, grid)
        with repeated(builder, steps) as t:
            key, value = Steps(v, keys, k_step, k_plane, t), Steps(v, values, v_step, v_plane, t)
            x, q, k = value.vectors(V, count), key.numbers(Q), key.numbers(K)
            decay = value.vectors(E_V, count) if by_value else key.numbers(E)
            (sums,) = sums_of(1, count)
            for r in range(ROWS):
                for n in range(count):
                    old = state[r][n].get()
                    new = v.fma(old, decay[n if by_value else r], x[n] * k[r])
                    sums[n] = added(v, sums[n], old if strict else new, q[r])
                    state[r][n].set(new)
            value.add(O, sums)
        store(v, grid, state)

    return body


def trace_block(count: int, by_value: bool) -> Any:
    """A function (s, keys, step, plane, values, step, plane, states, steps >= 1): S before every step and after all.

    Rows of S are values. states: [steps + 1, ROWS, count] vectors.
    """

    @inlined(9)
    def body(
        builder: Any,
        s: Any,
        keys: Any,
        k_step: Any,
        k_plane: Any,
        values: Any,
        v_step: Any,
        v_plane: Any,
        states: Any,
        steps: Any,
    ) -> None:
        v = Vectors(builder, WIDTH)
        state, row = variables(v, places(v, s, k_step, count)), LONG(LINE * count)
        with repeated(builder, steps) as t:
            key, value = Steps(v, keys, k_step, k_plane, t), Steps(v, values, v_step, v_plane, t)
            x, k = value.numbers(V), key.vectors(K, count)
            decay = value.numbers(E_V) if by_value else key.vectors(E, count)
            store(v, places(v, v.offset(states, builder.mul(t, LONG(ROWS * LINE * count))), row, count), state)
            for r in range(ROWS):
                for n in range(count):
                    state[r][n].set(v.fma(state[r][n].get(), decay[r if by_value else n], k[n] * x[r]))
        store(v, places(v, v.offset(states, builder.mul(steps, LONG(ROWS * LINE * count))), row, count), state)

    return body


def retreat_block(count: int, strict: bool, by_value: bool) -> Any:
    """A function (ds, keys, step, plane, values, step, plane, states, steps >= 1): the gradient of a block of S back.

    Adds its shares to dq, dk, dv and dg. states: those of `trace_block`.
    """

    @inlined(9)
    def body(
        builder: Any,
        ds: Any,
        keys: Any,
        k_step: Any,
        k_plane: Any,
        values: Any,
        v_step: Any,
        v_plane: Any,
        states: Any,
        steps: Any,
    ) -> None:
        v = Vectors(builder, WIDTH)
        grid = places(v, ds, k_step, count)
        gradient, size = variables(v, grid), ROWS * LINE * count
        last = builder.sub(steps, LONG(1))
        with repeated(builder, steps) as done:
            t = builder.sub(last, done)
            key, value = Steps(v, keys, k_step, k_plane, t), Steps(v, values, v_step, v_plane, t)
            here = v.offset(states, builder.mul(t, LONG(size)))
            before, after = (places(v, v.offset(here, at), LONG(LINE * count), count) for at in (0, size))
            q, k, x, do = key.vectors(Q, count), key.vectors(K, count), value.numbers(V), value.numbers(O)
            decay = value.numbers(E_V) if by_value else key.vectors(E, count)
            dq, dk, dg, dv, dg_v = sums_of(5, max(count, ROWS))
            for r in range(ROWS):
                for n in range(count):
                    d = gradient[r][n].get()
                    if not strict:
                        d = v.fma(q[n], do[r], d)
                    dk[n], dv[r] = added(v, dk[n], d, x[r]), added(v, dv[r], d, k[n])
                    kept, old = d * decay[r if by_value else n], v.load(before[r][n])
                    if by_value:
                        dg_v[r] = added(v, dg_v[r], kept, old)
                    else:
                        dg[n] = added(v, dg[n], kept, old)
                    dq[n] = added(v, dq[n], old if strict else v.load(after[r][n]), do[r])
                    gradient[r][n].set(v.fma(q[n], do[r], kept) if strict else kept)
            for plane, sums in ((DQ, dq), (DK, dk)) if by_value else ((DQ, dq), (DK, dk), (DG, dg)):
                key.add(plane, sums[:count])
            for plane, sums in ((DV, dv), (DG_V, dg_v)) if by_value else ((DV, dv),):
                at, narrow = value.address(plane, 0), Vectors(builder, ROWS)
                narrow.store(narrow.load(at) + v.totals(sums[:ROWS]), at)
        store(v, grid, gradient)

    return body


def advance_of(strict: bool, by_value: bool) -> Any:
    """`advance_block` of any count, the first argument."""
    four, two, one = (advance_block(count, strict, by_value) for count in VECTORS)

    @helper()
    def advance(
        count: int, s: int, keys: int, k_step: int, k_plane: int, values: int, v_step: int, v_plane: int, steps: int
    ) -> None:
        if count == 4:
            four(s, keys, k_step, k_plane, values, v_step, v_plane, steps)
        elif count == 2:
            two(s, keys, k_step, k_plane, values, v_step, v_plane, steps)
        else:
            one(s, keys, k_step, k_plane, values, v_step, v_plane, steps)

    return advance


def turn_of(strict: bool, by_value: bool) -> Any:
    """`trace_block` and `retreat_block` of any count, the first argument: a function (count, s, ds, ...)."""
    trace_two, trace_one = (trace_block(count, by_value) for count in PARTS)
    retreat_two, retreat_one = (retreat_block(count, strict, by_value) for count in PARTS)

    @helper()
    def turn(
        count: int,
        s: int,
        ds: int,
        keys: int,
        k_step: int,
        k_plane: int,
        values: int,
        v_step: int,
        v_plane: int,
        states: int,
        steps: int,
    ) -> None:
        if count == 2:
            trace_two(s, keys, k_step, k_plane, values, v_step, v_plane, states, steps)
            retreat_two(ds, keys, k_step, k_plane, values, v_step, v_plane, states, steps)
        else:
            trace_one(s, keys, k_step, k_plane, values, v_step, v_plane, states, steps)
            retreat_one(ds, keys, k_step, k_plane, values, v_step, v_plane, states, steps)

    return turn


advance, advance_by_value = advance_of(False, False), advance_of(False, True)
advance_strictly, advance_strictly_by_value = advance_of(True, False), advance_of(True, True)
turn, turn_by_value = turn_of(False, False), turn_of(False, True)
turn_strictly, turn_strictly_by_value = turn_of(True, False), turn_of(True, True)
