"""Short loops over vectors inside Numba kernels: each touches few arrays, so that LLVM can tell them apart.

V numbers
"""

from typing import Any

from numpy import float32

from exlstm.runtime.cpu.jit import helper
from exlstm.runtime.cpu.math import exp
from exlstm.runtime.cpu.memory import at, put
from exlstm.runtime.cpu.simd import FASTMATH

Array = Any  # a float32 NumPy array inside Numba
Number = Any  # a float32
REORDER = FASTMATH | {"reassoc"}  # sums in any order, so that they vectorise; never where there is an `exp`


@helper(REORDER)
def total(x_V: Array) -> Number:
    """The sum of x."""
    result = float32(0.0)
    for j in range(x_V.size):
        result += x_V[j]
    return result


@helper(REORDER)
def dot(x_V: Array, y_V: Array) -> Number:
    """The sum of x * y."""
    result = float32(0.0)
    for j in range(x_V.size):
        result += x_V[j] * y_V[j]
    return result


@helper(REORDER)
def dot_at(x_V: int, y_V: int, V: int) -> Number:
    """The sum of x y, of numbers at addresses."""
    result = float32(0.0)
    for j in range(V):
        result += at(x_V, j) * at(y_V, j)
    return result


@helper()
def to_softmax(x_V: Array) -> None:
    """The softmax of x, in place."""
    largest, sum_of_all = x_V[0], float32(0.0)
    for j in range(1, x_V.size):
        largest = max(largest, x_V[j])
    for j in range(x_V.size):
        x_V[j] = exp(x_V[j] - largest)
        sum_of_all += x_V[j]
    for j in range(x_V.size):
        x_V[j] /= sum_of_all


@helper()
def shift(x_V: Array, by: Number, factor: Number, out_V: Array) -> None:
    """out = (x - by) factor; the difference comes first, for it is nearly exact."""
    for j in range(x_V.size):
        out_V[j] = (x_V[j] - by) * factor


@helper()
def multiply(x_V: Array, y_V: Array, out_V: Array) -> None:
    """out = x y"""
    for j in range(x_V.size):
        out_V[j] = x_V[j] * y_V[j]


@helper()
def add(x_V: Array, out_V: Array) -> None:
    """out += x"""
    for j in range(x_V.size):
        out_V[j] += x_V[j]


@helper()
def add_product(x_V: Array, y_V: Array, out_V: Array) -> None:
    """out += x y"""
    for j in range(x_V.size):
        out_V[j] += x_V[j] * y_V[j]


@helper(REORDER)
def add_product_at(out_V: int, x_V: int, y_V: int, V: int) -> None:
    """out += x y, of numbers at addresses."""
    for j in range(V):
        put(out_V, j, at(out_V, j) + at(x_V, j) * at(y_V, j))


@helper(REORDER)
def add_at(out_V: int, x_V: int, V: int) -> None:
    """out += x, of numbers at addresses."""
    for j in range(V):
        put(out_V, j, at(out_V, j) + at(x_V, j))


@helper()
def add_scaled(out_V: int, x_V: int, factor: float, V: int) -> None:
    """out += factor x, of numbers at addresses."""
    scale = float32(factor)
    for j in range(V):
        put(out_V, j, at(out_V, j) + scale * at(x_V, j))
