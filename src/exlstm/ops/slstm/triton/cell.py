# mypy: ignore-errors
"""A step of the sLSTM and its gradients on a GPU: what the scan (`scan`) and the launches per step (`step`) share.

Tiles are [units, rows of the batch]. The four gates are one tile, one below the other: products with R then have at
least 64 rows whatever the batch, and end where the state of the same units is.

T time  H heads  V head width  J gates times units  B rows of the batch
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from exlstm.runtime.gpu.math import log_sigmoid


class States(NamedTuple):
    """h, c, n, m: before the first step [4, B, H, V], and after every step [4, B, T, H, V]."""

    first: Any
    planes: Any


class StateGradients(NamedTuple):
    """[B, H, V]: dh of the last state, read, and of the first, written; dc and dn of the last become the first's."""

    last_h: Any
    first_h: Any
    c: Any
    n: Any


class Block(NamedTuple):
    """A program's share: a head, rows b, units v, and for the four gates of these units [J] the gate and the unit.

    row_there, there, all_there: which rows, which [v, b] and which [J, b] exist.
    """

    head: Any
    b: Any
    v: Any
    gate: Any
    unit: Any
    row_there: Any
    there: Any
    all_there: Any


@triton.jit
def block_of(B, H, V: tl.constexpr, UNITS: tl.constexpr, ROWS: tl.constexpr):
    """The `Block` of this program."""
    head, first = tl.program_id(0) % H, tl.program_id(0) // H * UNITS
    b, v, j = tl.program_id(1) * ROWS + tl.arange(0, ROWS), first + tl.arange(0, UNITS), tl.arange(0, 4 * UNITS)
    real, gate, unit = b < B, j // UNITS, first + j % UNITS
    there, all_there = (v < V)[:, None] & real[None, :], (unit < V)[:, None] & real[None, :]
    return Block(head, b.to(tl.int64), v, gate, unit, real, there, all_there)


@triton.jit
def split_gates(x_JB, UNITS: tl.constexpr, ROWS: tl.constexpr):
    """[4 UNITS, ROWS] -> i, f, z, o, each [UNITS, ROWS]."""
    x = tl.reshape(tl.permute(tl.reshape(x_JB, [4, UNITS, ROWS]), (1, 2, 0)), [UNITS, ROWS, 2, 2])
    even, odd = tl.split(x)
    i, z = tl.split(even)
    f, o = tl.split(odd)
    return i, f, z, o


@triton.jit
def join_gates(i, f, z, o, UNITS: tl.constexpr, ROWS: tl.constexpr):
    """The inverse of `split_gates`: four tiles -> [4 UNITS, ROWS]."""
    x = tl.join(tl.join(i, z), tl.join(f, o))
    return tl.reshape(tl.permute(tl.reshape(x, [UNITS, ROWS, 4]), (2, 0, 1)), [4 * UNITS, ROWS])


@triton.jit
def state_before(t, states, B, T, H, V: tl.constexpr):
    """(address of the state before step t, distance from a row of it to the next, distance from h to c and so on)."""
    at = tl.where(t > 0, states.planes + tl.cast(t - 1, tl.int64) * H * V, states.first)
    row = tl.where(t > 0, T, 1).to(tl.int64) * H * V
    return at, row, B * row


@triton.jit
def load_memory(at, plane, there):
    """c, n, m of a state whose h is at these addresses, zeros where there is none."""
    c, n = tl.load(at + plane, mask=there, other=0.0), tl.load(at + 2 * plane, mask=there, other=0.0)
    return c, n, tl.load(at + 3 * plane, mask=there, other=0.0)


@triton.jit
def sigmoid(x):
    """1 / (1 + e^-x), for any x."""
    e = tl.exp(-tl.abs(x))
    return tl.where(x >= 0, 1.0, e) / (1.0 + e)


@triton.jit
def tanh(x):
    """tanh for any x; a polynomial where 1 - e^-2x would cancel."""
    e = tl.exp(-2.0 * tl.abs(x))
    far = 1.0 - 2.0 * e / (1.0 + e)
    x2 = x * x
    p = ((((-5.70498872745e-3 * x2 + 2.06390887954e-2) * x2 - 5.37397155531e-2) * x2 + 1.33314422036e-1) * x2
         - 3.33332819422e-1)  # fmt: skip
    return tl.where(tl.abs(x) < 0.625, p * x2 * x + x, tl.where(x >= 0, far, -far))


@triton.jit
def weights(i, f, n, m, EXP_FORGET: tl.constexpr):
    """(decay, write, m after) of a step, from the gates before their activations and the state before."""
    past = (f if EXP_FORGET else log_sigmoid(f, tl.exp(-tl.abs(f)))) + m
    after = tl.where(n == 0, i, tl.maximum(past, i))
    return tl.exp(tl.minimum(past - after, 0.0)), tl.exp(i - after), after


@triton.jit
def step(i, f, z, o, c, n, m, EXP_FORGET: tl.constexpr):
    """(h, c, n, m) after a step."""
    decay, write, m_after = weights(i, f, n, m, EXP_FORGET)
    c_after, n_after = decay * c + write * tanh(z), decay * n + write
    return sigmoid(o) * c_after / n_after, c_after, n_after, m_after


@triton.jit
def step_gradients(i, f, z, o, c, n, m, dh, dc, dn, EXP_FORGET: tl.constexpr):
    """The gradients of i, f, z, o and of c and n before a step, from those of h, c and n after it."""
    decay, write, _ = weights(i, f, n, m, EXP_FORGET)
    cell, gate = tanh(z), sigmoid(o)
    n_after = decay * n + write
    ratio = (decay * c + write * cell) / n_after
    dratio = dh * gate / n_after
    dc_t, dn_t = dc + dratio, dn - dratio * ratio
    slope = tl.full(f.shape, 1.0, tl.float32) if EXP_FORGET else sigmoid(-f)
    di, df = (cell * dc_t + dn_t) * write, (c * dc_t + n * dn_t) * decay * slope
    dz, do = write * dc_t * (1.0 - cell * cell), dh * ratio * gate * (1.0 - gate)
    return di, df, dz, do, decay * dc_t, decay * dn_t
