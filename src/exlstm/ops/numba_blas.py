"""Matrix products inside Numba kernels, by the BLAS that torch brings along.

torch's own products are as fast, but each call goes through Python, and threads that all go through Python wait for
each other there. A compiled kernel that calls BLAS itself runs without the interpreter lock from start to end.

BLAS is found under its standard name `sgemm_` in the library that torch has loaded. Where a build of torch hides it
there is `obstacle()`, and callers have another way. Import this page only from a Numba kernel's page.
"""

import ctypes
from functools import cache
from pathlib import Path
from typing import Any

import llvmlite.binding as llvm  # type: ignore[import-untyped]
import numpy as np
import torch
from numba import njit, types

Array = Any  # a float32 NumPy array inside Numba

# Compiled kernels know BLAS by this name, not by its address, so that they can be kept on disk.
SYMBOL = "exlstm_sgemm"
sgemm: Any = types.ExternalFunction(SYMBOL, types.void(*[types.intp] * 13))


@njit(error_model="numpy")
def layout(x_IJ: Array) -> tuple[int, int]:
    """(N or T, distance between rows or columns) of a matrix whose rows, or columns, are contiguous."""
    rows_apart, columns_apart = x_IJ.strides[0] // 4, x_IJ.strides[1] // 4
    if columns_apart == 1:
        return ord("N"), max(rows_apart, x_IJ.shape[1])
    return ord("T"), max(columns_apart, x_IJ.shape[0])


@njit(error_model="numpy")
def product(out_MN: Array, a_MI: Array, b_IN: Array, alpha: float, beta: float) -> None:
    """out = alpha a b + beta out, in float32. Slices with contiguous rows are welcome, and .T of these as a and b."""
    # BLAS wants everything by address and columns first: out^T = b^T a^T. Whole numbers are right in 32 bits as in 64.
    (M, N), depth = out_MN.shape, a_MI.shape[1]
    a_letter, a_apart = layout(a_MI)
    b_letter, b_apart = layout(b_IN)
    sizes = np.array([N, M, depth, b_apart, a_apart, max(out_MN.strides[0] // 4, N)])
    factors = np.array([alpha, beta], dtype=np.float32)
    letters = np.array([b_letter, a_letter], dtype=np.uint8)
    size, factor, letter = sizes.ctypes.data, factors.ctypes.data, letters.ctypes.data
    sgemm(
        letter, letter + 1, size, size + 8, size + 16, factor, b_IN.ctypes.data, size + 24,
        a_MI.ctypes.data, size + 32, factor + 4, out_MN.ctypes.data, size + 40,
    )  # fmt: skip
    # an address keeps nothing alive: these are freed after their last use, which must come after the call
    sizes[0], factors[0], letters[0] = 0, 0, 0


@cache
def obstacle() -> str | None:
    """Why kernels cannot call BLAS here, or None. Makes it known to them."""
    folder = Path(torch.__file__).parent / "lib"
    for name in ("libtorch_cpu.so", "libtorch_cpu.dylib", "torch_cpu.dll"):
        if (folder / name).exists():
            try:
                address = ctypes.cast(ctypes.CDLL(str(folder / name)).sgemm_, ctypes.c_void_p).value
            except (OSError, AttributeError):
                break
            llvm.add_symbol(SYMBOL, address)
            return None
    return "this build of torch has no BLAS that others can call"
