# mypy: ignore-errors
"""The delta rule's forward on a GPU: every chunk's triangular system, the memory from chunk to chunk, all outputs.

With D the decays of pairs, A = beta (K K^T * D) below the diagonal and C = (I + A)^{-1}, a chunk that starts with S has

    U = C (beta V) ,  W = C (beta e^G K)
    O = (Q K^T * D) (U - W S) + e^G Q S
    S' = e^{G_L} S + (e^{G_L - G} K)^T (U - W S)

W S is stored, and joins only by selection: what a reset forgets may be infinite. See `tiles` for the conventions.

B batch  T time  H heads  N chunks of a row  K key width  V value width  L steps of a chunk
"""

import triton
import triton.language as tl

from exlstm.ops.delta_rule.triton.tiles import (
    SIZES,
    carry_of,
    chunk_at,
    decays_of,
    late_of,
    load_numbers,
    load_steps,
    pair_weights,
    scores,
    store_steps,
    total_of,
)
from exlstm.runtime.gpu.tiles import load_matrix, store_matrix


@triton.jit
def inverse_of(a, L: tl.constexpr):
    """(I + a)^{-1} by forward substitution, of an `a` with zeros on and above the diagonal."""
    step = tl.arange(0, L)
    found = tl.where(step[:, None] == step[None, :], 1.0, 0.0)
    for row in range(1, L):
        here = step[:, None] == row
        weights = tl.sum(tl.where(here, a, 0.0), 0)
        found = tl.where(here, found - tl.sum(weights[:, None] * found, 0)[None, :], found)
    return found


@triton.jit(do_not_specialize=SIZES)
def system_kernel(k, v, gates, inverse, w, u, T, N, H, const):
    """A chunk of a head: C [L, L], W [L, K] and U [L, V]."""
    row, chunk, head = tl.program_id(0) // N, tl.program_id(0) % N, tl.program_id(1)
    L: tl.constexpr = const.L
    K: tl.constexpr = const.K
    V: tl.constexpr = const.V
    here, step = chunk_at(row, chunk, head, T, N, H, L), tl.arange(0, L)
    d, beta = decays_of(gates, here, H, const), load_numbers(gates.beta, here, H, L)
    a = scores(k, k, here, H, const) * pair_weights(d, L) * beta[:, None]
    c = inverse_of(tl.where(step[:, None] > step[None, :], a, 0.0), L)
    store_matrix(inverse + here.number * L * L, c, 0, 0, L, L, L, L)
    c, read = c.to(k.dtype.element_ty), beta * carry_of(d)
    for kk in range(0, K, const.BK):
        k_LK = load_steps(k, here, H, kk, L, K, const.BK)
        scaled = (k_LK * read[:, None]).to(k_LK.dtype)
        store_steps(w, tl.dot(c, scaled, input_precision=const.PRECISION), here, H, kk, L, K, const.BK)
    for vv in range(0, V, const.BV):
        v_LV = load_steps(v, here, H, vv, L, V, const.BV)
        scaled = (v_LV * beta[:, None]).to(v_LV.dtype)
        store_steps(u, tl.dot(c, scaled, input_precision=const.PRECISION), here, H, vv, L, V, const.BV)


@triton.jit(do_not_specialize=SIZES)
def memory_kernel(k, w, u, gates, first, old, chunks, last, T, N, H, const):
    """A block of V of a head, through a row: S before every chunk and after the last, and old = W S of every chunk.

    BK holds all of K.
    """
    merged, vv = tl.program_id(0).to(tl.int64), tl.program_id(1) * const.BV
    row, head = merged // H, merged % H
    L: tl.constexpr = const.L
    K: tl.constexpr = const.K
    V: tl.constexpr = const.V
    BK: tl.constexpr = const.BK
    BV: tl.constexpr = const.BV
    s = load_matrix(first + merged * K * V, 0, vv, K, V, BK, BV)
    for chunk in range(N):
        here = chunk_at(row, chunk, head, T, N, H, L)
        d = decays_of(gates, here, H, const)
        store_matrix(chunks + here.number * K * V, s, 0, vv, K, V, BK, BV)
        w_LK, u_LV = load_steps(w, here, H, 0, L, K, BK), load_steps(u, here, H, vv, L, V, BV).to(tl.float32)
        x_LV = tl.dot(w_LK, s.to(w_LK.dtype), input_precision=const.PRECISION)
        x_LV = tl.where((d.segments == 0)[:, None], x_LV, 0.0)
        store_steps(old, x_LV, here, H, vv, L, V, BV)
        k_LK = load_steps(k, here, H, 0, L, K, BK)
        late = (k_LK * late_of(d)[:, None]).to(k_LK.dtype)
        written = (u_LV - tl.where(d.cut, 0.0, x_LV)).to(k_LK.dtype)
        s = tl.where(d.cut, 0.0, s * total_of(d))
        s = tl.dot(tl.trans(late), written, s, input_precision=const.PRECISION)
    store_matrix(last + merged * K * V, s, 0, vv, K, V, BK, BV)


@triton.jit(do_not_specialize=SIZES)
def output_kernel(q, k, u, old, gates, chunks, o, T, N, H, const):
    """A chunk of a head, a block of V: o."""
    row, chunk, head = tl.program_id(0) // N, tl.program_id(0) % N, tl.program_id(1)
    vv = tl.program_id(2) * const.BV
    L: tl.constexpr = const.L
    K: tl.constexpr = const.K
    V: tl.constexpr = const.V
    here = chunk_at(row, chunk, head, T, N, H, L)
    d = decays_of(gates, here, H, const)
    read = tl.zeros([L, const.BV], tl.float32)
    for kk in range(0, K, const.BK):
        q_LK = load_steps(q, here, H, kk, L, K, const.BK)
        s_KV = load_matrix(chunks + here.number * K * V, kk, vv, K, V, const.BK, const.BV).to(q_LK.dtype)
        read = tl.dot(q_LK, s_KV, read, input_precision=const.PRECISION)
    u_LV, x_LV = load_steps(u, here, H, vv, L, V, const.BV), load_steps(old, here, H, vv, L, V, const.BV)
    p = (scores(q, k, here, H, const) * pair_weights(d, L)).to(u_LV.dtype)
    read = read * carry_of(d)[:, None] - tl.dot(p, x_LV, input_precision=const.PRECISION)
    read = tl.where((d.segments == 0)[:, None], read, 0.0)
    store_steps(o, tl.dot(p, u_LV, read, input_precision=const.PRECISION), here, H, vv, L, V, const.BV)
