# mypy: ignore-errors
"""The delta rule's backward on a GPU: gradients of the memory from chunk to chunk, then of all inputs at once.

With R = U - W S, what a chunk writes, P = Q K^T * D, and dS of the memory after the chunk,

    dR = P^T dO + e^{G_L - G} K dS
    dS_0 = e^{G_L} dS + (e^G Q)^T dO - W^T dR
    X = C^T dR ,  dV = beta X ,  dA = -X R^T below the diagonal
    dQ = e^G dO S^T + (dO R^T * D) K
    dK = (dO R^T * D)^T Q + e^{G_L - G} R dS^T - beta e^G X S^T + (B + B^T) K ,  B = beta dA * D

The gradient of a decay g_m is summed over exactly the pairs j < m <= i that it acts on. See `forward` and `tiles`.

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
    store_numbers,
    store_steps,
    total_of,
)
from exlstm.runtime.gpu.tiles import load_matrix, store_matrix


@triton.jit(do_not_specialize=SIZES)
def read_gradient_kernel(q, k, do, gates, dr, T, N, H, const):
    """A chunk of a head, a block of V: dR as far as it comes from the chunk's own outputs."""
    row, chunk, head = tl.program_id(0) // N, tl.program_id(0) % N, tl.program_id(1)
    vv = tl.program_id(2) * const.BV
    L: tl.constexpr = const.L
    V: tl.constexpr = const.V
    here = chunk_at(row, chunk, head, T, N, H, L)
    d, do_LV = decays_of(gates, here, H, const), load_steps(do, here, H, vv, L, V, const.BV)
    p = (scores(q, k, here, H, const) * pair_weights(d, L)).to(do_LV.dtype)
    store_steps(dr, tl.dot(tl.trans(p), do_LV, input_precision=const.PRECISION), here, H, vv, L, V, const.BV)


@triton.jit(do_not_specialize=SIZES)
def memory_gradient_kernel(q, k, w, do, gates, last, dr, chunks, first, T, N, H, const):
    """A block of V of a head, back through a row: dS after every chunk and before the first, and all of dR.

    BK holds all of K.
    """
    merged, vv = tl.program_id(0).to(tl.int64), tl.program_id(1) * const.BV
    row, head = merged // H, merged % H
    L: tl.constexpr = const.L
    K: tl.constexpr = const.K
    V: tl.constexpr = const.V
    BK: tl.constexpr = const.BK
    BV: tl.constexpr = const.BV
    ds = load_matrix(last + merged * K * V, 0, vv, K, V, BK, BV)
    for back in range(N):
        here = chunk_at(row, N - 1 - back, head, T, N, H, L)
        d = decays_of(gates, here, H, const)
        store_matrix(chunks + here.number * K * V, ds, 0, vv, K, V, BK, BV)
        k_LK = load_steps(k, here, H, 0, L, K, BK)
        late = (k_LK * late_of(d)[:, None]).to(k_LK.dtype)
        dr_LV = load_steps(dr, here, H, vv, L, V, BV).to(tl.float32)
        dr_LV = tl.dot(late, ds.to(k_LK.dtype), dr_LV, input_precision=const.PRECISION)
        store_steps(dr, dr_LV, here, H, vv, L, V, BV)
        q_LK, do_LV = load_steps(q, here, H, 0, L, K, BK), load_steps(do, here, H, vv, L, V, BV)
        w_LK, read = load_steps(w, here, H, 0, L, K, BK), (q_LK * carry_of(d)[:, None]).to(q_LK.dtype)
        ds = tl.dot(tl.trans(read), do_LV, ds * total_of(d), input_precision=const.PRECISION)
        ds -= tl.dot(tl.trans(w_LK), dr_LV.to(w_LK.dtype), input_precision=const.PRECISION)
    store_matrix(first + merged * K * V, ds, 0, vv, K, V, BK, BV)


@triton.jit
def chunk_values(written, dr, c, here, H, vv, const):
    """A block of V of R and of X = C^T dR, in the dtype of u."""
    L: tl.constexpr = const.L
    V: tl.constexpr = const.V
    BV: tl.constexpr = const.BV
    u_LV, x_LV = load_steps(written.u, here, H, vv, L, V, BV), load_steps(written.old, here, H, vv, L, V, BV)
    dr_LV = load_steps(dr, here, H, vv, L, V, BV).to(u_LV.dtype)
    r_LV = (u_LV.to(tl.float32) - x_LV.to(tl.float32)).to(u_LV.dtype)
    return r_LV, tl.dot(tl.trans(c), dr_LV, input_precision=const.PRECISION).to(u_LV.dtype)


@triton.jit
def decay_gradients(e, dcarry, dlate, dtotal, L: tl.constexpr):
    """dg, from the gradients of the logarithms of D, e^G, e^{G_L - G} and e^{G_L}."""
    step = tl.arange(0, L)
    after = step[:, None] >= step[None, :]
    pairs = tl.sum(tl.where(after, tl.cumsum(e, 1) - e, 0.0), 0)
    carried = tl.sum(tl.where(after, dcarry[:, None], 0.0), 0)
    return pairs + carried + tl.sum(tl.where(after, 0.0, dlate[:, None]), 0) + dtotal


