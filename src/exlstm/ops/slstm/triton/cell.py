# mypy: ignore-errors
# a page of Triton's language: Python in looks, with types of its own
"""A step of the sLSTM and its gradients on a GPU: what the kernels that hold R and those that read it have in common.

Tiles are [units, rows of the batch]. The four gates are one tile, one below the other: products with R then have at
least 64 rows whatever the batch, and end where the state of the same units is.

T time  H heads  V head width  J gates times units  B rows of the batch
"""

import triton
import triton.language as tl

from exlstm.runtime.gpu.math import log_sigmoid


@triton.jit
def apart(x_JB, UNITS: tl.constexpr, ROWS: tl.constexpr):
    """[4 UNITS, ROWS] -> i, f, z, o, each [UNITS, ROWS]."""
    x = tl.reshape(tl.permute(tl.reshape(x_JB, [4, UNITS, ROWS]), (1, 2, 0)), [UNITS, ROWS, 2, 2])
    even, odd = tl.split(x)
    i, z = tl.split(even)
    f, o = tl.split(odd)
    return i, f, z, o


@triton.jit
def together(i, f, z, o, UNITS: tl.constexpr, ROWS: tl.constexpr):
    """The way back: four tiles -> [4 UNITS, ROWS]."""
    x = tl.join(tl.join(i, z), tl.join(f, o))
    return tl.reshape(tl.permute(tl.reshape(x, [UNITS, ROWS, 4]), (2, 0, 1)), [4 * UNITS, ROWS])


@triton.jit
def state_before(t, first, planes, B, T, H, V: tl.constexpr):
    """(where the state before step t is, numbers from a row of it to the next, from h to c and so on)."""
    at = tl.where(t > 0, planes + tl.cast(t - 1, tl.int64) * H * V, first)
    row = tl.where(t > 0, T, 1).to(tl.int64) * H * V
    return at, row, B * row


@triton.jit
def sigmoid(x):
    """1 / (1 + e^-x), for any x."""
    e = tl.exp(-tl.abs(x))
    return tl.where(x >= 0, 1.0, e) / (1.0 + e)


@triton.jit
def tanh(x):
    """For any x; a polynomial where 1 - e^-2x would cancel."""
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
