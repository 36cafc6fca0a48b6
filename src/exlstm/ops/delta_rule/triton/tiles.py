# mypy: ignore-errors
"""Tensors and chunks as the delta rule's Triton kernels see them: arguments in groups, blocks loaded and stored.

Everything is contiguous: q, k [B, T, H, K], v and o [B, T, H, V], beta and g [B, T, H], reset [B, T]; memories at the
borders of chunks [B, N, H, K, V]. T, N and H are arguments of their own, because `do_not_specialize` does not reach
into a tuple.

B batch  T time  H heads  N chunks of a row  K key width  V value width  L steps of a chunk
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

SIZES = ("T", "N", "H")


class Constants(NamedTuple):
    """What a kernel is compiled for, each a tl.constexpr.

    L: steps of a chunk. K, V: widths, in blocks of BK and BV. PRECISION: how float32 is multiplied.
    DECAYS, RESETS: whether there are any.
    """

    L: Any
    K: Any
    V: Any
    BK: Any
    BV: Any
    PRECISION: Any
    DECAYS: Any
    RESETS: Any


class Gates(NamedTuple):
    """beta, g and resets; without decays or resets these are tensors that no kernel reads."""

    beta: Any
    g: Any
    reset: Any


class Written(NamedTuple):
    """U and W S of every step, [B, T, H, V]: what a chunk writes is their difference."""

    u: Any
    old: Any


class InputGradients(NamedTuple):
    """dq, dk and dv."""

    q: Any
    k: Any
    v: Any


class Chunk(NamedTuple):
    """A chunk of a head: its number among all of [B, N, H], its first step among all of [B, T, H], and steps left."""

    number: Any
    begin: Any
    left: Any


class Decays(NamedTuple):
    """G of a chunk in float64, resets of the chunk up to a step, both at its last step, whether there is a reset."""

    sums: Any
    segments: Any
    total: Any
    last: Any
    cut: Any


@triton.jit
def chunk_at(row, chunk, head, T, N, H, L: tl.constexpr):
    """The `Chunk` of a row and head."""
    row = row.to(tl.int64)
    return Chunk((row * N + chunk) * H + head, (row * T + chunk * L) * H + head, T - chunk * L)


@triton.jit
def load_steps(x, here, H, first, L: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """A tile [L, BLOCK] of a chunk, columns from `first` on; zeros beyond its steps and beyond the width."""
    step, column = tl.arange(0, L), first + tl.arange(0, BLOCK)
    there = (step < here.left)[:, None] & (column < WIDTH)[None, :]
    return tl.load(x + (here.begin + step * H)[:, None] * WIDTH + column[None, :], mask=there, other=0.0)


@triton.jit
def store_steps(x, value, here, H, first, L: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """The inverse of `load_steps`."""
    step, column = tl.arange(0, L), first + tl.arange(0, BLOCK)
    there = (step < here.left)[:, None] & (column < WIDTH)[None, :]
    at = x + (here.begin + step * H)[:, None] * WIDTH + column[None, :]
    tl.store(at, value.to(x.dtype.element_ty), mask=there)


@triton.jit
def load_numbers(x, here, H, L: tl.constexpr):
    """The numbers [L] of a chunk, in float32; zeros beyond its steps."""
    step = tl.arange(0, L)
    return tl.load(x + here.begin + step * H, mask=step < here.left, other=0.0).to(tl.float32)


@triton.jit
def store_numbers(x, value, here, H, L: tl.constexpr):
    """The inverse of `load_numbers`."""
    step = tl.arange(0, L)
    tl.store(x + here.begin + step * H, value.to(x.dtype.element_ty), mask=step < here.left)


@triton.jit
def last_of(x, L: tl.constexpr):
    """The last number of a chunk."""
    return tl.sum(tl.where(tl.arange(0, L) == L - 1, x, 0), 0)


@triton.jit
def decays_of(gates, here, H, const):
    """The `Decays` of a chunk. Strong decays cancel in differences of G: sums are float64."""
    L: tl.constexpr = const.L
    step = tl.arange(0, L)
    sums, segments = tl.zeros([L], tl.float64), tl.zeros([L], tl.int32)
    if const.DECAYS:
        # a decay to nothing must not swallow the digits of its neighbors
        sums = tl.cumsum(tl.maximum(load_numbers(gates.g, here, H, L), -1e5).to(tl.float64), 0)
    if const.RESETS:
        first = here.begin // H
        flags = tl.load(gates.reset + first + step, mask=step < here.left, other=0)
        segments = tl.cumsum((flags != 0).to(tl.int32), 0)
    last = last_of(segments, L)
    return Decays(sums, segments, last_of(sums, L), last, last > 0)


@triton.jit
def pair_weights(d, L: tl.constexpr):
    """e^{G_i - G_j} for j <= i, 0 elsewhere and across a reset."""
    step = tl.arange(0, L)
    inside = (step[:, None] >= step[None, :]) & (d.segments[:, None] == d.segments[None, :])
    exponent = (d.sums[:, None] - d.sums[None, :]).to(tl.float32)
    return tl.where(inside, tl.exp(tl.minimum(exponent, 0.0)), 0.0)


@triton.jit
def carry_of(d):
    """e^{G_i}: the weight at step i of the memory before the chunk, 0 after a reset."""
    return tl.where(d.segments == 0, tl.exp(d.sums.to(tl.float32)), 0.0)


@triton.jit
def late_of(d):
    """e^{G_L - G_i}: the weight of step i in the memory after the chunk, 0 before a reset."""
    return tl.where(d.segments == d.last, tl.exp((d.total - d.sums).to(tl.float32)), 0.0)


@triton.jit
def total_of(d):
    """e^{G_L}: the decay of the memory across the chunk, 0 if there is a reset."""
    return tl.where(d.cut, 0.0, tl.exp(d.total.to(tl.float32)))


@triton.jit
def scores(x, y, here, H, const):
    """x y^T of two tensors of width K in a chunk."""
    total = tl.zeros([const.L, const.L], tl.float32)
    for first in range(0, const.K, const.BK):
        x_LK = load_steps(x, here, H, first, const.L, const.K, const.BK)
        y_LK = load_steps(y, here, H, first, const.L, const.K, const.BK)
        total = tl.dot(x_LK, tl.trans(y_LK), total, input_precision=const.PRECISION)
    return total
