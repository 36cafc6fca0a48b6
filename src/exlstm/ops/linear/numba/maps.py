"""Linear maps as kernels read them from a `ConstantTable`."""

from typing import Any, NamedTuple

from numpy import float32

from exlstm.runtime.cpu.bfloat16 import read_number
from exlstm.runtime.cpu.jit import helper
from exlstm.runtime.cpu.memory import at, byte_at, long_at

NONE, FLOAT32, BFLOAT16, INT8, INT4 = range(5)  # kinds of numbers


class Map(NamedTuple):
    """A map as kernels read it from a `ConstantTable`. Addresses of missing tensors are 0."""

    kind: int
    rows: int
    item_rows: int  # in an item
    first_item: int
    weight: int
    scale: int
    offset: int
    bias: int
    bias_kind: int
    result_kind: int


MAP_BYTES = 8 * len(Map._fields)


@helper()
def map_at(m: int) -> Map:
    """The map in a table."""
    return Map(long_at(m), long_at(m + 8), long_at(m + 16), long_at(m + 24), long_at(m + 32), long_at(m + 40),
               long_at(m + 48), long_at(m + 56), long_at(m + 64), long_at(m + 72))  # fmt: skip


@helper()
def map_of(item: int, n: int, num_maps: int, maps: int) -> int:
    """The number of the map that an item is of. n: where to begin to look, the map of the item before."""
    while n < num_maps - 1 and long_at(maps + MAP_BYTES * (n + 1) + 24) <= item:
        n += 1
    while long_at(maps + MAP_BYTES * n + 24) > item:
        n -= 1
    return n


@helper()
def number(kind: int, x: int, index: int) -> Any:
    """Element `index` of an array of this kind, as float32."""
    if kind == FLOAT32:
        return at(x, index)
    if kind == BFLOAT16:
        return read_number(x + 2 * index, True)
    return float32(byte_at(x + index))
