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


@inlined(7)
def advance(builder: Any, count: Any, plane: Any, u: Any, sums: Any, h: Any, a: Any, c: Any) -> None:
    """h = a h + u for `count` steps, and sums_t += Re(c h)."""
    v = Vectors(builder, WIDTH)
    factor, weight, state = loaded(v, a, plane), loaded(v, c, plane), Register(loaded(v, h, plane))
    minus = -weight.im
    with repeated(builder, count) as t:
        x = factor.times(state.get(), Complex(v, v.number(step_of(v, u, t, 4)), v.zeros()))
        here = step_of(v, sums, t, VECTOR)
        v.store(v.fma(weight.re, x.re, v.fma(minus, x.im, v.load(here))), here)
        state.set(x)
    state.get().store(h, plane)


@inlined(10)
def retreat(
    builder: Any, count: Any, plane: Any, u: Any, dy: Any, sums: Any, h: Any, a: Any, c: Any, d: Any, work: Any
) -> None:
    """The backward of `advance`. h: the states before; sums_t += the gradient of u_t.

    d: three blocks of gradients, 2 `plane` bytes after one another: of h, which becomes that of the states before, and
    of a and c, to which theirs are added. work: room for count + 1 blocks.
    """
    v = Vectors(builder, WIDTH)
    factor, weight, first, near = loaded(v, a, plane), loaded(v, c, plane), loaded(v, h, plane), LONG(VECTOR)
    states, twice = Register(first), builder.mul(plane, LONG(2))
    first.store(work, near)
    with repeated(builder, count) as t:
        x = factor.times(states.get(), Complex(v, v.number(step_of(v, u, t, 4)), v.zeros()))
        x.store(v.offset(step_of(v, work, t, 2 * VECTOR), 2 * VECTOR), near)
        states.set(x)
    da, dc = v.offset(d, twice), v.offset(d, builder.mul(twice, LONG(2)))
    zeros = Complex(v, v.zeros(), v.zeros())
    dstate, dfactor, dweight = Register(loaded(v, d, plane)), Register(zeros), Register(zeros)
    back = factor.conjugate()
    with repeated(builder, count) as n:
        t = builder.sub(builder.sub(count, LONG(1)), n)
        given = v.number(step_of(v, dy, t, 4))
        before = step_of(v, work, t, 2 * VECTOR)
        old, new, x = loaded(v, before, near), loaded(v, v.offset(before, 2 * VECTOR), near), dstate.get()
        x = Complex(v, v.fma(weight.re, given, x.re), v.fma(-weight.im, given, x.im))
        sofar = dweight.get()
        dweight.set(Complex(v, v.fma(given, new.re, sofar.re), v.fma(-given, new.im, sofar.im)))
        here = step_of(v, sums, t, VECTOR)
        v.store(v.load(here) + x.re, here)
        dfactor.set(old.conjugate().times(x, dfactor.get()))
        dstate.set(back.times(x, zeros))
    dstate.get().store(d, plane)
    for register, address in ((dfactor, da), (dweight, dc)):
        total, x = loaded(v, address, plane), register.get()
        Complex(v, total.re + x.re, total.im + x.im).store(address, plane)


@inlined(2)
def store_total(builder: Any, out: Any, sums: Any) -> None:
    """One number: the total of a vector, always in the same order."""
    v = Vectors(builder, WIDTH)
    builder.store(v.total(v.load(sums)), builder.inttoptr(out, FLOAT.as_pointer()), align=4)
