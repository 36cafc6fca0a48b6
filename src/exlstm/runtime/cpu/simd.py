"""float32 arithmetic written in LLVM's instructions, for single numbers and for vectors.

Numba would infer types for every operation of a formula, wherever the formula is used, and LLVM would have to find the
vectors. Here Python's operators on `SimdValue` write the instructions down. The functions are good to 3 units in the
last place, and to half a unit on average; the tests measure it.
"""

from collections.abc import Callable
from typing import Any

from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.extending import intrinsic

from exlstm.runtime.cpu.internals import llvm_function

FLOAT, WORD = ir.FloatType(), ir.IntType(32)
# Fused multiply-adds are welcome. Reassociation is not: it would merge the two parts of log 2 in `exp`, which costs
# a digit or two at large arguments; nor is "no infinities": infinities must stay.
FASTMATH = {"contract", "nsz", "arcp"}
FLAGS = tuple(sorted(FASTMATH))


def operation(instruction: str, swapped: bool = False) -> "Callable[[SimdValue, Any], SimdValue]":
    """A method for one of Python's operators."""

    def write(self: "SimdValue", other: Any) -> "SimdValue":
        x, y = self.value, self.constant(other)
        x, y = (y, x) if swapped else (x, y)
        return SimdValue(self.builder, getattr(self.builder, instruction)(x, y, flags=FLAGS))

    return write


def comparison(sign: str) -> "Callable[[SimdValue, Any], SimdValue]":
    """The same for comparisons, which are false for NaN; `!=` is not one of them."""

    def write(self: "SimdValue", other: Any) -> "SimdValue":
        return SimdValue(self.builder, self.builder.fcmp_ordered(sign, self.value, self.constant(other), flags=FLAGS))

    return write


class SimdValue:
    """One value of LLVM: a float32 or a vector of them, or what a comparison of such gives."""

    def __init__(self, builder: Any, value: Any) -> None:
        self.builder, self.value = builder, value

    def constant(self, x: Any) -> Any:
        """A Python number as a value of the same kind."""
        if isinstance(x, SimdValue):
            return x.value
        kind = self.value.type
        return ir.Constant(kind, [x] * kind.count if isinstance(kind, ir.VectorType) else x)

    __add__ = __radd__ = operation("fadd")
    __mul__ = __rmul__ = operation("fmul")
    __sub__, __rsub__ = operation("fsub"), operation("fsub", swapped=True)
    __truediv__, __rtruediv__ = operation("fdiv"), operation("fdiv", swapped=True)
    __lt__, __gt__, __ge__ = comparison("<"), comparison(">"), comparison(">=")

    def bits(self) -> "SimdValue":
        """The bit patterns, as 32-bit words."""
        kind = self.value.type
        words = ir.VectorType(WORD, kind.count) if isinstance(kind, ir.VectorType) else WORD
        return SimdValue(self.builder, self.builder.bitcast(self.value, words))

    def with_bits(self, words: Any) -> "SimdValue":
        """The value of these bit patterns."""
        return SimdValue(self.builder, self.builder.bitcast(words, self.value.type))

    def zero(self) -> "SimdValue":
        """The mask of zeros."""
        return SimdValue(self.builder, self.builder.fcmp_ordered("==", self.value, self.constant(0.0), flags=FLAGS))

    def __or__(self, other: "SimdValue") -> "SimdValue":
        return SimdValue(self.builder, self.builder.or_(self.value, other.value))

    def __neg__(self) -> "SimdValue":
        return SimdValue(self.builder, self.builder.fneg(self.value, flags=FLAGS))

    def __abs__(self) -> "SimdValue":
        bits = self.bits()
        return self.with_bits(self.builder.and_(bits.value, bits.constant(0x7FFFFFFF)))


def where(condition: SimdValue, x: Any, y: Any) -> SimdValue:
    """x where the condition holds, else y; one of the two may be a Python number, and the condition one for all."""
    kind = x if isinstance(x, SimdValue) else y
    return SimdValue(condition.builder, condition.builder.select(condition.value, kind.constant(x), kind.constant(y)))


def sqrt(x: SimdValue) -> SimdValue:
    """The square root, rounded to nearest."""
    kind = x.value.type
    name = f"llvm.sqrt.v{kind.count}f32" if isinstance(kind, ir.VectorType) else "llvm.sqrt.f32"
    return SimdValue(x.builder, x.builder.call(llvm_function(x.builder, name, kind, [kind]), [x.value]))


