"""Numbers in bfloat16 or float32 inside kernels: read as float32, written rounded to nearest, ties to even.

N numbers
"""

from typing import Any

import numpy as np

from exlstm.runtime.cpu.jit import helper
from exlstm.runtime.cpu.math import bits_of_float, float_of_bits
from exlstm.runtime.cpu.memory import address_of, at, copy, put, put_uint16, tensor_at, uint16_at

Array = Any  # a float32 NumPy array inside Numba


@helper()
def widened(bits: Any) -> Any:
    """The float32 of a bfloat16's bits."""
    return float_of_bits(np.int32(np.uint32(bits) << np.uint32(16)))


@helper()
def rounded(x: Any) -> Any:
    """The bits of a float32 as bfloat16; NaN stays NaN."""
    bits = np.uint32(bits_of_float(x))
    half = np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    nan = (bits & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000)
    return np.uint16((bits if nan else bits + half) >> np.uint32(16))


@helper()
def read_number(x: int, bf16: bool) -> Any:
    """The number at an address."""
    return widened(uint16_at(x)) if bf16 else at(x, 0)


@helper()
def write_number(x: int, bf16: bool, value: Any) -> None:
    """The number at an address becomes `value`."""
    if bf16:
        put_uint16(x, rounded(value))
    else:
        put(x, 0, value)


@helper()
def copy_number(x: int, x_bf16: bool, out: int, out_bf16: bool) -> None:
    """The number at one address to another one."""
    write_number(out, out_bf16, read_number(x, x_bf16))


@helper()
def read_numbers(x: int, bf16: bool, x_N: Array) -> None:
    """The numbers that begin at an address."""
    if bf16:
        bits_N = tensor_at(x, x_N.size, np.uint16)
        for n in range(x_N.size):
            x_N[n] = widened(bits_N[n])
    else:
        copy(address_of(x_N), x, x_N.size)


@helper()
def write_numbers(x_N: Array, x: int, bf16: bool) -> None:
    """Numbers to an address."""
    if bf16:
        bits_N = tensor_at(x, x_N.size, np.uint16)
        for n in range(x_N.size):
            bits_N[n] = rounded(x_N[n])
    else:
        copy(x, address_of(x_N), x_N.size)
