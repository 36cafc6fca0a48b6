"""Loops over the rows of a tile of the memory, in LLVM's vectors. A tile is all keys of COLUMNS columns of S.

Columns never meet, whatever decays or is corrected along the keys; a tile stays in the first cache. Its rows begin ROW
bytes after one another where no step is given. Vectors of K numbers have one for every row, others one for every
column. Even and odd rows are summed apart: chains of multiply-adds half as long wait less and round less.

K rows
"""

from collections.abc import Callable
from typing import Any

from exlstm.runtime.cpu.simd import SimdValue
from exlstm.runtime.cpu.vectors import LONG, Variable, Vectors, inlined, loop, register_width

COLUMNS = 2 * register_width()
SIZE = 4  # bytes of a number
ROW = SIZE * COLUMNS
PARTS = 5  # numbers of a row that `scatter` finds, at most


class Rows(Vectors):
    """Vectors as wide as a tile, and numbers of rows, inside a loop over rows."""

    def __init__(self, builder: Any) -> None:
        super().__init__(builder, COLUMNS)

    def coefficient(self, x: Any, k: Any) -> SimdValue:
        """Number k of a vector over rows."""
        return self.number(self.offset(x, self.builder.mul(k, LONG(SIZE))))

    def at(self, x: Any, k: Any, step: Any = None) -> Any:
        """The address of row k of a tile."""
        return self.offset(x, self.builder.mul(k, LONG(ROW) if step is None else step))

    def summed(self, count: Any, sums: int, row: Callable[[Any, list[Variable]], None]) -> list[SimdValue]:
        """What `row(k, variables)` sums up in its variables over all rows; sums: how many there are."""
        even, odd = ([self.variable(self.zeros()) for _ in range(sums)] for _ in range(2))
        pairs = self.builder.and_(count, LONG(-2))
        with loop(self.builder, LONG(0), pairs, LONG(2)) as (k, _):
            row(k, even)
            row(self.builder.add(k, LONG(1)), odd)
        with loop(self.builder, pairs, count, LONG(1)) as (k, _):
            row(k, even)
        return [x.get() + y.get() for x, y in zip(even, odd, strict=True)]


@inlined(5)
def move(builder: Any, count: Any, source: Any, source_step: Any, target: Any, target_step: Any) -> None:
    """target = source"""
    v = Rows(builder)
    with loop(builder, LONG(0), count, LONG(1)) as (k, _):
        v.store(v.load(v.at(source, k, source_step)), v.at(target, k, target_step))


@inlined(5)
def read(builder: Any, count: Any, a: Any, source: Any, step: Any, out: Any) -> None:
    """out = sum_k a_k source_k"""
    v = Rows(builder)

    def row(k: Any, sums: list[Variable]) -> None:
        sums[0].set(v.fma(v.coefficient(a, k), v.load(v.at(source, k, step)), sums[0].get()))

    v.store(v.summed(count, 1, row)[0], out)


def writing(two: bool, reading: bool) -> Any:
    """A function (K, w, k, u, b, z, q, source, step, target, out): target_k = w_k source_k + k_k u, + b_k z with `two`.

    reading: out = sum_k q_k target_k.
    """

    @inlined(11)
    def body(builder: Any, count: Any, *x: Any) -> None:
        w, key, u, b, z, q, source, step, target, out = x
        v = Rows(builder)
        u_value, z_value = v.load(u), v.load(z) if two else None

        def row(k: Any, sums: list[Variable]) -> None:
            new = v.fma(v.coefficient(key, k), u_value, v.coefficient(w, k) * v.load(v.at(source, k, step)))
            if z_value is not None:
                new = v.fma(v.coefficient(b, k), z_value, new)
            v.store(new, v.at(target, k))
            for total in sums:
                total.set(v.fma(v.coefficient(q, k), new, total.get()))

        for total in v.summed(count, int(reading), row):
            v.store(total, out)

    return body


def collecting(two: bool) -> Any:
    """A function (K, q, k, b, do, ds, du, dz): ds_k += q_k do, du = sum_k k_k ds_k; with `two`, dz = sum_k b_k ds_k."""

    @inlined(8)
    def body(builder: Any, count: Any, *x: Any) -> None:
        q, key, b, do, ds, *outputs = x
        v = Rows(builder)
        do_value, weights = v.load(do), [key, b] if two else [key]

        def row(k: Any, sums: list[Variable]) -> None:
            here = v.at(ds, k)
            new = v.fma(v.coefficient(q, k), do_value, v.load(here))
            v.store(new, here)
            for weight, total in zip(weights, sums, strict=True):
                total.set(v.fma(v.coefficient(weight, k), new, total.get()))

        for total, out in zip(v.summed(count, len(weights), row), outputs, strict=False):
            v.store(total, out)

    return body


def scattering(two: bool) -> Any:
    """A function (K, w, a, do, u, z, dr, after, before, ds, parts): ds_k = w_k ds_k + a_k dr, and for every row

        after_k . do ,  ds_k . u ,  before_k . dr ,  ds_k . before_k  and, with `two`, ds_k . z

    with ds as it was: of each the numbers of all rows, one after another at `parts`.
    """

    @inlined(11)
    def body(builder: Any, count: Any, *x: Any) -> None:
        w, a, do, u, z, dr, after, before, ds, parts = x
        v, apart = Rows(builder), builder.mul(count, LONG(SIZE))
        do_value, u_value, dr_value = v.load(do), v.load(u), v.load(dr)
        z_value = v.load(z) if two else None
        with loop(builder, LONG(0), count, LONG(1)) as (k, _):
            here = v.at(ds, k)
            old, now, past = v.load(here), v.load(v.at(after, k)), v.load(v.at(before, k))
            products = [now * do_value, old * u_value, past * dr_value, old * past]
            if z_value is not None:
                products += [old * z_value, v.zeros(), v.zeros(), v.zeros()]
            sums, place = v.totals(products), v.offset(parts, builder.mul(k, LONG(SIZE)))
            for part in range(PARTS if two else PARTS - 1):
                v.store_number(sums, part, v.row(place, apart, part))
            v.store(v.fma(v.coefficient(a, k), dr_value, v.coefficient(w, k) * old), here)

    return body


write, write_silently = writing(False, True), writing(False, False)
write_two, write_two_silently = writing(True, True), writing(True, False)
collect, collect_two = collecting(False), collecting(True)
scatter, scatter_two = scattering(False), scattering(True)
