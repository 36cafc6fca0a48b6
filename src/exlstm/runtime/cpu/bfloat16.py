"""Numbers in bfloat16 or float32 inside Numba kernels: read as float32, written rounded to the nearest even.

D numbers
"""

from typing import Any

import numpy as np

from exlstm.runtime.cpu.jit import helper
from exlstm.runtime.cpu.math import bits_of_float, float_of_bits
from exlstm.runtime.cpu.memory import address_of, copy, tensor_at

Array = Any  # a float32 NumPy array inside Numba


@helper()
def read_numbers(x: int, short: bool, x_D: Array) -> None:
    """The numbers that begin at address x, of bfloat16 if `short`, else of float32."""
    D = x_D.size
    if short:
        short_D = tensor_at(x, D, np.uint16)
        for j in range(D):
            x_D[j] = float_of_bits(np.int32(np.uint32(short_D[j]) << np.uint32(16)))
    else:
        copy(address_of(x_D), x, D)


@helper()
def write_numbers(x_D: Array, x: int, short: bool) -> None:
    """The same way back: to the nearest bfloat16, of two to the even one; what is no number stays none."""
    D = x_D.size
    if short:
        short_D = tensor_at(x, D, np.uint16)
        for j in range(D):
            bits = np.uint32(bits_of_float(x_D[j]))
            half = np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
            nan = (bits & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000)
            short_D[j] = np.uint16((bits if nan else bits + half) >> np.uint32(16))
    else:
        copy(x, address_of(x_D), D)
