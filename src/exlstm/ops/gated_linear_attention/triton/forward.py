# mypy: ignore-errors
"""Linear attention with a decay per key channel on a GPU, forward: scores of all blocks, S before every tile, outputs.

The decay D_ts = exp(sum of g over s < l <= t) of a pair is one number per key channel. Within a block of 16 steps
scores are sums over channels, in which keys decay step by step. Beyond a block the decay is a product of two numbers,
at most one each: of the steps that are left in the block of s, and of those before t in its own. So everything else is
products of matrices. No exponent is positive, and none is a difference.

A tile is some blocks: S is stored before each, and goes from block to block in registers.

M rows and heads, merged  T time  H heads  N tiles of a row  K key width  V value width
"""

import triton
import triton.language as tl

from exlstm.ops.gated_linear_attention.triton.tiles import (
    BLOCK,
    SIZES,
    gates_of,
    load_gate,
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
def score_kernel(q, k, g, reset, scores, T, N, H, const):
    """A block of a row and head: A [target, source], 0 for later sources and across resets. scores: [M, 16 N, 16]."""
    block, merged = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    row, head, begin, step = merged // H, merged % H, block * BLOCK, tl.arange(0, BLOCK)
    q, k, g = steps_of(q, row, head), steps_of(k, row, head), gates_of(g, reset, row, head, T)
    a = tl.zeros([BLOCK, BLOCK], tl.float32)
    for kk in range(0, const.K, const.BK):
        k_SK = load_steps(k, begin, T, kk, const.K, const.BK, BLOCK).to(tl.float32)
        decayed = tl.zeros([BLOCK, const.BK], tl.float32)
        for t in range(BLOCK):
            decay = tl.exp(load_gate(g, begin + t, T, kk, const))
            decayed = tl.where((step == t)[:, None], k_SK, decayed * decay[None, :])
            read = tl.sum(decayed * load_step(q, begin + t, T, kk, const.K, const.BK)[None, :], 1)
            a += tl.where((step == t)[:, None], read[None, :], 0.0)
    at = (merged * N + block) * BLOCK + step
    tl.store(scores + at[:, None] * BLOCK + step[None, :], a)


@triton.jit
def written(s, k, v, g, begin, T, kk, vv, const, TILE: tl.constexpr):
    """A block of S after a tile, from that before it; k and v are `Steps`, g `Gates`."""
    end = tl.minimum(begin + TILE, T)
    total = tl.sum(load_gates(g, begin, end, kk, const, TILE), 0)
    rest = tl.cumsum(load_gates(g, begin + 1, end, kk, const, TILE), 0, reverse=True)
    k_SK = load_steps(k, begin, T, kk, const.K, const.BK, TILE) * tl.exp(rest)
    v_SV = load_steps(v, begin, T, vv, const.V, const.BV, TILE)
    # what is forgotten may be infinite, so it is not multiplied by zero
    s = tl.where((total == float("-inf"))[:, None], 0.0, s * tl.exp(total)[:, None])
    return tl.dot(tl.trans(k_SK.to(v_SV.dtype)), v_SV, s, input_precision=const.PRECISION)


@triton.jit(do_not_specialize=SIZES)
def state_kernel(k, v, g, reset, first, tiles, last, T, N, H, const, TILE: tl.constexpr):
    """A block of S through a row. first, last: [M, K, V]. tiles: S before each tile, [M, N, K, V]."""
    merged, kk, vv = tl.program_id(0).to(tl.int64), tl.program_id(1) * const.BK, tl.program_id(2) * const.BV
    row, head = merged // H, merged % H
    k, v, g = steps_of(k, row, head), steps_of(v, row, head), gates_of(g, reset, row, head, T)
    size = tl.full([], const.K, tl.int64) * const.V
    s = load_matrix(first + merged * size, kk, vv, const.K, const.V, const.BK, const.BV)
    for step in range(N):
        tile = merged * 0 + step
        store_matrix(tiles + (merged * N + tile) * size, s, kk, vv, const.K, const.V, const.BK, const.BV)
        s = written(s, k, v, g, tile * TILE, T, kk, vv, const, TILE)
    store_matrix(last + merged * size, s, kk, vv, const.K, const.V, const.BK, const.BV)


@triton.jit(do_not_specialize=SIZES)
def output_kernel(q, k, v, g, reset, scores, tiles, o, T, N, H, const, PARTS: tl.constexpr):
    """A tile of PARTS blocks and a block of V, with all keys in one block: o."""
    tile, vv, merged = tl.program_id(0).to(tl.int64), tl.program_id(1) * const.BV, tl.program_id(2).to(tl.int64)
    row, head, size = merged // H, merged % H, tl.full([], const.K, tl.int64) * const.V
    q, k, v, o = steps_of(q, row, head), steps_of(k, row, head), steps_of(v, row, head), steps_of(o, row, head)
    g, scores = gates_of(g, reset, row, head, T), scores + merged * N * PARTS * BLOCK * BLOCK
    s = load_matrix(tiles + (merged * N + tile) * size, 0, vv, const.K, const.V, const.BK, const.BV).to(tl.float32)
    for part in range(PARTS):
        begin = (tile * PARTS + part) * BLOCK
        carry = tl.exp(tl.cumsum(load_gates(g, begin, T, 0, const, BLOCK), 0))
        v_SV = load_steps(v, begin, T, vv, const.V, const.BV, BLOCK)
        q_TK = (load_steps(q, begin, T, 0, const.K, const.BK, BLOCK) * carry).to(v_SV.dtype)
        read = tl.dot(q_TK, s.to(v_SV.dtype), input_precision=const.PRECISION)
        if const.RESETS:
            read = tl.where((resets_before(g, begin, T, BLOCK) > 0)[:, None], 0.0, read)
        a = load_scores(scores, begin).to(v_SV.dtype)
        store_steps(o, tl.dot(a, v_SV, read, input_precision=const.PRECISION), begin, T, vv, const.V, const.BV, BLOCK)
        s = written(s, k, v, g, begin, T, 0, vv, const, BLOCK)
