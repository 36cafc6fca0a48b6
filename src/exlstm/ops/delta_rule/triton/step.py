# mypy: ignore-errors
"""One time step of either rule on a GPU, for decoding: one kernel, one pass over the memory.

A program is a block of V of a head, with all of its keys: it reads its part of S once and writes it once.

B batch  H heads  K key width  V value width
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl


class StepInputs(NamedTuple):
    """Contiguous tensors of one step: q, k, a, b [B, H, K], v [B, H, V], beta [B, H], g [B, H] or [B, H, K], reset [B].

    Those that a rule has not are tensors that the kernel does not read.
    """

    q: Any
    k: Any
    v: Any
    beta: Any
    a: Any
    b: Any
    g: Any
    reset: Any


@triton.jit(do_not_specialize=["H"])
def step_kernel(
    x,
    before,
    after,
    o,
    H,
    K: tl.constexpr,
    V: tl.constexpr,
    BK: tl.constexpr,
    BV: tl.constexpr,
    GENERAL: tl.constexpr,
    DECAYS: tl.constexpr,
    RESETS: tl.constexpr,
):
    """o [B, H, V] and the memory after the step. DECAYS: 0 without, 1 for one of a head, 2 for one of each key."""
    merged, vv = (tl.program_id(0) // tl.cdiv(V, BV)).to(tl.int64), tl.program_id(0) % tl.cdiv(V, BV) * BV
    key, column = tl.arange(0, BK), vv + tl.arange(0, BV)
    keys, columns = key < K, column < V
    at, there = merged * K * V + key[:, None] * V + column[None, :], keys[:, None] & columns[None, :]
    s = tl.load(before + at, mask=there, other=0.0)
    if RESETS:  # what is forgotten may be infinite, so it is not multiplied by zero
        s = tl.where(tl.load(x.reset + merged // H) != 0, 0.0, s)
    k_K = tl.load(x.k + merged * K + key, mask=keys, other=0.0).to(tl.float32)
    q_K = tl.load(x.q + merged * K + key, mask=keys, other=0.0).to(tl.float32)
    v_V = tl.load(x.v + merged * V + column, mask=columns, other=0.0).to(tl.float32)
    read_K = k_K
    if GENERAL:
        read_K = tl.load(x.a + merged * K + key, mask=keys, other=0.0).to(tl.float32)
        old_V = tl.sum(s * read_K[:, None], 0)
    if DECAYS == 1:
        s *= tl.exp(tl.load(x.g + merged).to(tl.float32))
    if DECAYS == 2:
        s *= tl.exp(tl.load(x.g + merged * K + key, mask=keys, other=0.0).to(tl.float32))[:, None]
    if GENERAL:
        b_K = tl.load(x.b + merged * K + key, mask=keys, other=0.0).to(tl.float32)
        s += b_K[:, None] * old_V[None, :] + k_K[:, None] * v_V[None, :]
    else:
        u_V = (v_V - tl.sum(s * read_K[:, None], 0)) * tl.load(x.beta + merged).to(tl.float32)
        s += k_K[:, None] * u_V[None, :]
    tl.store(after + at, s, mask=there)
    tl.store(o + merged * V + column, tl.sum(s * q_K[:, None], 0).to(o.dtype.element_ty), mask=columns)
