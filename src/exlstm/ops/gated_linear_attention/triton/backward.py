# mypy: ignore-errors
"""Linear attention with a decay per key channel on a GPU, backward: dS after every block, then all gradients.

A tile is one block here, so that a program has all pairs of it in hand. With dA = dO V^T, sums over a block's pairs go
from its last step to its first. At step t dk_s has all targets from t on, and dg_t, the sum of dk_s k_s over s < t, is
the sum over exactly the pairs that g_t acts on. See `chunkwise` for the formulas, `forward` for the conventions.

M rows and heads, merged  T time  H heads  N blocks of a row  K key width  V value width
"""

import triton
import triton.language as tl

from exlstm.ops.gated_linear_attention.triton.tiles import (
    BLOCK,
    SIZES,
    gates_of,
    load_gates,
    load_scores,
    load_step,
    load_steps,
    resets_before,
    steps_of,
    store_steps,
)
from exlstm.runtime.gpu.tiles import load_matrix, store_matrix


@triton.jit(do_not_specialize=SIZES)
def state_gradient_kernel(q, do, g, reset, last, after, first, T, N, H, const):
    """A block of dS back through a row. last, first: [M, K, V]. after: after each block, [M, N, K, V]."""
    merged, kk, vv = tl.program_id(0).to(tl.int64), tl.program_id(1) * const.BK, tl.program_id(2) * const.BV
    row, head, size = merged // H, merged % H, tl.full([], const.K, tl.int64) * const.V
    q, do, g = steps_of(q, row, head), steps_of(do, row, head), gates_of(g, reset, row, head, T)
    ds = load_matrix(last + merged * size, kk, vv, const.K, const.V, const.BK, const.BV)
    for back in range(N):
        block = merged * 0 + N - 1 - back
        begin = block * BLOCK
        store_matrix(after + (merged * N + block) * size, ds, kk, vv, const.K, const.V, const.BK, const.BV)
        gates = load_gates(g, begin, T, kk, const, BLOCK)
        do_TV = load_steps(do, begin, T, vv, const.V, const.BV, BLOCK)
        q_TK = load_steps(q, begin, T, kk, const.K, const.BK, BLOCK) * tl.exp(tl.cumsum(gates, 0))
        ds = ds * tl.exp(tl.sum(gates, 0))[:, None]
        ds = tl.dot(tl.trans(q_TK.to(do_TV.dtype)), do_TV, ds, input_precision=const.PRECISION)
    store_matrix(first + merged * size, ds, kk, vv, const.K, const.V, const.BK, const.BV)


@triton.jit
def score_gradients(v, do, begin, T, const):
    """dA of a block's pairs, 0 for later sources."""
    da, step = tl.zeros([BLOCK, BLOCK], tl.float32), tl.arange(0, BLOCK)
    for vv in range(0, const.V, const.BV):
        do_TV = load_steps(do, begin, T, vv, const.V, const.BV, BLOCK)
        v_SV = load_steps(v, begin, T, vv, const.V, const.BV, BLOCK)
        da = tl.dot(do_TV, tl.trans(v_SV), da, input_precision=const.PRECISION)
    return tl.where(step[:, None] >= step[None, :], da, 0.0)


@triton.jit
def store_dv(dv, scores, k, do, g, after, begin, T, const):
    """dv, through the outputs of this block and through S after it, whose gradient is `after`."""
    a, end = load_scores(scores, begin), tl.minimum(begin + BLOCK, T)
    for vv in range(0, const.V, const.BV):
        do_TV = load_steps(do, begin, T, vv, const.V, const.BV, BLOCK)
        total = tl.dot(tl.trans(a.to(do_TV.dtype)), do_TV, input_precision=const.PRECISION)
        for kk in range(0, const.K, const.BK):
            rest = tl.cumsum(load_gates(g, begin + 1, end, kk, const, BLOCK), 0, reverse=True)
            k_SK = load_steps(k, begin, T, kk, const.K, const.BK, BLOCK) * tl.exp(rest)
            ds_KV = load_matrix(after, kk, vv, const.K, const.V, const.BK, const.BV)
            total = tl.dot(k_SK.to(ds_KV.dtype), ds_KV, total, input_precision=const.PRECISION)
        store_steps(dv, total, begin, T, vv, const.V, const.BV, BLOCK)


