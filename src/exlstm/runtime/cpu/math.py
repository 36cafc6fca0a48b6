"""float32 elementary functions for Numba's loops, which LLVM vectorizes; `simd` has the formulas.

Import this page only from a Numba kernel's page: it imports Numba.
"""

from typing import Any

from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.extending import intrinsic

from exlstm.runtime.cpu import simd
from exlstm.runtime.cpu.simd import FASTMATH, formula

__all__ = [
    "FASTMATH",
    "bits_of_float",
    "cosine",
    "exp",
    "float_of_bits",
    "log_sigmoid",
    "sigmoid",
    "sine",
    "tanh",
    "where",
]


def _float_of_bits(_context: Any, _bits: Any) -> Any:
    """The float32 whose bit pattern is this int32."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.FloatType())

    return types.float32(types.int32), generate


def _bits_of_float(_context: Any, _x: Any) -> Any:
    """The bit pattern of this float32, as int32."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.IntType(32))

    return types.int32(types.float32), generate


def _where(_context: Any, _condition: Any, _x: Any, _y: Any) -> Any:
    """x where the condition holds, else y; Python's own form is a branch, which can keep LLVM from using vectors."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.select(*arguments)

    return types.float32(types.boolean, types.float32, types.float32), generate


float_of_bits: Any = intrinsic(_float_of_bits)
bits_of_float: Any = intrinsic(_bits_of_float)
where: Any = intrinsic(_where)
exp, sigmoid = formula(simd.exp), formula(simd.sigmoid)
log_sigmoid, tanh = formula(simd.log_sigmoid), formula(simd.tanh)
sine, cosine = formula(simd.sine), formula(simd.cosine)
