"""One step of 16 units of the sLSTM, forward and backward, written straight in LLVM's vectors.

The numbers of 16 units lie in blocks of parts, 16 neighbors each:

    block  7 x 16: i, f, z, o before their activations, c, n, m
    saved  7 x 16: residuals of a step: c and n before it, decay, write, phi(z), sigmoid(o), d log f / df;
           10 x 16 for the cells of `variants`: also d log i / di, e^(m / 2) and d phi / dz
    draw   4 x 16: the gradients of i, f, z, o before their activations
    carry  2 x 16: the gradients of c, n
"""

from typing import Any

from exlstm.runtime.cpu.blocks import Units, simd16
from exlstm.runtime.cpu.memory import SIZE
from exlstm.runtime.cpu.simd import SimdValue, exp_below, log_sigmoid, sigmoid, tanh, where
from exlstm.runtime.cpu.tile import PANEL
from exlstm.runtime.cpu.vectors import LONG, Vectors, inlined

BLOCK, SAVED, SAVED_MORE, DRAW, CARRY = 7 * PANEL, 7 * PANEL, 10 * PANEL, 4 * PANEL, 2 * PANEL


def step(block: Units, h: Units, saved: Units, exp_forget: SimdValue, activated: bool) -> None:
    """Step of `gates`, in which z is phi(z) already if `activated`."""
    # first the values that do not depend on the state
    i, f, z, o = block[0], block[1], block[2], block[3]
    c, n, m = block[4], block[5], block[6]
    log_f, slope = where(exp_forget, f, log_sigmoid(f)), where(exp_forget, 1.0, sigmoid(-f))
    cell, gate = z if activated else tanh(z), sigmoid(o)
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


@simd16
def gates(block: Units, h: Units, saved: Units, exp_forget: SimdValue) -> None:
    """One step: from i, f, z, o and c, n, m before it to c, n, m and h after it, and the residuals."""
    step(block, h, saved, exp_forget, activated=False)


@simd16
def gates_of_activated(block: Units, h: Units, saved: Units, exp_forget: SimdValue) -> None:
    """As `gates`, with phi(z) in place of z."""
    step(block, h, saved, exp_forget, activated=True)


@simd16
def gates_backward(draw: Units, carry: Units, dh: Units, saved: Units) -> None:
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


def add_rows(rows: int, bf16: bool) -> Any:
    """A function (out, x, r, apart): out += x R for 16 neighbors, x and R of so many rows, R bfloat16 if `bf16`.

    apart: numbers from one row of R to the next.
    """

    @inlined(4)
    def body(builder: Any, out: Any, x: Any, r: Any, apart: Any) -> None:
        v, total = Vectors(builder, PANEL), None
        step = builder.mul(apart, LONG(2 if bf16 else SIZE))
        for k in range(rows):
            r_k = v.row(r, step, k)
            r_row = v.load_bf16(r_k) if bf16 else v.load(r_k)
            product = r_row * v.number(v.offset(x, SIZE * k))
            total = product if total is None else product + total
        v.store(v.load(out) + total, out)

    return body


eight_rows, eight_rows_bf16, one_row, one_row_bf16 = (add_rows(rows, bf16) for rows in (8, 1) for bf16 in (False, True))
