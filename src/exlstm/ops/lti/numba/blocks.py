"""Steps of a block of complex states, held in vector registers while time runs, and their backward.

Addresses are of float32 numbers. Of a, c and h, im lies `plane` bytes behind re. Sums of every step are a vector each,
to which the next block of states adds.
"""

from typing import Any

from exlstm.runtime.cpu.memory import FLOAT
from exlstm.runtime.cpu.simd import SimdValue
from exlstm.runtime.cpu.vectors import LONG, Vectors, inlined, register_width, repeated

WIDTH = register_width()  # states of a block
VECTOR = 4 * WIDTH  # bytes


class Complex:
    """A vector of complex numbers."""

    def __init__(self, v: Vectors, re: SimdValue, im: SimdValue) -> None:
        self.v, self.re, self.im = v, re, im

    def times(self, other: "Complex", plus: "Complex") -> "Complex":
        """self other + plus"""
        fma = self.v.fma
        re = fma(self.re, other.re, fma(-self.im, other.im, plus.re))
        return Complex(self.v, re, fma(self.re, other.im, fma(self.im, other.re, plus.im)))

    def conjugate(self) -> "Complex":
        """The complex conjugate."""
        return Complex(self.v, self.re, -self.im)

    def store(self, address: Any, plane: Any) -> None:
        """To memory."""
        self.v.store(self.re, address)
        self.v.store(self.im, self.v.offset(address, plane))


def loaded(v: Vectors, address: Any, plane: Any) -> Complex:
    """A block in memory."""
    return Complex(v, v.load(address), v.load(v.offset(address, plane)))


def neighbors(v: Vectors, address: Any, plane: Any, count: int) -> list[Complex]:
    """Blocks after one another in memory."""
    return [loaded(v, v.offset(address, n * VECTOR), plane) for n in range(count)]


class Register:
    """A block that a loop changes."""

    def __init__(self, x: Complex) -> None:
        self.v, self.re, self.im = x.v, x.v.variable(x.re), x.v.variable(x.im)

    def get(self) -> Complex:
        """The value now."""
        return Complex(self.v, self.re.get(), self.im.get())

    def set(self, x: Complex) -> None:
        """Assigns the value."""
        self.re.set(x.re)
        self.im.set(x.im)


def step_of(v: Vectors, begin: Any, t: Any, size: int) -> Any:
    """The address of step t, of so many bytes each."""
    return v.offset(begin, v.builder.mul(t, LONG(size)))


def advance_blocks(blocks: int) -> Any:
    """A function (count, plane, u, sums, h, a, c): h = a h + u for `count` steps, and sums_t += Re(c h).

    Several neighboring blocks at once: a step of one waits for its last one, and the others use that time.
    """

    @inlined(7)
    def advance(builder: Any, count: Any, plane: Any, u: Any, sums: Any, h: Any, a: Any, c: Any) -> None:
        v = Vectors(builder, WIDTH)
        factors, weights, befores = (neighbors(v, x, plane, blocks) for x in (a, c, h))
        states = [Register(x) for x in befores]
        with repeated(builder, count) as t:
            given, here = v.number(step_of(v, u, t, 4)), step_of(v, sums, t, VECTOR)
            total = v.load(here)
            for state, factor, weight in zip(states, factors, weights, strict=True):
                x = factor.times(state.get(), Complex(v, given, v.zeros()))
                state.set(x)
                total = v.fma(weight.re, x.re, v.fma(-weight.im, x.im, total))
            v.store(total, here)
        for n, state in enumerate(states):
            state.get().store(v.offset(h, n * VECTOR), plane)

    return advance


def retreat_blocks(blocks: int) -> Any:
    """A function (count, plane, u, dy, sums, h, a, c, d, work): the backward of `advance_blocks`.

    h: the states before; sums_t += the gradient of u_t. d: three places for gradients, 2 `plane` bytes after one
    another: of h, which becomes that of the states before, and of a and c, to which theirs are added. work: room for
    the states of count + 1 steps.
    """
    apart = 2 * VECTOR * blocks  # bytes of the states of a step

    @inlined(10)
    def retreat(
        builder: Any, count: Any, plane: Any, u: Any, dy: Any, sums: Any, h: Any, a: Any, c: Any, d: Any, work: Any
    ) -> None:
        v, near = Vectors(builder, WIDTH), LONG(VECTOR)
        factors, weights, befores, after = (neighbors(v, x, plane, blocks) for x in (a, c, h, d))
        zeros = Complex(v, v.zeros(), v.zeros())
        states, dstates = [Register(x) for x in befores], [Register(x) for x in after]
        for n, before in enumerate(befores):
            before.store(v.offset(work, 2 * VECTOR * n), near)
        with repeated(builder, count) as t:
            given, here = v.number(step_of(v, u, t, 4)), v.offset(step_of(v, work, t, apart), apart)
            for n, (state, factor) in enumerate(zip(states, factors, strict=True)):
                state.set(factor.times(state.get(), Complex(v, given, v.zeros())))
                state.get().store(v.offset(here, 2 * VECTOR * n), near)
        dfactors, dweights = [Register(zeros) for _ in befores], [Register(zeros) for _ in befores]
        with repeated(builder, count) as n:
            t = builder.sub(builder.sub(count, LONG(1)), n)
            given, here = v.number(step_of(v, dy, t, 4)), step_of(v, sums, t, VECTOR)
            total, before = v.load(here), step_of(v, work, t, apart)
            for k, (factor, weight) in enumerate(zip(factors, weights, strict=True)):
                place = v.offset(before, 2 * VECTOR * k)
                old, new, x = loaded(v, place, near), loaded(v, v.offset(place, apart), near), dstates[k].get()
                x = Complex(v, v.fma(weight.re, given, x.re), v.fma(-weight.im, given, x.im))
                sofar, total = dweights[k].get(), total + x.re
                dweights[k].set(Complex(v, v.fma(given, new.re, sofar.re), v.fma(-given, new.im, sofar.im)))
                dfactors[k].set(old.conjugate().times(x, dfactors[k].get()))
                dstates[k].set(factor.conjugate().times(x, zeros))
            v.store(total, here)
        twice = builder.mul(plane, LONG(2))
        for k in range(blocks):
            own = v.offset(d, k * VECTOR)
            dstates[k].get().store(own, plane)
            for more in (dfactors[k].get(), dweights[k].get()):
                own = v.offset(own, twice)
                sofar = loaded(v, own, plane)
                Complex(v, sofar.re + more.re, sofar.im + more.im).store(own, plane)

    return retreat


advance, advance_two = advance_blocks(1), advance_blocks(2)
retreat, retreat_two = retreat_blocks(1), retreat_blocks(2)


@inlined(2)
def store_total(builder: Any, out: Any, sums: Any) -> None:
    """One number: the total of a vector, always in the same order."""
    v = Vectors(builder, WIDTH)
    builder.store(v.total(v.load(sums)), builder.inttoptr(out, FLOAT.as_pointer()), align=4)
