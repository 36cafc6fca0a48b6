# mypy: ignore-errors
"""The mLSTM's forward on a GPU: states at the borders of chunks, then all outputs at once.

q, k, v and h are [B, T, H, width] in any strides, the last axis without gaps. What the gates say comes from `gates`; a
chunk is PARTS tiles. Products are summed in float32. K and V need not be powers of two: blocks of BK and BV are masked.

M sequences and heads, merged  T time  H heads  G tiles  C chunks  K key width  V value width
"""

import triton
import triton.language as tl

from exlstm.ops.mlstm.triton.gates import CARRY, M_HIGH, WRITE, load_plane, pair_weights
from exlstm.ops.mlstm.triton.tiles import (
    SIZES,
    Gates,
    Memory,
    load_steps,
    load_vector,
    moved,
    sequence_at,
    steps_at,
    store_steps,
    tile_at,
)
from exlstm.runtime.gpu.tiles import load_matrix, store_matrix


@triton.jit
def scores(q, k, left_q, left_k, const):
    """q k^T of two tiles, not scaled."""
    total = tl.zeros([const.TILE, const.TILE], tl.float32)
    for first in range(0, const.K, const.BK):
        q_TK = load_steps(q, left_q, first, const.TILE, const.K, const.BK)
        k_SK = load_steps(k, left_k, first, const.TILE, const.K, const.BK)
        total = tl.dot(q_TK, tl.trans(k_SK), total, input_precision=const.PRECISION)
    return total


@triton.jit(do_not_specialize=SIZES)
def state_kernel(k, v, gates, first, chunks, last, sequences, T, N, G, H, const, PARTS: tl.constexpr):
    """A block of C, and of n, through a sequence.

    first, last: `Memory` of [M], before and after a sequence. chunks: before each chunk, of [H, C].
    """
    merged, kk, vv = tl.program_id(0).to(tl.int64), tl.program_id(1) * const.BK, tl.program_id(2) * const.BV
    head = merged % H
    TILE: tl.constexpr = const.TILE
    K: tl.constexpr = const.K
    V: tl.constexpr = const.V
    row, begin, left, first_tile, tiles = sequence_at(merged // H, sequences, T, N, const.PACKED)
    k, v = steps_at(k, row, begin, head), steps_at(v, row, begin, head)
    gates, first_chunk = Gates(gates + head * G * TILE, G.to(tl.int64) * H * TILE), head * (G // PARTS)
    # n is the same in every block of V: one of them writes it
    column, most = kk + tl.arange(0, const.BK), tl.where(tl.program_id(2) == 0, K, 0)
    c = load_matrix(first.c + merged * K * V, kk, vv, K, V, const.BK, const.BV)
    n = load_vector(first.n + merged * K, kk, K, const.BK)
    for step in range(tiles):
        tile = first_tile + step
        if step % PARTS == 0:
            chunk = first_chunk + tile // PARTS
            store_matrix(chunks.c + chunk * K * V, c, kk, vv, K, V, const.BK, const.BV)
            tl.store(chunks.n + chunk * K + column, n, mask=column < most)
        decay = load_plane(gates, CARRY, tile * TILE + TILE - 1)
        write = load_plane(gates, WRITE, tile * TILE + tl.arange(0, TILE))
        k_SK = load_steps(k, left, kk, TILE, K, const.BK)
        v_SV = load_steps(v, left, vv, TILE, V, const.BV)
        written = k_SK * write[:, None]
        c = tl.dot(tl.trans(written.to(v_SV.dtype)), v_SV, c * decay, input_precision=const.PRECISION)
        n = n * decay + tl.sum(written, 0)
        k, v, left = moved(k, TILE), moved(v, TILE), left - TILE
    store_matrix(last.c + merged * K * V, c, kk, vv, K, V, const.BK, const.BV)
    tl.store(last.n + merged * K + column, n, mask=column < most)


@triton.jit
def divisor(mass, m, eps, NORMALIZE: tl.constexpr):
    """What h is divided by."""
    floor = tl.exp(-m)
    if NORMALIZE:
        floor = tl.maximum(tl.abs(mass), floor) + eps
    return floor


@triton.jit(do_not_specialize=SIZES)
def output_kernel(q, k, v, gates, chunks, h, mass_HP, sequences, T, N, G, H, scale, eps, const,
                  PARTS: tl.constexpr, NORMALIZE: tl.constexpr):  # fmt: skip
    """A tile of steps, a block of V: h. Also the signed mass n_t . q_t, [H, G TILE], which the backward needs.

    chunks: `Memory` before each chunk, of [H, C].
    """
    tile, vv, head = tl.program_id(0).to(tl.int64), tl.program_id(1) * const.BV, tl.program_id(2)
    TILE: tl.constexpr = const.TILE
    K: tl.constexpr = const.K
    V: tl.constexpr = const.V
    here = tile_at(tile, sequences, T, N, TILE, const.PACKED)
    if tile >= here.end:
        return
    left = here.left
    q, k = steps_at(q, here.row, here.begin, head), steps_at(k, here.row, here.begin, head)
    v, h = steps_at(v, here.row, here.begin, head), steps_at(h, here.row, here.begin, head)
    own, chunk = head * G.to(tl.int64) * TILE, head.to(tl.int64) * (G // PARTS) + tile // PARTS
    gates, t = Gates(gates + own, G.to(tl.int64) * H * TILE), tile * TILE + tl.arange(0, TILE)
    before = Memory(chunks.c + chunk * K * V, chunks.n + chunk * K)
    total, mass = tl.zeros([TILE, const.BV], tl.float32), tl.zeros([TILE], tl.float32)
    for kk in range(0, K, const.BK):
        q_TK = load_steps(q, left, kk, TILE, K, const.BK)
        c_KV = load_matrix(before.c, kk, vv, K, V, const.BK, const.BV)
        total = tl.dot(q_TK, c_KV, total, input_precision=const.PRECISION)
        mass += tl.sum(q_TK * load_vector(before.n, kk, K, const.BK)[None, :], 1)
    part, gap = tile % PARTS, tl.full((), 1.0, tl.float32)
    for other in range(tile - part, tile):
        gap *= load_plane(gates, CARRY, other * TILE + TILE - 1)
    total, mass, gap = total * gap, mass * gap, tl.full((), 1.0, tl.float32)
    for back in range(1, part + 1):
        past = back * TILE
        weight = load_plane(gates, WRITE, t - past) * gap
        p = scores(q, moved(k, -past), left, left + past, const) * weight[None, :]
        v_SV = load_steps(moved(v, -past), left + past, vv, TILE, V, const.BV)
        total = tl.dot(p.to(v_SV.dtype), v_SV, total, input_precision=const.PRECISION)
        mass += tl.sum(p, 1)
        gap *= load_plane(gates, CARRY, (tile - back) * TILE + TILE - 1)
    carry = load_plane(gates, CARRY, t)
    total, mass = total * carry[:, None], mass * carry
    p = scores(q, k, left, left, const) * pair_weights(gates, t)
    v_SV = load_steps(v, left, vv, TILE, V, const.BV)
    total = tl.dot(p.to(v_SV.dtype), v_SV, total, input_precision=const.PRECISION)
    mass = (mass + tl.sum(p, 1)) * scale
    norm = divisor(mass, load_plane(gates, M_HIGH, t), eps, NORMALIZE)
    store_steps(h, total * (scale / norm)[:, None], left, vv, TILE, V, const.BV)
    tl.store(mass_HP + own + t, mass, mask=tl.arange(0, TILE) < tl.where(tl.program_id(1) == 0, TILE, 0))
