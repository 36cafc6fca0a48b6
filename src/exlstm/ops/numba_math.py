"""float32 elementary functions that LLVM vectorises inside Numba loops, where calls into libm do not.

Each is good to 3 units in the last place, and to half a unit on average; the tests measure it. Import this page only
from a Numba kernel's page: it imports Numba.
"""

from typing import Any

from llvmlite import ir  # type: ignore[import-untyped]
from numba import njit, types
from numba.extending import intrinsic
from numpy import float32, int32

# Fused multiply-adds are welcome. Reassociation is not: it would merge the two parts of log 2 in `exp`, which costs
# a digit or two at large arguments; nor is "no infinities": they must stay what they are.
FASTMATH = {"contract", "nsz", "arcp"}


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


@njit(inline="always", fastmath=FASTMATH)
def exp(x: Any) -> Any:
    """e^x; 0 below -87, and never more than e^88."""
    return exp_below(where(x > float32(88.0), float32(88.0), x))


@njit(inline="always", fastmath=FASTMATH)
def exp_below(x: Any) -> Any:
    """`exp` for arguments known to be at most 88. Comparisons are such that NaN stays NaN."""
    bounded = where(x < float32(-87.0), float32(-87.0), x)
    # x = n log 2 + rest, with log 2 in two parts so that the rest keeps its digits; e^rest by a Taylor polynomial.
    # Next to 1.5 * 2^23 floats are whole numbers: adding it rounds, and leaves n in the lowest bits
    shifted = bounded * float32(1.44269504) + float32(12582912.0)
    n = shifted - float32(12582912.0)
    rest = (bounded - n * float32(0.693359375)) - n * float32(-2.12194440e-4)
    p = float32(1.0 / 5040.0)
    p = p * rest + float32(1.0 / 720.0)
    p = p * rest + float32(1.0 / 120.0)
    p = p * rest + float32(1.0 / 24.0)
    p = p * rest + float32(1.0 / 6.0)
    p = p * rest + float32(0.5)
    p = p * rest * rest + rest + float32(1.0)
    y = p * float_of_bits(int32((bits_of_float(shifted) + int32(127)) << int32(23)))
    return where(x < float32(-87.0), float32(0.0), y)


@njit(inline="always", fastmath=FASTMATH)
def sigmoid(x: Any) -> Any:
    """1 / (1 + e^-x)."""
    e = exp_below(-abs(x))
    return where(x >= float32(0.0), float32(1.0), e) / (float32(1.0) + e)


@njit(inline="always", fastmath=FASTMATH)
def log_sigmoid(x: Any) -> Any:
    """log(1 / (1 + e^-x)) = min(x, 0) - log(1 + e^-|x|); the logarithm as 2 artanh(e / (2 + e))."""
    e = exp_below(-abs(x))
    s = e / (float32(2.0) + e)
    s2 = s * s
    p = float32(1.0 / 15.0)
    p = p * s2 + float32(1.0 / 13.0)
    p = p * s2 + float32(1.0 / 11.0)
    p = p * s2 + float32(1.0 / 9.0)
    p = p * s2 + float32(1.0 / 7.0)
    p = p * s2 + float32(1.0 / 5.0)
    p = p * s2 + float32(1.0 / 3.0)
    return where(x > float32(0.0), float32(0.0), x) - float32(2.0) * (s + s * s2 * p)


@njit(inline="always", fastmath=FASTMATH)
def tanh(x: Any) -> Any:
    """(1 - e^-2|x|) / (1 + e^-2|x|) with x's sign; near zero a polynomial (Cephes), which loses no digits there."""
    e = exp_below(float32(-2.0) * abs(x))
    far = (float32(1.0) - e) / (float32(1.0) + e)
    x2 = x * x
    p = float32(-5.70498872745e-3)
    p = p * x2 + float32(2.06390887954e-2)
    p = p * x2 + float32(-5.37397155531e-2)
    p = p * x2 + float32(1.33314422036e-1)
    p = p * x2 + float32(-3.33332819422e-1)
    near = p * x2 * x + x
    return where(abs(x) < float32(0.625), near, where(x >= float32(0.0), far, -far))
