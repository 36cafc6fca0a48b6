"""Matrix products inside Numba kernels, by the BLAS that torch brings along.

torch's own products are as fast, but each call goes through Python, and threads that all go through Python wait for
each other there. A compiled kernel that calls BLAS itself runs without the interpreter lock from start to end.

BLAS is found under its standard name `sgemm_` in the library that torch has loaded. A build of torch may
hide it: `obstacle()` says so, and callers need another form. Import this page only from a Numba kernel's page.
"""

import ctypes
from functools import cache, partial
from pathlib import Path
from typing import Any

import llvmlite.binding as llvm  # type: ignore[import-untyped]
import torch
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from exlstm.runtime.cpu.internals import alloca_value, llvm_function, tuple_parts
from exlstm.runtime.cpu.jit import helper

Array = Any  # a float32 NumPy array inside Numba

# Compiled kernels know BLAS by this name, not by its address, so that they can be cached on disk.
SYMBOL = "exlstm_sgemm"
LONG, FLOAT, BYTE = ir.IntType(64), ir.FloatType(), ir.IntType(8)


def _sgemm(_context: Any, out: Any, a: Any, b: Any, _alpha: Any, _beta: Any) -> Any:
    """See `product`."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        def unpacked(n: int) -> tuple[Any, Any, Any]:
            array = context.make_array(signature.args[n])(context, builder, arguments[n])
            shape, strides = (tuple_parts(builder, x, 2) for x in (array.shape, array.strides))
            return array.data, shape, [builder.sdiv(x, LONG(4)) for x in strides]

        def larger(x: Any, y: Any) -> Any:
            return builder.select(builder.icmp_signed(">", x, y), x, y)

        def layout(shape: Any, apart: Any) -> tuple[Any, Any]:
            """N or T, and the distance between rows or columns, of a matrix whose rows, or columns, are contiguous."""
            in_rows = builder.icmp_signed("==", apart[1], LONG(1))
            distance = builder.select(in_rows, larger(apart[0], shape[1]), larger(apart[1], shape[0]))
            return builder.select(in_rows, BYTE(ord("N")), BYTE(ord("T"))), distance

        # column-major: out^T = b^T a^T. Little-endian 64-bit integers are valid 32-bit ones too
        (out_data, (M, N), out_apart), (a_data, a_shape, a_apart), (b_data, b_shape, b_apart) = map(unpacked, range(3))
        (a_letter, a_distance), (b_letter, b_distance) = layout(a_shape, a_apart), layout(b_shape, b_apart)
        given = partial(alloca_value, builder)
        passed = (
            given(b_letter), given(a_letter), given(N), given(M), given(a_shape[1]), given(arguments[3]), b_data,
            given(b_distance), a_data, given(a_distance), given(arguments[4]), out_data, given(larger(out_apart[0], N)),
        )  # fmt: skip
        sgemm = llvm_function(builder, SYMBOL, ir.VoidType(), [BYTE.as_pointer()] * len(passed))
        builder.call(sgemm, [builder.bitcast(x, BYTE.as_pointer()) for x in passed])
        return context.get_dummy_value()

    return types.void(out, a, b, types.float32, types.float32), generate


sgemm: Any = intrinsic(_sgemm)


@helper()
def product(out_MN: Array, a_MI: Array, b_IN: Array, alpha: float, beta: float) -> None:
    """out = alpha a b + beta out, in float32. Slices with contiguous rows are welcome, and .T of these as a and b."""
    sgemm(out_MN, a_MI, b_IN, alpha, beta)


@cache
def obstacle() -> str | None:
    """Why kernels cannot call BLAS here, or None. Registers its address with LLVM."""
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
