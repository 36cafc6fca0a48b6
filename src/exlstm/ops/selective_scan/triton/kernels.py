# mypy: ignore-errors
"""The loops over time of the selective scan on a GPU. A program is some channels of one row of the batch.

Its states, a tile [BLOCK, WIDE], stay in registers from the first step to the last. For the backward the forward saves
them every STEPS steps. The backward takes these chunks from behind: it goes through a chunk once more and writes the
states before every step into room of its own, which the second cache holds, and comes back reading them.

x, dt, b, c and the weights are read as they lie, in their dtype. All else is contiguous, and float32 but for y and the
gradients of y, x and dt.

B batch  T time  E channels  Z states of a channel, WIDE with padding  N chunks
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from exlstm.runtime.gpu.math import log_sigmoid


class Steps(NamedTuple):
    """A tensor [B, T, width]: address, strides of row, step and along the width."""

    at: Any
    b: Any
    t: Any
    w: Any


class Inputs(NamedTuple):
    """`Steps` of x, dt, b, c; a [E, Z] and skip [E]."""

    x: Any
    dt: Any
    b: Any
    c: Any
    a: Any
    skip: Any


class Flags(NamedTuple):
    """Resets [B, T] and lengths [B] of rows; what no kernel reads where there are none."""

    reset: Any
    length: Any


class States(NamedTuple):
    """States [B, E, Z] before the first step and after the last, and before every chunk [B, N, E, Z]."""

    first: Any
    last: Any
    borders: Any


class Gradients(NamedTuple):
    """Of the last states, read. Written: of the first states, of x and dt; of a [B, E, Z] and skip [B, E] by row, of b
    and c [B, programs of a row, T, Z] by program. slots: room for the states of a chunk, [B, STEPS, E, Z].
    """

    last: Any
    first: Any
    x: Any
    dt: Any
    a: Any
    skip: Any
    b: Any
    c: Any
    slots: Any


class Share(NamedTuple):
    """A program's share: its row, its number in the row, the row's length, channels e and states z.

    own: [e, z] in [E, Z]. there, real, inside: which e, which z, which [e, z] exist.
    """

    row: Any
    part: Any
    length: Any
    e: Any
    z: Any
    own: Any
    there: Any
    real: Any
    inside: Any


@triton.jit
def share_of(flags, T, E, Z: tl.constexpr, BLOCK: tl.constexpr, WIDE: tl.constexpr, RAGGED: tl.constexpr):
    """The `Share` of this program."""
    parts = tl.cdiv(E, BLOCK)
    row, part = (tl.program_id(0) // parts).to(tl.int64), tl.program_id(0) % parts
    e, z = part * BLOCK + tl.arange(0, BLOCK), tl.arange(0, WIDE)
    # in 64 bits, for addresses are made of them
    length = tl.cast(T, tl.int64)
    if RAGGED:
        length = tl.load(flags.length + row)
    own, there, real = e[:, None] * Z + z[None, :], e < E, z < Z
    return Share(row, part, length, e, z, own, there, real, there[:, None] & real[None, :])


@triton.jit
def load_step(x, row, t, w, there):
    """The numbers of a step, in float32."""
    return tl.load(x.at + row * x.b + t * x.t + w * x.w, mask=there, other=0.0).to(tl.float32)


@triton.jit
def load_sizes(inputs, s, t, SOFTPLUS: tl.constexpr):
    """The step sizes, and their derivatives by what was read."""
    raw = load_step(inputs.dt, s.row, t, s.e, s.there)
    dt, slope = raw, tl.full(raw.shape, 1.0, tl.float32)
    if SOFTPLUS:
        e = tl.exp(-tl.abs(raw))
        dt, slope = -log_sigmoid(-raw, e), tl.where(raw >= 0, 1.0, e) / (1.0 + e)
    return dt, slope


@triton.jit
def load_weights(inputs, s):
    """a [BLOCK, WIDE] and skip [BLOCK], in float32."""
    a = tl.load(inputs.a + s.own, mask=s.inside, other=0.0).to(tl.float32)
    return a, tl.load(inputs.skip + s.e, mask=s.there, other=0.0).to(tl.float32)


@triton.jit
def is_reset(flags, s, t, T):
    """Whether the row is reset before step t."""
    return tl.load(flags.reset + s.row * T + t) != 0


@triton.jit(do_not_specialize=["T", "E", "N"])
def forward_kernel(
    inputs,
    flags,
    states,
    y,
    T,
    E,
    N,
    Z: tl.constexpr,
    BLOCK: tl.constexpr,
    WIDE: tl.constexpr,
    STEPS: tl.constexpr,
    SOFTPLUS: tl.constexpr,
    SAVE: tl.constexpr,
    RESETS: tl.constexpr,
    RAGGED: tl.constexpr,
    STAGES: tl.constexpr,
):
    """y of every step, 0 beyond a row's length, and the states after the last step; with SAVE those before chunks."""
    s = share_of(flags, T, E, Z, BLOCK, WIDE, RAGGED)
    a, skip = load_weights(inputs, s)
    size, steps = tl.cast(E, tl.int64) * Z, s.row * T * E + s.e
    h = tl.load(states.first + s.row * size + s.own, mask=s.inside, other=0.0)
    for t in tl.range(s.length, num_stages=STAGES):
        dt, _ = load_sizes(inputs, s, t, SOFTPLUS)
        x = load_step(inputs.x, s.row, t, s.e, s.there)
        b, c = load_step(inputs.b, s.row, t, s.z, s.real), load_step(inputs.c, s.row, t, s.z, s.real)
        if SAVE:
            border = states.borders + (s.row * N + t // STEPS) * size + s.own
            tl.store(border, h, mask=s.inside & (t % STEPS == 0))
        if RESETS:
            # what is forgotten may be infinite, so it is not multiplied by zero
            h = tl.where(is_reset(flags, s, t, T), 0.0, h)
        h = tl.exp(dt[:, None] * a) * h + (dt * x)[:, None] * b[None, :]
        y_t = tl.sum(h * c[None, :], 1) + skip * x
        tl.store(y + steps + t * E, y_t.to(y.dtype.element_ty), mask=s.there)
    for t in tl.range(s.length, tl.cast(T, tl.int64)):
        tl.store(y + steps + t * E, tl.zeros([BLOCK], y.dtype.element_ty), mask=s.there)
    tl.store(states.last + s.row * size + s.own, h, mask=s.inside)


@triton.jit
def clear_padding(g, s, shares, T, E, Z: tl.constexpr, BLOCK: tl.constexpr, WIDE: tl.constexpr):
    """Zeros for the gradients of steps beyond the row's length."""
    steps, none = s.row * T * E + s.e, tl.zeros([WIDE], tl.float32)
    for t in tl.range(s.length, tl.cast(T, tl.int64)):
        tl.store(g.x + steps + t * E, tl.zeros([BLOCK], g.x.dtype.element_ty), mask=s.there)
        tl.store(g.dt + steps + t * E, tl.zeros([BLOCK], g.dt.dtype.element_ty), mask=s.there)
        tl.store(g.b + shares + t * Z, none, mask=s.real)
        tl.store(g.c + shares + t * Z, none, mask=s.real)


@triton.jit
def chunk_forward(
    inputs,
    flags,
    s,
    h,
    a,
    slots,
    start,
    count,
    T,
    size,
    SOFTPLUS: tl.constexpr,
    RESETS: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Writes the states before every step of a chunk to the slots. h: those before the first."""
    for n in tl.range(count, num_stages=STAGES):
        t = start + n
        dt, _ = load_sizes(inputs, s, t, SOFTPLUS)
        x = load_step(inputs.x, s.row, t, s.e, s.there)
        b = load_step(inputs.b, s.row, t, s.z, s.real)
        if RESETS:
            h = tl.where(is_reset(flags, s, t, T), 0.0, h)
        tl.store(slots + n * size, h, mask=s.inside)
        h = tl.exp(dt[:, None] * a) * h + (dt * x)[:, None] * b[None, :]


@triton.jit(do_not_specialize=["T", "E", "N"])
def backward_kernel(
    inputs,
    flags,
    states,
    dy,
    g,
    T,
    E,
    N,
    Z: tl.constexpr,
    BLOCK: tl.constexpr,
    WIDE: tl.constexpr,
    STEPS: tl.constexpr,
    SOFTPLUS: tl.constexpr,
    RESETS: tl.constexpr,
    RAGGED: tl.constexpr,
    STAGES: tl.constexpr,
):
    """The gradients, from those of y and of the last states. g: `Gradients`."""
    s = share_of(flags, T, E, Z, BLOCK, WIDE, RAGGED)
    a, skip = load_weights(inputs, s)
    size, steps = tl.cast(E, tl.int64) * Z, s.row * T * E + s.e
    shares, slots = (s.row * tl.cdiv(E, BLOCK) + s.part) * T * Z + s.z, g.slots + s.row * STEPS * size + s.own
    clear_padding(g, s, shares, T, E, Z, BLOCK, WIDE)
    dh = tl.load(g.last + s.row * size + s.own, mask=s.inside, other=0.0)
    da, dskip = tl.zeros([BLOCK, WIDE], tl.float32), tl.zeros([BLOCK], tl.float32)
    for n in tl.range(tl.cdiv(s.length, STEPS) - 1, -1, -1):
        start = n * STEPS
        count = tl.minimum(s.length - start, STEPS)
        h = tl.load(states.borders + (s.row * N + n) * size + s.own, mask=s.inside, other=0.0)
        tl.debug_barrier()  # the slots are read by other threads than write them
        chunk_forward(inputs, flags, s, h, a, slots, start, count, T, size, SOFTPLUS, RESETS, STAGES)
        tl.debug_barrier()
        chunk_da = tl.zeros([BLOCK, WIDE], tl.float32)
        for back in tl.range(count, num_stages=STAGES):
            t = start + count - 1 - back
            dt, slope = load_sizes(inputs, s, t, SOFTPLUS)
            x = load_step(inputs.x, s.row, t, s.e, s.there)
            b, c = load_step(inputs.b, s.row, t, s.z, s.real), load_step(inputs.c, s.row, t, s.z, s.real)
            h = tl.load(slots + (count - 1 - back) * size, mask=s.inside, other=0.0)
            dy_t = tl.load(dy + steps + t * E, mask=s.there, other=0.0).to(tl.float32)
            decay, write = tl.exp(dt[:, None] * a), dt * x
            past, d = decay * h, dh + c[None, :] * dy_t[:, None]
            db_t = tl.sum(d * write[:, None], 0)
            dc_t = tl.sum((past + write[:, None] * b[None, :]) * dy_t[:, None], 0)
            w, written = past * d, tl.sum(d * b[None, :], 1)
            chunk_da += dt[:, None] * w
            dskip += x * dy_t
            tl.store(g.x + steps + t * E, (dt * written + skip * dy_t).to(g.x.dtype.element_ty), mask=s.there)
            ddt_t = (tl.sum(a * w, 1) + x * written) * slope
            tl.store(g.dt + steps + t * E, ddt_t.to(g.dt.dtype.element_ty), mask=s.there)
            tl.store(g.b + shares + t * Z, db_t, mask=s.real)
            tl.store(g.c + shares + t * Z, dc_t, mask=s.real)
            dh = decay * d
            if RESETS:
                dh = tl.where(is_reset(flags, s, t, T), 0.0, dh)
        da += chunk_da
    tl.store(g.first + s.row * size + s.own, dh, mask=s.inside)
    tl.store(g.a + s.row * size + s.own, da, mask=s.inside)
    tl.store(g.skip + s.row * E + s.e, dskip, mask=s.there)
