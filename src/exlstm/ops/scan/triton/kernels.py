# mypy: ignore-errors
"""The loops over time of the diagonal scan on a GPU. A program is some channels of one row of the batch.

Its h stays in registers from the first step to the last; what a step reads is fetched some steps ahead. a and b are
read as they lie, in their dtype; all else is float32 and contiguous: y, dy, da, db [B, T, E], states [B, E].

B batch  T time  E channels
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl


class Steps(NamedTuple):
    """A tensor [B, T, E]: address, strides of row, step and channel."""

    at: Any
    b: Any
    t: Any
    e: Any


class Flags(NamedTuple):
    """Resets [B, T] and lengths [B] of rows; what no kernel reads where there are none."""

    reset: Any
    length: Any


@triton.jit
def place(E, BLOCK: tl.constexpr):
    """(row, channels, which of them exist) of this program."""
    blocks = tl.cdiv(E, BLOCK)
    row, e = (tl.program_id(0) // blocks).to(tl.int64), tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    return row, e, e < E


@triton.jit
def row_length(flags, row, T, RAGGED: tl.constexpr):
    """The steps of a row, in 64 bits, for addresses are made of them."""
    length = tl.cast(T, tl.int64)
    if RAGGED:
        length = tl.load(flags.length + row)
    return length


@triton.jit
def load_step(x, row, t, e, there):
    """The numbers of a step, in float32."""
    return tl.load(x.at + row * x.b + t * x.t + e * x.e, mask=there, other=0.0).to(tl.float32)


@triton.jit(do_not_specialize=["T", "E"])
def forward_kernel(
    a,
    b,
    flags,
    first,
    y,
    last,
    T,
    E,
    BLOCK: tl.constexpr,
    RESETS: tl.constexpr,
    RAGGED: tl.constexpr,
    STAGES: tl.constexpr,
):
    """h of every step, 0 beyond a row's length, and the h after the last. a, b: `Steps`."""
    row, e, there = place(E, BLOCK)
    length, states, steps = row_length(flags, row, T, RAGGED), row * E + e, row * T * E + e
    h = tl.load(first + states, mask=there, other=0.0)
    for t in tl.range(length, num_stages=STAGES):
        a_t, b_t = load_step(a, row, t, e, there), load_step(b, row, t, e, there)
        if RESETS:
            # what is forgotten may be infinite, so it is not multiplied by zero
            h = tl.where(tl.load(flags.reset + row * T + t) != 0, 0.0, h)
        h = a_t * h + b_t
        tl.store(y + steps + t * E, h, mask=there)
    for t in tl.range(length, tl.cast(T, tl.int64)):
        tl.store(y + steps + t * E, tl.zeros([BLOCK], tl.float32), mask=there)
    tl.store(last + states, h, mask=there)


@triton.jit(do_not_specialize=["T", "E"])
def backward_kernel(
    a,
    flags,
    first,
    y,
    dy,
    dlast,
    da,
    db,
    dfirst,
    T,
    E,
    BLOCK: tl.constexpr,
    RESETS: tl.constexpr,
    RAGGED: tl.constexpr,
    STAGES: tl.constexpr,
):
    """The gradients of a, b and the first h. y: what the forward gave."""
    row, e, there = place(E, BLOCK)
    length, states, steps = row_length(flags, row, T, RAGGED), row * E + e, row * T * E + e
    dh = tl.load(dlast + states, mask=there, other=0.0)
    for t in tl.range(length, tl.cast(T, tl.int64)):
        tl.store(da + steps + t * E, tl.zeros([BLOCK], tl.float32), mask=there)
        tl.store(db + steps + t * E, tl.zeros([BLOCK], tl.float32), mask=there)
    for back in tl.range(length, num_stages=STAGES):
        t = length - 1 - back
        a_t = load_step(a, row, t, e, there)
        before = tl.load(tl.where(t > 0, y + (steps + (t - 1) * E), first + states), mask=there, other=0.0)
        dh += tl.load(dy + steps + t * E, mask=there, other=0.0)
        da_t, dh_before = dh * before, dh * a_t
        if RESETS:
            fresh = tl.load(flags.reset + row * T + t) != 0
            da_t, dh_before = tl.where(fresh, 0.0, da_t), tl.where(fresh, 0.0, dh_before)
        tl.store(da + steps + t * E, da_t, mask=there)
        tl.store(db + steps + t * E, dh, mask=there)
        dh = dh_before
    tl.store(dfirst + states, dh, mask=there)