@triton.jit
def value_gradients(v, do, made, dr, c, beta, dv, here, H, const):
    """dv, and dO R^T, X R^T and the share of the values in dbeta."""
    L: tl.constexpr = const.L
    V: tl.constexpr = const.V
    BV: tl.constexpr = const.BV
    dp, xr = tl.zeros([L, L], tl.float32), tl.zeros([L, L], tl.float32)
    dbeta = tl.zeros([L], tl.float32)
    for vv in range(0, V, BV):
        r_LV, x_LV = chunk_values(made, dr, c, here, H, vv, const)
        do_LV, v_LV = load_steps(do, here, H, vv, L, V, BV), load_steps(v, here, H, vv, L, V, BV)
        dp = tl.dot(do_LV, tl.trans(r_LV), dp, input_precision=const.PRECISION)
        xr = tl.dot(x_LV, tl.trans(r_LV), xr, input_precision=const.PRECISION)
        x_LV = x_LV.to(tl.float32)
        dbeta += tl.sum(x_LV * v_LV, 1)
        store_steps(dv, x_LV * beta[:, None], here, H, vv, L, V, BV)
    return dp, xr, dbeta


@triton.jit
def memory_products(do, made, dr, c, before, after, here, H, kk, const):
    """A block of K: dO S^T, R dS^T and X S^T, and the sum of S dS."""
    L: tl.constexpr = const.L
    K: tl.constexpr = const.K
    V: tl.constexpr = const.V
    BK: tl.constexpr = const.BK
    BV: tl.constexpr = const.BV
    read, written = tl.zeros([L, BK], tl.float32), tl.zeros([L, BK], tl.float32)
    xs, total = tl.zeros([L, BK], tl.float32), tl.zeros([BK], tl.float32)
    for vv in range(0, V, BV):
        r_LV, x_LV = chunk_values(made, dr, c, here, H, vv, const)
        do_LV = load_steps(do, here, H, vv, L, V, BV)
        s_KV = load_matrix(before + here.number * K * V, kk, vv, K, V, BK, BV)
        ds_KV = load_matrix(after + here.number * K * V, kk, vv, K, V, BK, BV)
        read = tl.dot(do_LV, tl.trans(s_KV), read, input_precision=const.PRECISION)
        written = tl.dot(r_LV, tl.trans(ds_KV), written, input_precision=const.PRECISION)
        xs = tl.dot(x_LV, tl.trans(s_KV), xs, input_precision=const.PRECISION)
        total += tl.sum(s_KV.to(tl.float32) * ds_KV.to(tl.float32), 1)
    return read, written, xs, tl.sum(total, 0)


@triton.jit(do_not_specialize=SIZES)
def gradient_kernel(q, k, v, do, gates, inverse, made, dr, before, after, found, dgates, T, N, H, const):
    """A chunk of a head: dq, dk, dv, dbeta and dg.

    made: `Written`, before: S before every chunk, after: dS after it. found: `InputGradients`. dgates: as `gates`.
    """
    row, chunk, head = tl.program_id(0) // N, tl.program_id(0) % N, tl.program_id(1)
    L: tl.constexpr = const.L
    K: tl.constexpr = const.K
    BK: tl.constexpr = const.BK
    here, step = chunk_at(row, chunk, head, T, N, H, L), tl.arange(0, L)
    d, beta = decays_of(gates, here, H, const), load_numbers(gates.beta, here, H, L)
    weight, carry, late = pair_weights(d, L), carry_of(d), late_of(d)
    c = load_matrix(inverse + here.number * L * L, 0, 0, L, L, L, L).to(k.dtype.element_ty)
    dp, xr, dbeta = value_gradients(v, do, made, dr, c, beta, found.v, here, H, const)
    dp, da = dp * weight, tl.where(step[:, None] > step[None, :], -xr * weight, 0.0)
    qk, kk_LL = scores(q, k, here, H, const), scores(k, k, here, H, const)
    dbeta += tl.sum(da * kk_LL, 1)
    da = da * beta[:, None]
    e = dp * qk + da * kk_LL
    dp, da = dp.to(k.dtype.element_ty), (da + tl.trans(da)).to(k.dtype.element_ty)
    dcarry, dlate = tl.zeros([L], tl.float32), tl.zeros([L], tl.float32)
    dtotal = tl.full((), 0.0, tl.float32)
    for kk in range(0, K, BK):
        read, written, xs, total = memory_products(do, made, dr, c, before, after, here, H, kk, const)
        q_LK, k_LK = load_steps(q, here, H, kk, L, K, BK), load_steps(k, here, H, kk, L, K, BK)
        dq = tl.dot(dp, k_LK, read * carry[:, None], input_precision=const.PRECISION)
        store_steps(found.q, dq, here, H, kk, L, K, BK)
        dk = written * late[:, None] - xs * (beta * carry)[:, None]
        dk = tl.dot(tl.trans(dp), q_LK, dk, input_precision=const.PRECISION)
        dk = tl.dot(da, k_LK, dk, input_precision=const.PRECISION)
        store_steps(found.k, dk, here, H, kk, L, K, BK)
        along = tl.sum(xs * k_LK, 1)
        dbeta -= carry * along
        dcarry += (tl.sum(read * q_LK, 1) - beta * along) * carry
        dlate += tl.sum(written * k_LK, 1) * late
        dtotal += total
    store_numbers(dgates.beta, dbeta, here, H, L)
    if const.DECAYS:
        store_numbers(dgates.g, decay_gradients(e, dcarry, dlate, dtotal * total_of(d), L), here, H, L)
