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


float_of_bits: Any = intrinsic(_float_of_bits)


@njit(inline="always", fastmath=FASTMATH)
def exp(x: Any) -> Any:
    """e^x; 0 below -87, and never more than e^88."""
    bounded = min(max(x, float32(-87.0)), float32(88.0))
    # x = n log 2 + rest, with log 2 in two parts so that the rest keeps its digits; e^rest by a Taylor polynomial
    n = int32(bounded * float32(1.44269504) + (float32(0.5) if bounded >= float32(0.0) else float32(-0.5)))
    rest = (bounded - float32(n) * float32(0.693359375)) - float32(n) * float32(-2.12194440e-4)
    p = float32(1.0 / 5040.0)
    p = p * rest + float32(1.0 / 720.0)
    p = p * rest + float32(1.0 / 120.0)
    p = p * rest + float32(1.0 / 24.0)
    p = p * rest + float32(1.0 / 6.0)
    p = p * rest + float32(0.5)
    p = p * rest * rest + rest + float32(1.0)
    y = p * float_of_bits(int32((n + int32(127)) << int32(23)))
    # the last case is NaN, which has to stay one
    return y if x >= float32(-87.0) else (float32(0.0) if x < float32(-87.0) else x)


@njit(inline="always", fastmath=FASTMATH)
def sigmoid(x: Any) -> Any:
    """1 / (1 + e^-x)."""
    e = exp(-abs(x))
    return (float32(1.0) if x >= float32(0.0) else e) / (float32(1.0) + e)


@njit(inline="always", fastmath=FASTMATH)
def log_sigmoid(x: Any) -> Any:
    """log(1 / (1 + e^-x)) = min(x, 0) - log(1 + e^-|x|); the logarithm as 2 artanh(e / (2 + e))."""
    e = exp(-abs(x))
    s = e / (float32(2.0) + e)
    s2 = s * s
    p = float32(1.0 / 15.0)
    p = p * s2 + float32(1.0 / 13.0)
    p = p * s2 + float32(1.0 / 11.0)
    p = p * s2 + float32(1.0 / 9.0)
    p = p * s2 + float32(1.0 / 7.0)
    p = p * s2 + float32(1.0 / 5.0)
    p = p * s2 + float32(1.0 / 3.0)
    return min(x, float32(0.0)) - float32(2.0) * (s + s * s2 * p)


@njit(inline="always", fastmath=FASTMATH)
def tanh(x: Any) -> Any:
    """(1 - e^-2|x|) / (1 + e^-2|x|) with x's sign; near zero a continued fraction, which loses no digits there."""
    a = abs(x)
    e = exp(float32(-2.0) * a)
    far = (float32(1.0) - e) / (float32(1.0) + e)
    a2 = a * a
    above = float32(10395.0) + a2 * (float32(1260.0) + a2 * float32(21.0))
    below = float32(10395.0) + a2 * (float32(4725.0) + a2 * (float32(210.0) + a2))
    y = a * above / below if a < float32(0.6) else far
    return y if x >= float32(0.0) else -y