@triton.jit
def pair_gradients(q, k_SK, rest, da, begin, T, kk, const):
    """dq, dk and dg [BLOCK, BK] through the pairs of a block. rest: log decays of the steps after each."""
    step = tl.arange(0, BLOCK)
    dq, dk = tl.zeros([BLOCK, const.BK], tl.float32), tl.zeros([BLOCK, const.BK], tl.float32)
    dg = tl.zeros([BLOCK, const.BK], tl.float32)
    for done in range(BLOCK):
        t = BLOCK - 1 - done
        decay = tl.exp(tl.cumsum(tl.where((step < t)[:, None], rest, 0.0), 0, reverse=True))
        weight = tl.sum(tl.where((step == t)[:, None], da, 0.0), 0)[:, None] * decay
        dk += weight * load_step(q, begin + t, T, kk, const.K, const.BK)[None, :]
        forget = tl.sum(tl.where((step < t)[:, None], dk * k_SK, 0.0), 0)
        here = (step == t)[:, None]
        dq += tl.where(here, tl.sum(weight * k_SK, 0)[None, :], 0.0)
        dg += tl.where(here, forget[None, :], 0.0)
    return dq, dk, dg


@triton.jit
def state_products(v, do, before, after, begin, T, kk, const):
    """A block of K: do S^T, v dS^T, and the sum of S dS over V. before: S before, after: dS after the block."""
    read, write = tl.zeros([BLOCK, const.BK], tl.float32), tl.zeros([BLOCK, const.BK], tl.float32)
    kept = tl.zeros([const.BK], tl.float32)
    for vv in range(0, const.V, const.BV):
        s_KV = load_matrix(before, kk, vv, const.K, const.V, const.BK, const.BV)
        ds_KV = load_matrix(after, kk, vv, const.K, const.V, const.BK, const.BV)
        do_TV = load_steps(do, begin, T, vv, const.V, const.BV, BLOCK)
        v_SV = load_steps(v, begin, T, vv, const.V, const.BV, BLOCK)
        read = tl.dot(do_TV, tl.trans(s_KV), read, input_precision=const.PRECISION)
        write = tl.dot(v_SV, tl.trans(ds_KV), write, input_precision=const.PRECISION)
        kept += tl.sum(s_KV.to(tl.float32) * ds_KV, 1)
    return read, write, kept


@triton.jit(do_not_specialize=SIZES)
def gradient_kernel(q, k, v, do, g, reset, scores, before, after, dq, dk, dv, dg, T, N, H, const):
    """A block of a row and head: all gradients. before: S before, after: dS after each block, [M, N, K, V]."""
    block, merged = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    row, head, begin = merged // H, merged % H, block * BLOCK
    q, k, v, do = steps_of(q, row, head), steps_of(k, row, head), steps_of(v, row, head), steps_of(do, row, head)
    dq, dk, dv, dg = steps_of(dq, row, head), steps_of(dk, row, head), steps_of(dv, row, head), steps_of(dg, row, head)
    g, scores = gates_of(g, reset, row, head, T), scores + merged * N * BLOCK * BLOCK
    at = (merged * N + block) * (tl.full([], const.K, tl.int64) * const.V)
    before, after, end = before + at, after + at, tl.minimum(begin + BLOCK, T)
    da = score_gradients(v, do, begin, T, const)
    store_dv(dv, scores, k, do, g, after, begin, T, const)
    for kk in range(0, const.K, const.BK):
        read, write, kept = state_products(v, do, before, after, begin, T, kk, const)
        gates, following = load_gates(g, begin, T, kk, const, BLOCK), load_gates(g, begin + 1, end, kk, const, BLOCK)
        total = tl.sum(gates, 0)
        if const.RESETS:
            read = tl.where((resets_before(g, begin, T, BLOCK) > 0)[:, None], 0.0, read)
            kept = tl.where(total == float("-inf"), 0.0, kept)
        read *= tl.exp(tl.cumsum(gates, 0))
        write *= tl.exp(tl.cumsum(following, 0, reverse=True))
        q_TK = load_steps(q, begin, T, kk, const.K, const.BK, BLOCK).to(tl.float32)
        k_SK = load_steps(k, begin, T, kk, const.K, const.BK, BLOCK).to(tl.float32)
        dq_TK, dk_SK, dg_TK = pair_gradients(q, k_SK, following, da, begin, T, kk, const)
        # g_l also acts on what steps from l on read of S before, on what earlier ones write to S after, and on what
        # the one leaves in the other
        source = write * k_SK
        dg_TK += tl.cumsum(read * q_TK, 0, reverse=True) + (tl.cumsum(source, 0) - source)
        dg_TK += (kept * tl.exp(total))[None, :]
        store_steps(dq, dq_TK + read, begin, T, kk, const.K, const.BK, BLOCK)
        store_steps(dk, dk_SK + write, begin, T, kk, const.K, const.BK, BLOCK)
        store_steps(dg, dg_TK, begin, T, kk, const.K, const.BK, BLOCK)
