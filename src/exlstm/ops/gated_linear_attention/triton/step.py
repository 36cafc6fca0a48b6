# mypy: ignore-errors
"""One step of linear attention with a decay per key channel on a GPU, for decoding: one pass over the memory.

A program is a head of a row and a block of V. It reads its part of S once and writes it once.

B batch  H heads  M rows and heads merged  K key width  V value width
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl


class Vectors(NamedTuple):
    """A tensor [B, H, width]: address, strides of row, head and along the width."""

    at: Any
    b: Any
    h: Any
    w: Any


@triton.jit
def load_vector(x, row, head, first, WIDTH: tl.constexpr, COLUMNS: tl.constexpr):
    """A block of `Vectors` in float32, zeros beyond the width."""
    column = first + tl.arange(0, COLUMNS)
    return tl.load(x.at + row * x.b + head * x.h + column * x.w, mask=column < WIDTH, other=0.0).to(tl.float32)


@triton.jit(do_not_specialize=["H"])
def step_kernel(
    q,
    k,
    v,
    g,
    bonus,
    reset,
    reset_b,
    before,
    after,
    o,
    H,
    K: tl.constexpr,
    V: tl.constexpr,
    BK: tl.constexpr,
    BV: tl.constexpr,
    BONUS: tl.constexpr,
    RESETS: tl.constexpr,
):
    """q, k, v, g, bonus are `Vectors`, reset is [B] at distances of reset_b. before, after: S [M, K, V]; o: [M, V]."""
    merged, part = (tl.program_id(0) // tl.cdiv(V, BV)).to(tl.int64), tl.program_id(0) % tl.cdiv(V, BV)
    row, head = merged // H, merged % H
    fresh = tl.full([], False, tl.int1)
    if RESETS:
        fresh = tl.load(reset + row * reset_b) != 0
    column = part * BV + tl.arange(0, BV)
    v_V, total = load_vector(v, row, head, part * BV, V, BV), tl.zeros([BV], tl.float32)
    for first in range(0, K, BK):
        line = first + tl.arange(0, BK)
        q_K, k_K = load_vector(q, row, head, first, K, BK), load_vector(k, row, head, first, K, BK)
        decay = tl.exp(load_vector(g, row, head, first, K, BK))
        at, inside = merged * K * V + line[:, None] * V + column[None, :], (line < K)[:, None] & (column < V)[None, :]
        s_KV = tl.load(before + at, mask=inside, other=0.0)
        if RESETS:
            # what is forgotten may be infinite, so it is not multiplied by zero
            s_KV = tl.where(fresh, 0.0, s_KV)
        if BONUS:
            own = tl.sum(q_K * k_K * load_vector(bonus, row * 0, head, first, K, BK), 0)
            total += tl.sum(q_K[:, None] * s_KV, 0) + own * v_V
        s_KV = decay[:, None] * s_KV + k_K[:, None] * v_V[None, :]
        if not BONUS:
            total += tl.sum(q_K[:, None] * s_KV, 0)
        tl.store(after + at, s_KV, mask=inside)
    tl.store(o + merged * V + column, total.to(o.dtype.element_ty), mask=column < V)