def power_of_two(shifted: SimdValue) -> SimdValue:
    """2^n, where n are the lowest bits of `shifted`."""
    builder, bits = shifted.builder, shifted.bits()
    return shifted.with_bits(builder.shl(builder.add(bits.value, bits.constant(127)), bits.constant(23)))


def exp(x: SimdValue) -> SimdValue:
    """e^x; 0 below -87, and never more than e^88."""
    return exp_below(where(x > 88.0, 88.0, x))


def exp_below(x: SimdValue) -> SimdValue:
    """`exp` for arguments known to be at most 88. Comparisons are such that NaN stays NaN."""
    bounded = where(x < -87.0, -87.0, x)
    # x = n log 2 + rest, with log 2 in two parts so that the rest keeps its digits; e^rest by a Taylor polynomial.
    # Next to 1.5 * 2^23 floats are whole numbers: adding it rounds, and leaves n in the lowest bits
    shifted = bounded * 1.44269504 + 12582912.0
    n = shifted - 12582912.0
    rest = (bounded - n * 0.693359375) - n * -2.12194440e-4
    p = rest * (1 / 5040) + 1 / 720
    for factorial in (120, 24, 6, 2):
        p = p * rest + 1 / factorial
    p = p * rest * rest + rest + 1.0
    return where(x < -87.0, 0.0, p * power_of_two(shifted))


def sigmoid(x: SimdValue) -> SimdValue:
    """1 / (1 + e^-x)."""
    e = exp_below(-abs(x))
    return where(x >= 0.0, 1.0, e) / (e + 1.0)


def log_sigmoid(x: SimdValue) -> SimdValue:
    """log(1 / (1 + e^-x)) = min(x, 0) - log(1 + e^-|x|); the logarithm as 2 artanh(e / (2 + e))."""
    e = exp_below(-abs(x))
    s = e / (e + 2.0)
    s2 = s * s
    p = s2 * (1 / 15) + 1 / 13
    for odd in (11, 9, 7, 5, 3):
        p = p * s2 + 1 / odd
    return where(x > 0.0, 0.0, x) - 2.0 * (s + s * s2 * p)


def tanh(x: SimdValue) -> SimdValue:
    """1 - 2 / (e^2|x| + 1) with x's sign; near zero a polynomial (Cephes), which loses no digits there."""
    e = exp_below(-2.0 * abs(x))
    far = 1.0 - (2.0 * e) / (1.0 + e)
    x2 = x * x
    p = x2 * -5.70498872745e-3 + 2.06390887954e-2
    for coefficient in (-5.37397155531e-2, 1.33314422036e-1, -3.33332819422e-1):
        p = p * x2 + coefficient
    near = p * x2 * x + x
    return where(abs(x) < 0.625, near, where(x >= 0.0, far, -far))


def sine(x: SimdValue) -> SimdValue:
    """sin x, for |x| up to some thousands."""
    return turned(x, 0)


def cosine(x: SimdValue) -> SimdValue:
    """cos x, for |x| up to some thousands."""
    return turned(x, 1)


def turned(x: SimdValue, quarters: int) -> SimdValue:
    """sin(x + quarters pi / 2). x = n pi / 2 + rest, with pi / 2 in three parts; n is found as in `exp_below`."""
    shifted = x * 0.636619772 + 12582912.0
    n = shifted - 12582912.0
    rest = ((x - n * 1.5703125) - n * 4.837512969970703e-4) - n * 7.549789948768648e-8
    r2 = rest * rest
    # polynomials of Cephes, for up to pi / 4
    odd = ((r2 * -1.9515295891e-4 + 8.3321608736e-3) * r2 - 1.6666654611e-1) * r2 * rest + rest
    even = ((r2 * 2.443315711809948e-5 - 1.388731625493765e-3) * r2 + 4.166664568298827e-2) * r2 * r2 - 0.5 * r2 + 1.0
    builder, bits = x.builder, shifted.bits()
    place = builder.add(bits.value, bits.constant(quarters))
    is_even = builder.icmp_signed("!=", builder.and_(place, bits.constant(1)), bits.constant(0))
    sign = builder.shl(builder.and_(place, bits.constant(2)), bits.constant(30))
    chosen = where(SimdValue(builder, is_even), even, odd)
    return chosen.with_bits(builder.xor(chosen.bits().value, sign))


def formula(function: Callable[[SimdValue], SimdValue]) -> Any:
    """`function` for Numba: of a float32. In a loop LLVM makes vectors of it, which it cannot of calls to libm."""

    def typed(_context: Any, _x: Any) -> Any:
        def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
            return function(SimdValue(builder, arguments[0])).value

        return types.float32(types.float32), generate

    return intrinsic(typed)
