"""Units of a cell in blocks of 16, written straight in LLVM's vectors.

A block holds parts of 16 units, such as their gates: 16 neighbors of one part, then 16 of the next. A row of a batch
has a block for every 16 units, the last one filled up. `tile.product` writes such rows.

V units  B batch  T time
"""

from collections.abc import Callable
from inspect import signature
from typing import Any

from exlstm.runtime.cpu.jit import helper
from exlstm.runtime.cpu.memory import SIZE, at, clear, copy, put
from exlstm.runtime.cpu.simd import SimdValue
from exlstm.runtime.cpu.tile import PANEL
from exlstm.runtime.cpu.vectors import Vectors, inlined

Array = Any  # a NumPy array inside Numba


class Units:
    """The numbers of 16 units at an address: each part is read and written as one vector."""

    def __init__(self, builder: Any, address: Any) -> None:
        self.vectors, self.address = Vectors(builder, PANEL), address

    def part(self, n: int) -> Any:
        """The address of part n."""
        return self.vectors.offset(self.address, SIZE * PANEL * n)

    def __getitem__(self, n: int) -> SimdValue:
        return self.vectors.load(self.part(n))

    def __setitem__(self, n: int, x: SimdValue) -> None:
        self.vectors.store(x, self.part(n))

    def number(self, n: int) -> SimdValue:
        """Number n at the address, in all places."""
        return self.vectors.number(self.vectors.offset(self.address, SIZE * n))


def simd16(function: Callable[..., None]) -> Any:
    """`function` for kernels: parameters annotated `Units` are addresses, those annotated `SimdValue` flags."""
    kinds = [x.annotation for x in signature(function).parameters.values()]

    @inlined(len(kinds))
    def body(builder: Any, *values: Any) -> None:
        function(*(kind(builder, x) for kind, x in zip(kinds, values, strict=True)))

    return body


@simd16
def add16(out: Units, x: Units) -> None:
    """out += x for 16 neighbors."""
    out[0] = out[0] + x[0]


@helper()
def width(V: int, u: int) -> int:
    """Units in group u of 16 units."""
    return PANEL if V - u * PANEL > PANEL else V - u * PANEL


@helper()
def add_parts(block: int, parts: int, x: int, apart: int, count: int) -> None:
    """Adds x to parts of a block. apart: numbers from a part of x to the next; count: units, of which there may be few.

    For the end of a sum: a large x would round every partial sum.
    """
    for part in range(parts):
        if count == PANEL:
            add16(block + SIZE * part * PANEL, x + SIZE * part * apart)
        else:
            for j in range(count):
                put(block, part * PANEL + j, at(block, part * PANEL + j) + at(x, part * apart + j))


@helper()
def store_parts(out: int, apart: int, block: int, parts: int, count: int) -> None:
    """Copies parts of a block without what it was filled up with. apart: numbers from a part of out to the next."""
    for part in range(parts):
        copy(out + SIZE * part * apart, block + SIZE * part * PANEL, count)


@helper()
def load(block: int, size: int, part: int, x: int, V: int) -> None:
    """Fills part `part` of a row's blocks, of `size` numbers each, from a row of a state."""
    for v in range(V):
        put(block, v // PANEL * size + part * PANEL + v % PANEL, at(x, v))


@helper()
def store(block: int, size: int, part: int, x: int, V: int) -> None:
    """The inverse of `load`."""
    for v in range(V):
        put(x, v, at(block, v // PANEL * size + part * PANEL + v % PANEL))


@helper()
def reset_rows(
    reset_BT: Array, lengths_B: Array, row0: int, count: int, t: int, x: int, x_row: int, y: int, y_row: int
) -> None:
    """Clears x and y of the rows that are reset at step t. x_row, y_row: numbers in a row; 0 where there is no y."""
    for row in range(count):
        if reset_BT[row0 + row, t] and t < lengths_B[row0 + row]:
            clear(x + SIZE * row * x_row, x_row)
            clear(y + SIZE * row * y_row, y_row)
