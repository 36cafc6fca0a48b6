"""Vectors of float32 numbers in memory, written in LLVM's instructions, for tiles that LLVM's vectorizer does not find.

    @inlined(3)
    def add_scaled(builder, out, x, factor):
        v = Vectors(builder, 16)
        v.store(v.fma(v.load(x), v.number(factor), v.load(out)), out)

makes a function for kernels, of three addresses.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from inspect import Parameter, Signature
from typing import Any

from llvmlite import binding, ir  # type: ignore[import-untyped]
from numba import types
from numba.extending import intrinsic

from exlstm.runtime.cpu.internals import alloca, loop
from exlstm.runtime.cpu.simd import FLOAT, WORD, SimdValue

__all__ = ["LONG", "Vectors", "inlined", "loop", "register_width", "repeated"]
LONG, UINT16 = ir.IntType(64), ir.IntType(16)
BYTES = 4  # of a number
# Not the flags of `simd`: with those LLVM may fuse the other product of two, and a sum would depend on the code around.
FUSED = ("contract",)


def register_width() -> int:
    """float32 numbers in a vector register of this CPU: 16 with AVX-512, 8 with AVX, else 4."""
    features = binding.get_host_cpu_features()
    return 16 if features.get("avx512f") else 8 if features.get("avx") else 4


def inlined(count: int) -> Callable[[Callable[..., None]], Any]:
    """Decorates `body(builder, *values)`, which writes instructions: a function for kernels of so many values.

    Each is an int64, or a flag where the kernel passes a bool.
    """

    def decorate(body: Callable[..., None]) -> Any:
        def typed(_context: Any, *given: Any) -> Any:
            def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
                body(builder, *arguments)
                return context.get_dummy_value()

            return types.void(*(x if isinstance(x, types.Boolean) else types.int64 for x in given)), generate

        # Numba reads the number of arguments from the signature
        names = ["context", *(f"x{n}" for n in range(count))]
        vars(typed)["__signature__"] = Signature([Parameter(name, Parameter.POSITIONAL_OR_KEYWORD) for name in names])
        return intrinsic(typed)

    return decorate


@contextmanager
def repeated(builder: Any, count: Any) -> Iterator[Any]:
    """A `with` block that is run `count` times, at least once; gives the index. It tests at its end, unlike `loop`."""
    before, body, end = builder.block, builder.append_basic_block("body"), builder.append_basic_block("end")
    builder.branch(body)
    builder.position_at_end(body)
    index = builder.phi(LONG)
    index.add_incoming(LONG(0), before)
    yield index
    following = builder.add(index, LONG(1))
    index.add_incoming(following, builder.block)
    builder.cbranch(builder.icmp_signed("<", following, count), body, end)
    builder.position_at_end(end)


class Vectors:
    """Loads, stores and combines vectors of `width` numbers. Addresses are values of type LONG, of any alignment."""

    def __init__(self, builder: Any, width: int) -> None:
        self.builder, self.width, self.kind = builder, width, ir.VectorType(FLOAT, width)

    def offset(self, address: Any, bytes_: Any) -> Any:
        """An address so many bytes further, a number or a value."""
        return self.builder.add(address, LONG(bytes_) if isinstance(bytes_, int) else bytes_)

    def row(self, address: Any, step: Any, n: int) -> Any:
        """The address of row n; step: the value of bytes between rows."""
        return self.builder.add(address, self.builder.mul(step, LONG(n)))

    def raw(self, address: Any, kind: Any) -> Any:
        """A value of another kind at an address."""
        return self.builder.load(self.builder.inttoptr(address, kind.as_pointer()), align=1)

    def load(self, address: Any) -> SimdValue:
        """The vector at an address."""
        return SimdValue(self.builder, self.raw(address, self.kind))

    def load_bf16(self, address: Any) -> SimdValue:
        """The vector of bfloat16 at an address."""
        words = ir.VectorType(WORD, self.width)
        bits = self.builder.zext(self.raw(address, ir.VectorType(UINT16, self.width)), words)
        shifted = self.builder.shl(bits, ir.Constant(words, [16] * self.width))
        return SimdValue(self.builder, self.builder.bitcast(shifted, self.kind))

    def store(self, x: SimdValue, address: Any) -> None:
        """A vector to an address."""
        self.builder.store(x.value, self.builder.inttoptr(address, self.kind.as_pointer()), align=BYTES)

    def store_number(self, x: SimdValue, n: int, address: Any) -> None:
        """Number n of a vector to an address."""
        number = self.builder.extract_element(x.value, WORD(n))
        self.builder.store(number, self.builder.inttoptr(address, FLOAT.as_pointer()), align=BYTES)

    def broadcast(self, number: Any) -> SimdValue:
        """The same number in all places."""
        first = self.builder.insert_element(ir.Constant(self.kind, ir.Undefined), number, WORD(0))
        return self.shuffle(SimdValue(self.builder, first), [0] * self.width)

    def number(self, address: Any) -> SimdValue:
        """The number at an address in all places."""
        return self.broadcast(self.raw(address, FLOAT))

    def zeros(self) -> SimdValue:
        """Zeros."""
        return SimdValue(self.builder, ir.Constant(self.kind, [0.0] * self.width))

    def shuffle(self, x: SimdValue, places: Sequence[int]) -> SimdValue:
        """The numbers at these places."""
        mask = ir.Constant(ir.VectorType(WORD, len(places)), list(places))
        return SimdValue(self.builder, self.builder.shuffle_vector(x.value, x.value, mask))

    def total(self, x: SimdValue) -> Any:
        """The sum of all places, always in the same order."""
        width = self.width
        while width > 1:
            width //= 2
            low, high = (self.shuffle(x, range(n, n + width)) for n in (0, width))
            x = SimdValue(self.builder, self.builder.fadd(low.value, high.value))
        return self.builder.extract_element(x.value, WORD(0))

    def totals(self, vectors: Sequence[SimdValue]) -> SimdValue:
        """A vector of the sums of all places of these vectors, a power of two of them, always in the same order.

        Fewer instructions than their `total`s: two vectors are added as soon as each has half its width left.
        """
        found, size = list(vectors), self.width  # size: places whose sum is one of the results
        while len(found) > 1:
            found, size = [self.halved(x, y, size) for x, y in zip(found[::2], found[1::2], strict=True)], size // 2
        (sums,) = found
        while size > 1:
            sums, size = self.halved(sums, None, size), size // 2
        return sums

    def halved(self, x: SimdValue, y: SimdValue | None, size: int) -> SimdValue:
        """Of every `size` places of x, then of y, the lower half plus the upper."""
        places = x.value.type.count * (1 if y is None else 2)
        low = [n for n in range(places) if n % size < size // 2]
        half = [
            self.builder.shuffle_vector(
                x.value, (x if y is None else y).value,
                ir.Constant(ir.VectorType(WORD, len(low)), [n + shift for n in low]),
            )
            for shift in (0, size // 2)
        ]  # fmt: skip
        return SimdValue(self.builder, self.builder.fadd(*half))

    def fma(self, x: SimdValue, y: SimdValue, total: SimdValue) -> SimdValue:
        """x y + total, rounded once where the processor can."""
        product = self.builder.fmul(x.value, y.value, flags=FUSED)
        return SimdValue(self.builder, self.builder.fadd(product, total.value, flags=FUSED))

    def variable(self, x: SimdValue) -> "Variable":
        """A vector that a loop changes."""
        return Variable(self.builder, x)


class Variable:
    """A vector that a loop changes. LLVM holds it in a register."""

    def __init__(self, builder: Any, x: SimdValue) -> None:
        self.builder, self.place = builder, alloca(builder, x.value.type)
        self.set(x)

    def get(self) -> SimdValue:
        """The value at this point of the code."""
        return SimdValue(self.builder, self.builder.load(self.place))

    def set(self, x: SimdValue) -> None:
        """Assigns the value."""
        self.builder.store(x.value, self.place)
