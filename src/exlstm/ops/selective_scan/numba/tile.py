"""A step of the selective scan for 64 channels, forward and backward, and one for a channel, in LLVM's vectors.

Lanes are channels, so that sums over states are sums of vectors. A tile is [Z, 64]: of every state, its numbers of 64
channels, contiguous. For the gradients of b and c alone vectors are summed across, once for all four of a row.
A lone step reads the states as they are stored, a channel after another, and there lanes are states.

Z states of a channel
"""

from typing import Any

from exlstm.runtime.cpu.memory import SIZE
from exlstm.runtime.cpu.simd import FLOAT, SimdValue, exp_below, log_sigmoid, sigmoid
from exlstm.runtime.cpu.vectors import LONG, Variable, Vectors, inlined, repeated

LANES, VECTORS = 16, 4
TILE = LANES * VECTORS  # channels
ROW = TILE * SIZE  # bytes from one state of a tile to the next


class Rows:
    """Reads and writes 64 numbers at an address, as four vectors."""

    def __init__(self, builder: Any) -> None:
        self.builder, self.v = builder, Vectors(builder, LANES)

    def addresses(self, address: Any) -> list[Any]:
        """The address of each vector."""
        return [self.v.offset(address, LANES * SIZE * n) for n in range(VECTORS)]

    def load(self, address: Any) -> list[SimdValue]:
        """The numbers."""
        return [self.v.load(here) for here in self.addresses(address)]

    def store(self, values: list[SimdValue], address: Any) -> None:
        """Writes the numbers."""
        for x, here in zip(values, self.addresses(address), strict=True):
            self.v.store(x, here)

    def variables(self, values: list[SimdValue]) -> list[Variable]:
        """Vectors that a loop changes, which begin with these."""
        return [self.v.variable(x) for x in values]

    def row(self, address: Any, z: Any) -> Any:
        """The address of state z in a tile."""
        return self.builder.add(address, self.builder.mul(z, LONG(ROW)))

    def place(self, address: Any, z: Any) -> Any:
        """The address of number z."""
        return self.builder.add(address, self.builder.mul(z, LONG(SIZE)))


@inlined(2)
def softplus(builder: Any, raw: Any, dt: Any) -> None:
    """dt = log(1 + e^raw) of 64 channels."""
    rows = Rows(builder)
    rows.store([-log_sigmoid(-x) for x in rows.load(raw)], dt)


@inlined(2)
def softplus_backward(builder: Any, raw: Any, ddt: Any) -> None:
    """ddt becomes the gradient of raw."""
    rows = Rows(builder)
    rows.store([d * sigmoid(x) for d, x in zip(rows.load(ddt), rows.load(raw), strict=True)], ddt)


@inlined(9)
def advance(builder: Any, h: Any, a: Any, dt: Any, x: Any, skip: Any, b: Any, c: Any, y: Any, Z: Any) -> None:
    """One step of 64 channels: h = exp(dt a) h + dt x b, and y = sum_z c h + skip x."""
    rows, v = Rows(builder), Vectors(builder, LANES)
    dt_n, x_n = rows.load(dt), rows.load(x)
    write_n = [p * q for p, q in zip(dt_n, x_n, strict=True)]
    sums = rows.variables([p * q for p, q in zip(rows.load(skip), x_n, strict=True)])
    with repeated(builder, Z) as z:
        b_z, c_z, h_z = v.number(rows.place(b, z)), v.number(rows.place(c, z)), rows.row(h, z)
        h_n, a_n = rows.load(h_z), rows.load(rows.row(a, z))
        for n in range(VECTORS):
            h_n[n] = v.fma(exp_below(dt_n[n] * a_n[n]), h_n[n], write_n[n] * b_z)
            sums[n].set(v.fma(h_n[n], c_z, sums[n].get()))
        rows.store(h_n, h_z)
    rows.store([total.get() for total in sums], y)


@inlined(8)
def advance_again(builder: Any, before: Any, after: Any, decay: Any, a: Any, dt: Any, x: Any, b: Any, Z: Any) -> None:
    """The states after a step, and its decays, for the backward."""
    rows, v = Rows(builder), Vectors(builder, LANES)
    dt_n = rows.load(dt)
    write_n = [p * q for p, q in zip(dt_n, rows.load(x), strict=True)]
    with repeated(builder, Z) as z:
        b_z = v.number(rows.place(b, z))
        h_n, a_n = rows.load(rows.row(before, z)), rows.load(rows.row(a, z))
        e_n = [exp_below(p * q) for p, q in zip(dt_n, a_n, strict=True)]
        rows.store(e_n, rows.row(decay, z))
        rows.store([v.fma(e_n[n], h_n[n], write_n[n] * b_z) for n in range(VECTORS)], rows.row(after, z))


