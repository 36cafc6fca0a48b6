# mypy: ignore-errors
"""One time step of the mLSTM on a GPU, for decoding: one kernel, one pass over the memory.

A program is a head of a row and a block of V. It computes the gates and n for itself, which is little, reads its part
of C once, writes it once, and sums the read-out on the way.

B batch  H heads  M rows and heads merged  K key width  V value width
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from exlstm.runtime.gpu.math import log_sigmoid


class Vectors(NamedTuple):
    """A tensor [B, H, width]: address, strides of row, head and along the width."""

    at: Any
    b: Any
    h: Any
    w: Any


class Scalars(NamedTuple):
    """A tensor [B, H]: address, strides of row and head."""

    at: Any
    b: Any
    h: Any


class State(NamedTuple):
    """C [M, K, V], n [M, K] and m [M], float32 and contiguous."""

    c: Any
    n: Any
    m: Any


@triton.jit
def accurate_exp(x):
    """e^x; the hardware's 2^(x / log 2) would multiply the rounding error of its argument by |x|."""
    # e^x beyond is 0 or infinite in float32; NaN stays
    x = tl.where(x < -150.0, -150.0, tl.where(x > 150.0, 150.0, x))
    n = tl.floor(x * 1.4426950408889634 + 0.5)
    return tl.exp((x - n * 0.693359375) + n * 2.12194440e-4) * tl.exp2(n)


@triton.jit
def maximum(x, y):
    """The larger of two, or NaN if there is one."""
    return tl.maximum(x, y, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def load_block(x, row, head, first, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """A block of `Vectors` in float32, zeros beyond the width."""
    column = first + tl.arange(0, BLOCK)
    return tl.load(x.at + row * x.b + head * x.h + column * x.w, mask=column < WIDTH, other=0.0).to(tl.float32)


@triton.jit
def load_scalar(x, row, head):
    """One of `Scalars`, in float32."""
    return tl.load(x.at + row * x.b + head * x.h).to(tl.float32)


@triton.jit(do_not_specialize=["H"])
def step_kernel(q, k, v, i, f, reset, reset_b, before, after, h, H, scale, eps, K: tl.constexpr, V: tl.constexpr,
                BK: tl.constexpr, BV: tl.constexpr, EXP_GATE: tl.constexpr, NORMALIZE: tl.constexpr,
                RESETS: tl.constexpr):  # fmt: skip
    """q, k, v are `Vectors`, i and f `Scalars`, reset is [B] at distances of reset_b; before, after: `State`.

    h: [B, H, V].
    """
    merged, part = (tl.program_id(0) // tl.cdiv(V, BV)).to(tl.int64), tl.program_id(0) % tl.cdiv(V, BV)
    row, head = merged // H, merged % H
    log_i, raw_f, m_before = load_scalar(i, row, head), load_scalar(f, row, head), tl.load(before.m + merged)
    log_f = log_sigmoid(raw_f, accurate_exp(-tl.abs(raw_f)))
    fresh = tl.full([], False, tl.int1)
    if RESETS:
        fresh = tl.load(reset + row * reset_b) != 0
        m_before = tl.where(fresh, 0.0, m_before)
    carried, m = log_f + m_before, tl.full([], 0.0, tl.float32)
    if EXP_GATE:
        m = maximum(carried, log_i)
    else:
        log_i = log_sigmoid(log_i, accurate_exp(-tl.abs(log_i)))
    decay, write = accurate_exp(carried - m), accurate_exp(log_i - m)
    column = part * BV + tl.arange(0, BV)
    v_V = load_block(v, row, head, part * BV, V, BV)
    total, mass = tl.zeros([BV], tl.float32), tl.zeros([BK], tl.float32)
    for first in range(0, K, BK):
        line = first + tl.arange(0, BK)
        there = line < K
        q_K = load_block(q, row, head, first, K, BK) * scale
        k_K = load_block(k, row, head, first, K, BK) * write
        n_K = tl.load(before.n + merged * K + line, mask=there, other=0.0)
        at, inside = merged * K * V + line[:, None] * V + column[None, :], there[:, None] & (column < V)[None, :]
        c_KV = tl.load(before.c + at, mask=inside, other=0.0)
        if RESETS:
            # what is forgotten may be infinite, so it is not multiplied by zero
            n_K, c_KV = tl.where(fresh, 0.0, n_K), tl.where(fresh, 0.0, c_KV)
        n_K, c_KV = decay * n_K + k_K, decay * c_KV + k_K[:, None] * v_V[None, :]
        total, mass = total + tl.sum(q_K[:, None] * c_KV, 0), mass + q_K * n_K
        tl.store(after.c + at, c_KV, mask=inside)
        tl.store(after.n + merged * K + line, n_K, mask=there & (part == 0))
    norm = accurate_exp(-m)
    if NORMALIZE:
        norm = maximum(tl.abs(tl.sum(mass, 0)), norm) + eps
    tl.store(h + merged * V + column, (total / norm).to(h.dtype.element_ty), mask=column < V)
    tl.store(after.m + merged, m, mask=part == 0)
