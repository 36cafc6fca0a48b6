"""Vectors of float32 numbers in memory, written in LLVM's instructions, for tiles that LLVM's vectorizer does not find.

    @inlined(3)
    def add_scaled(builder, out, x, factor):
        v = Vectors(builder, 16)
        v.store(v.fma(v.load(x), v.number(factor), v.load(out)), out)

makes a function for kernels, of three addresses.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from inspect import Parameter, Signature, signature
from typing import Any

from llvmlite import binding, ir  # type: ignore[import-untyped]
from numba import types
from numba.extending import intrinsic

from exlstm.runtime.cpu.internals import alloca, llvm_function, loop
from exlstm.runtime.cpu.simd import FLOAT, WORD, SimdValue

__all__ = ["LONG", "Vectors", "elementwise", "inlined", "loop", "register_width", "repeated"]
LONG, UINT16, DOUBLE = ir.IntType(64), ir.IntType(16), ir.DoubleType()
BYTES = 4  # of a number
LANES = 16  # numbers that `elementwise` takes at a time: a cache line
# Not the flags of `simd`: with those LLVM may fuse the other product of two, and a sum would depend on the code around.
FUSED = ("contract",)


def register_width() -> int:
    """float32 numbers in a vector register of this CPU: 16 with AVX-512, 8 with AVX, else 4."""
    features = binding.get_host_cpu_features()
    return 16 if features.get("avx512f") else 8 if features.get("avx") else 4


def inlined(count: int) -> Callable[[Callable[..., None]], Any]:
    """Decorates `body(builder, *values)`, which writes instructions: a function for kernels of so many values.

    Each is an int64, or a flag or a number with a fraction where the kernel passes one.
    """

    def decorate(body: Callable[..., None]) -> Any:
        def typed(_context: Any, *given: Any) -> Any:
            def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
                body(builder, *arguments)
                return context.get_dummy_value()

            kept = (types.Boolean, types.Float)
            return types.void(*(x if isinstance(x, kept) else types.int64 for x in given)), generate

        # Numba reads the number of arguments from the signature
        names = ["context", *(f"x{n}" for n in range(count))]
        vars(typed)["__signature__"] = Signature([Parameter(name, Parameter.POSITIONAL_OR_KEYWORD) for name in names])
        return intrinsic(typed)

    return decorate


def elementwise(body: Callable[..., None]) -> Any:
    """Decorates `body(v, *addresses)`: a function for kernels, (count, *addresses), for so many neighbors at each.

    `body` is written twice: with vectors of 16 numbers, and with vectors of one for the rest. LLVM makes vectors of a
    plain loop only while it can check at run time that no two of its addresses overlap, which it gives up for many.
    """

    @inlined(len(signature(body).parameters))
    def loops(builder: Any, count: Any, *addresses: Any) -> None:
        whole = builder.and_(count, LONG(-LANES))
        for start, stop, width in ((LONG(0), whole, LANES), (whole, count, 1)):
            with loop(builder, start, stop, LONG(width)) as (index, _):
                here = builder.mul(index, LONG(BYTES))
                body(Vectors(builder, width), *(builder.add(x, here) for x in addresses))

    return loops


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

    def load(self, address: Any, mask: Any = None) -> SimdValue:
        """The vector at an address; places outside of a mask are not read, and are zero."""
        if mask is None:
            return SimdValue(self.builder, self.raw(address, self.kind))
        pointer = self.builder.inttoptr(address, self.kind.as_pointer())
        given = [pointer, WORD(BYTES), mask, self.zeros().value]
        return SimdValue(self.builder, self.call(f"llvm.masked.load.v{self.width}f32.p0", self.kind, given))

    def load_rounded(self, address: Any, mask: Any, shift: Any) -> SimdValue:
        """float64 numbers at an address plus a float64 number, rounded; places outside of a mask are not read."""
        kind = ir.VectorType(DOUBLE, self.width)
        pointer = self.builder.inttoptr(address, kind.as_pointer())
        given = [pointer, WORD(2 * BYTES), mask, ir.Constant(kind, [0.0] * self.width)]
        x = self.call(f"llvm.masked.load.v{self.width}f64.p0", kind, given)
        x = self.builder.fadd(x, self.spread(shift))
        return SimdValue(self.builder, self.builder.fptrunc(x, self.kind))

    def load_bf16(self, address: Any) -> SimdValue:
        """The vector of bfloat16 at an address."""
        words = ir.VectorType(WORD, self.width)
        bits = self.builder.zext(self.raw(address, ir.VectorType(UINT16, self.width)), words)
        shifted = self.builder.shl(bits, ir.Constant(words, [16] * self.width))
        return SimdValue(self.builder, self.builder.bitcast(shifted, self.kind))

    def store(self, x: SimdValue, address: Any, mask: Any = None) -> None:
        """A vector to an address; places outside of a mask are not written."""
        pointer = self.builder.inttoptr(address, self.kind.as_pointer())
        if mask is None:
            self.builder.store(x.value, pointer, align=BYTES)
        else:
            given = [x.value, pointer, WORD(BYTES), mask]
            self.call(f"llvm.masked.store.v{self.width}f32.p0", ir.VoidType(), given)

    def call(self, name: str, result: Any, given: list[Any]) -> Any:
        """Calls a function of LLVM."""
        return self.builder.call(llvm_function(self.builder, name, result, [x.type for x in given]), given)

    def store_number(self, x: SimdValue, n: int, address: Any) -> None:
        """Number n of a vector to an address."""
        number = self.builder.extract_element(x.value, WORD(n))
        self.builder.store(number, self.builder.inttoptr(address, FLOAT.as_pointer()), align=BYTES)

    def first_places(self, count: Any) -> Any:
        """A mask of the first `count` places, a value of type LONG; for `load` and `store`."""
        places = ir.Constant(ir.VectorType(LONG, self.width), list(range(self.width)))
        return self.builder.icmp_signed("<", places, self.spread(count))

    def spread(self, value: Any) -> Any:
        """A value of any kind in all places."""
        kind = ir.VectorType(value.type, self.width)
        first = self.builder.insert_element(ir.Constant(kind, ir.Undefined), value, WORD(0))
        return self.builder.shuffle_vector(first, first, ir.Constant(ir.VectorType(WORD, self.width), [0] * self.width))

    def broadcast(self, number: Any) -> SimdValue:
        """The same number in all places."""
        return SimdValue(self.builder, self.spread(number))

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

    def totals(self, rows: Sequence[SimdValue]) -> SimdValue:
        """The `total` of each of 1, 2, 4, ... vectors, side by side, always in the same order."""
        parts = [x.value for x in rows]
        width, count = self.width, len(parts)
        while width * len(parts) > count:
            # neighbors are added, within vectors as long as there are two of them, then within the last one
            pairs = list(zip(parts[::2], parts[1::2], strict=True)) if len(parts) > 1 else [(parts[0], parts[0])]
            width = width if len(parts) > 1 else width // 2
            numbers = range(0, 2 * width, 2)
            even, odd = (ir.Constant(ir.VectorType(WORD, width), [n + at for n in numbers]) for at in (0, 1))
            parts = [
                self.builder.fadd(self.builder.shuffle_vector(x, y, even), self.builder.shuffle_vector(x, y, odd))
                for x, y in pairs
            ]
        return SimdValue(self.builder, parts[0])

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