@inlined(14)
def retreat(builder: Any, *given: Any) -> None:
    """One step of 64 channels from behind.

    Changed: dh, behind it the sum da, and behind skip the sum dskip. Read: a slot, which is the states before the step
    and its decays; its inputs, and dy. Written: the gradients of x and dt, and the shares of these channels in those of
    b and c.
    """
    dh, slot, a, skip, dt, x, dy, b, c, dx, ddt, db, dc, Z = given
    rows, v = Rows(builder), Vectors(builder, LANES)
    before, decay, da, dskip = slot, rows.row(slot, Z), rows.row(dh, Z), v.offset(skip, ROW)
    dt_n, x_n, dy_n = rows.load(dt), rows.load(x), rows.load(dy)
    write_n = [p * q for p, q in zip(dt_n, x_n, strict=True)]
    written, rates = (rows.variables([v.zeros()] * VECTORS) for _ in range(2))  # sum_z b dh, sum_z a w
    with repeated(builder, Z) as z:
        b_z, c_z, dh_z, da_z = v.number(rows.place(b, z)), v.number(rows.place(c, z)), rows.row(dh, z), rows.row(da, z)
        dh_n, da_n, a_n = rows.load(dh_z), rows.load(da_z), rows.load(rows.row(a, z))
        h_n, e_n = rows.load(rows.row(before, z)), rows.load(rows.row(decay, z))
        db_z = dc_z = v.zeros()
        for n in range(VECTORS):
            d, past = v.fma(c_z, dy_n[n], dh_n[n]), e_n[n] * h_n[n]
            db_z, dc_z = v.fma(write_n[n], d, db_z), v.fma(dy_n[n], v.fma(write_n[n], b_z, past), dc_z)
            w = past * d
            written[n].set(v.fma(b_z, d, written[n].get()))
            rates[n].set(v.fma(a_n[n], w, rates[n].get()))
            dh_n[n], da_n[n] = e_n[n] * d, v.fma(dt_n[n], w, da_n[n])
        rows.store(dh_n, dh_z)
        rows.store(da_n, da_z)
        for total, address in ((db_z, db), (dc_z, dc)):
            builder.store(v.total(total), builder.inttoptr(rows.place(address, z), FLOAT.as_pointer()), align=SIZE)
    skip_n, dskip_n = rows.load(skip), rows.load(dskip)
    rows.store([v.fma(x_n[n], dy_n[n], dskip_n[n]) for n in range(VECTORS)], dskip)
    rows.store([v.fma(dt_n[n], written[n].get(), skip_n[n] * dy_n[n]) for n in range(VECTORS)], dx)
    rows.store([v.fma(x_n[n], written[n].get(), rates[n].get()) for n in range(VECTORS)], ddt)


def lone_step(lanes: int) -> Any:
    """A function (h, a, dt, x, skip, b, c, after, y, groups): a step of one channel of `groups` x `lanes` states."""

    @inlined(10)
    def step(builder: Any, *given: Any) -> None:
        h, a, dt, x, skip, b, c, after, y, groups = given
        v = Vectors(builder, lanes)
        dt_1, x_1, skip_1 = (SimdValue(builder, v.raw(address, FLOAT)) for address in (dt, x, skip))
        dt_n, write_n, total = v.broadcast(dt_1.value), v.broadcast((dt_1 * x_1).value), v.variable(v.zeros())
        with repeated(builder, groups) as group:
            h_z, a_z, b_z, c_z, after_z = (
                v.row(p, builder.mul(group, LONG(lanes * SIZE)), 1) for p in (h, a, b, c, after)
            )
            new = v.fma(exp_below(dt_n * v.load(a_z)), v.load(h_z), write_n * v.load(b_z))
            v.store(new, after_z)
            total.set(v.fma(new, v.load(c_z), total.get()))
        y_1 = SimdValue(builder, v.total(total.get())) + skip_1 * x_1
        builder.store(y_1.value, builder.inttoptr(y, FLOAT.as_pointer()), align=SIZE)

    return step


lone_step_16, lone_step_1 = lone_step(LANES), lone_step(1)
