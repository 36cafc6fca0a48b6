"""One step of 16 units of the sLSTM, forward and backward, written straight in LLVM's vectors.

Numbers that meet in the gates stand in blocks of so many times 16 neighbours:

    block  7 x 16: i, f, z, o before their activations, c, n, m
    saved  7 x 16: what the backward needs of a step: c and n before it, decay, write, phi(z), sigmoid(o), d log f / df;
           9 x 16 for the cells of `variants`: also d log i / di and e^(m / 2)
    draw   4 x 16: the gradients of i, f, z, o before their activations
    carry  2 x 16: the gradients of c, n
"""

from collections.abc import Callable
from inspect import signature
from typing import Any

from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.extending import intrinsic

from exlstm.ops.slstm.numba.tile import PANEL
from exlstm.runtime.cpu.memory import FLOAT, SIZE, place
from exlstm.runtime.cpu.simd import Lanes, exp_below, log_sigmoid, sigmoid, tanh, where

BLOCK, SAVED, SAVED_MORE, DRAW, CARRY = 7 * PANEL, 7 * PANEL, 9 * PANEL, 4 * PANEL, 2 * PANEL


class Block:
    """The numbers of 16 units at an address: each part is read and written as one vector."""

    def __init__(self, builder: Any, address: Any) -> None:
        self.builder = builder
        self.pointer = builder.inttoptr(address, ir.VectorType(FLOAT, PANEL).as_pointer())

    def part(self, n: int) -> Any:
        """Where part n is."""
        return self.builder.gep(self.pointer, [ir.IntType(32)(n)])

    def __getitem__(self, n: int) -> Lanes:
        return Lanes(self.builder, self.builder.load(self.part(n), align=SIZE))

    def __setitem__(self, n: int, x: Lanes) -> None:
        self.builder.store(x.value, self.part(n), align=SIZE)


def sixteen(function: Callable[..., None]) -> Any:
    """`function` for Numba's kernels, of the addresses of blocks, and of a flag perhaps."""

    def typed(*given: Any) -> Any:
        flags = [isinstance(x, types.Boolean) for x in given]

        def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
            function(*((Lanes if flag else Block)(builder, x) for flag, x in zip(flags, arguments, strict=True)))
            return context.get_dummy_value()

        return types.void(*(x if flag else types.intp for flag, x in zip(flags, given, strict=True))), generate

    # Numba wants to see how many arguments there are
    of_count = {
        2: lambda _context, a, b: typed(a, b),
        3: lambda _context, a, b, c: typed(a, b, c),
        4: lambda _context, a, b, c, d: typed(a, b, c, d),
    }
    return intrinsic(of_count[len(signature(function).parameters)])


@sixteen
def gates(block: Block, h: Block, saved: Block, exp_forget: Lanes) -> None:
    """One step: from i, f, z, o and c, n, m before to c, n, m and h after, and what the backward needs."""
    # first what does not depend on the state: it waits for little else
    i, f, z, o = block[0], block[1], block[2], block[3]
    c, n, m = block[4], block[5], block[6]
    log_f, slope = where(exp_forget, f, log_sigmoid(f)), where(exp_forget, 1.0, sigmoid(-f))
    cell, gate = tanh(z), sigmoid(o)
    past = log_f + m
    fresh, rises = n.zero(), past < i
    m = where(fresh | rises, i, past)
    # the larger of the two has weight 1, but not where it is infinite: then inf - inf shows
    one, less = (m - m) + 1.0, exp_below(-abs(past - i))
    decay, write = where(rises, less, one), where(fresh | rises, one, less)
    for part, x in enumerate((c, n, decay, write, cell, gate, slope)):
        saved[part] = x
    c, n = decay * c + write * cell, decay * n + write
    block[4], block[5], block[6] = c, n, m
    h[0] = gate * c / n


@sixteen
def gates_backward(draw: Block, carry: Block, dh: Block, saved: Block) -> None:
    """The gradients of i, f, z, o, and of c and n before the step, from those of h, c and n after it."""
    c0, n0, decay, write, cell, gate, slope = (saved[part] for part in range(7))
    c, n = decay * c0 + write * cell, decay * n0 + write
    h = dh[0]
    dratio, ratio = h * gate / n, c / n
    dc, dn = carry[0] + dratio, carry[1] - dratio * ratio
    draw[0] = (cell * dc + dn) * write
    draw[1] = (c0 * dc + n0 * dn) * decay * slope
    draw[2] = write * dc * (1.0 - cell * cell)
    draw[3] = h * ratio * gate * (1.0 - gate)
    carry[0], carry[1] = decay * dc, decay * dn


def _add(_context: Any, _out: Any, _x: Any) -> Any:
    """out += x for 16 neighbours."""

    def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        out, x = (Block(builder, address) for address in arguments)
        out[0] = out[0] + x[0]
        return context.get_dummy_value()

    return types.void(types.intp, types.intp), generate


def add_rows(rows: int, bf16: bool) -> Any:
    """An intrinsic (out, x, r, apart): out += x R for 16 neighbours, x and R of so many rows, bfloat16 if `bf16`.

    apart: numbers from one row of R to the next.
    """
    words = ir.VectorType(ir.IntType(32), PANEL)
    kind, size = (ir.VectorType(ir.IntType(16), PANEL), 2) if bf16 else (ir.VectorType(FLOAT, PANEL), SIZE)

    def read(builder: Any, address: Any) -> Lanes:
        x = builder.load(builder.inttoptr(address, kind.as_pointer()), align=size)
        if bf16:
            x = builder.bitcast(builder.shl(builder.zext(x, words), ir.Constant(words, [16] * PANEL)),
                                ir.VectorType(FLOAT, PANEL))  # fmt: skip
        return Lanes(builder, x)

    def add(_context: Any, _out: Any, _x: Any, _r: Any, _apart: Any) -> Any:
        def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
            out, x, r, apart = arguments
            total: Any = 0.0
            for k in range(rows):
                address = builder.add(r, builder.mul(apart, apart.type(size * k)))
                number = builder.load(place(builder, x, apart.type(k)), align=SIZE)
                total = read(builder, address) * every(builder, number) + total
            block = Block(builder, out)
            block[0] = block[0] + total
            return context.get_dummy_value()

        return types.void(*[types.intp] * 4), generate

    return intrinsic(add)


def every(builder: Any, number: Any) -> Lanes:
    """The same number 16 times."""
    kind = ir.VectorType(FLOAT, PANEL)
    first = builder.insert_element(ir.Constant(kind, ir.Undefined), number, ir.IntType(32)(0))
    where_from = ir.Constant(ir.VectorType(ir.IntType(32), PANEL), [0] * PANEL)
    return Lanes(builder, builder.shuffle_vector(first, first, where_from))


eight_rows, eight_rows_bf16, one_row, one_row_bf16 = (add_rows(rows, bf16) for rows in (8, 1) for bf16 in (False, True))
add_sixteen: Any = intrinsic(_add)
