"""The mLSTM's forward on a GPU: states at the borders of chunks, then all outputs at once.

q, k, v and h are [B, T, H, width] in whatever strides, the last axis without gaps; *_b and *_t and *_h are strides.
What the gates say comes from `triton_gates`; a chunk is PARTS tiles. Products are summed in float32; PRECISION is how
float32 inputs are multiplied. K and V need not be powers of two: blocks of BK and BV are masked.

M sequences and heads, merged  T time  H heads  G tiles  C chunks  K key width  V value width
"""

import triton
import triton.language as tl

from exlstm.ops.mlstm.triton.gates import CARRY, M_HIGH, SIZES, WRITE, owner, pair_weights, sequence


@triton.jit
def start(x, row, begin, head, stride_b, stride_t, stride_h):
    """Where the steps of a sequence and head begin, from step `begin` of its row on."""
    return x + row * stride_b + begin * stride_t + head.to(tl.int64) * stride_h


@triton.jit
def rows(x, stride_t, left, first, TILE: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """A tile of steps from x on, numbers `first` to first + BLOCK - 1 of each; zeros where there is nothing.

    left: steps there are from x on.
    """
    step, column = tl.arange(0, TILE), first + tl.arange(0, BLOCK)
    there = (step < left)[:, None]
    if WIDTH % BLOCK:
        there = there & (column < WIDTH)[None, :]
    return tl.load(x + step[:, None] * stride_t + column[None, :], mask=there, other=0.0)


@triton.jit
def put_rows(x, value, stride_t, left, first, TILE: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """The way back."""
    step, column = tl.arange(0, TILE), first + tl.arange(0, BLOCK)
    there = (step < left)[:, None] & (column < WIDTH)[None, :]
    tl.store(x + step[:, None] * stride_t + column[None, :], value.to(x.dtype.element_ty), mask=there)


@triton.jit
def matrix(x, first_k, first_v, K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr):
    """A block of a contiguous [K, V] matrix, zeros beyond its end."""
    k, v = first_k + tl.arange(0, BK), first_v + tl.arange(0, BV)
    at = x + k[:, None] * V + v[None, :]
    if K % BK == 0 and V % BV == 0:
        return tl.load(at)
    return tl.load(at, mask=(k < K)[:, None] & (v < V)[None, :], other=0.0)


@triton.jit
def put_matrix(x, value, first_k, first_v, K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr):
    """The way back."""
    k, v = first_k + tl.arange(0, BK), first_v + tl.arange(0, BV)
    there = (k < K)[:, None] & (v < V)[None, :]
    tl.store(x + k[:, None] * V + v[None, :], value.to(x.dtype.element_ty), mask=there)


@triton.jit
def vector(x, first, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """A block of a vector, zeros beyond its end."""
    column = first + tl.arange(0, BLOCK)
    return tl.load(x + column, mask=column < WIDTH, other=0.0)


@triton.jit
def scores(q, q_t, left_q, k, k_t, left_k, TILE: tl.constexpr, K: tl.constexpr, BK: tl.constexpr,
           PRECISION: tl.constexpr):  # fmt: skip
    """q k^T of two tiles, not scaled."""
    total = tl.zeros([TILE, TILE], tl.float32)
    for first in range(0, K, BK):
        q_TK, k_SK = rows(q, q_t, left_q, first, TILE, K, BK), rows(k, k_t, left_k, first, TILE, K, BK)
        total = tl.dot(q_TK, tl.trans(k_SK), total, input_precision=PRECISION)
    return total


@triton.jit(do_not_specialize=SIZES)
def state_kernel(k, v, gates, first_c, first_n, cs, ns, last_c, last_n, borders, firsts, T, N, G, H,
                 k_b, k_t, k_h, v_b, v_t, v_h, TILE: tl.constexpr, PARTS: tl.constexpr, K: tl.constexpr,
                 V: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, PACKED: tl.constexpr,
                 PRECISION: tl.constexpr):  # fmt: skip
    """A block of C, and of n, through a sequence: cs [H, C, K, V] and ns [H, C, K] are those before each chunk."""
    merged, kk, vv = tl.program_id(0).to(tl.int64), tl.program_id(1) * BK, tl.program_id(2) * BV
    head, plane = merged % H, G.to(tl.int64) * H * TILE
    row, begin, length, first, tiles = sequence(merged // H, borders, firsts, T, N, PACKED)
    k, v = start(k, row, begin, head, k_b, k_t, k_h), start(v, row, begin, head, v_b, v_t, v_h)
    gates, chunks = gates + head * G * TILE, head * (G // PARTS)
    carries, writes = gates + CARRY * plane, gates + WRITE * plane
    # n is the same in every block of V: one of them writes it
    column, most = kk + tl.arange(0, BK), tl.where(tl.program_id(2) == 0, K, 0)
    c = matrix(first_c + merged * K * V, kk, vv, K, V, BK, BV)
    n = vector(first_n + merged * K, kk, K, BK)
    for step in range(tiles):
        tile = first + step
        if step % PARTS == 0:
            chunk = chunks + tile // PARTS
            put_matrix(cs + chunk * K * V, c, kk, vv, K, V, BK, BV)
            tl.store(ns + chunk * K + column, n, mask=column < most)
        s = tile * TILE + tl.arange(0, TILE)
        kept, write = tl.load(carries + tile * TILE + TILE - 1), tl.load(writes + s)
        k_SK, v_SV = rows(k, k_t, length, kk, TILE, K, BK), rows(v, v_t, length, vv, TILE, V, BV)
        written = k_SK * write[:, None]
        c = tl.dot(tl.trans(written.to(v_SV.dtype)), v_SV, c * kept, input_precision=PRECISION)
        n = n * kept + tl.sum(written, 0)
        k, v, length = k + k_t * TILE, v + v_t * TILE, length - TILE
    put_matrix(last_c + merged * K * V, c, kk, vv, K, V, BK, BV)
    tl.store(last_n + merged * K + column, n, mask=column < most)


@triton.jit
def norm_of(mass, m, eps, NORMALIZE: tl.constexpr):
    """What h is divided by."""
    floor = tl.exp(-m)
    if NORMALIZE:
        floor = tl.maximum(tl.abs(mass), floor) + eps
    return floor


@triton.jit(do_not_specialize=SIZES)
def output_kernel(q, k, v, gates, cs, ns, h, mass_HP, borders, firsts, owners, T, N, G, H, q_b, q_t, q_h,
                  k_b, k_t, k_h, v_b, v_t, v_h, h_b, h_t, h_h, scale, eps, TILE: tl.constexpr, PARTS: tl.constexpr,
                  K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, PACKED: tl.constexpr,
                  NORMALIZE: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """A tile of steps, a block of V: h. Also the signed mass n_t . q_t, [H, G TILE], which the backward needs."""
    tile, vv, head = tl.program_id(0).to(tl.int64), tl.program_id(1) * BV, tl.program_id(2)
    number = owner(tile, owners, N, PACKED)
    row, begin, length, first, tiles = sequence(number, borders, firsts, T, N, PACKED)
    if tile >= first + tiles:
        return
    done = (tile - first) * TILE
    begin, left = begin + done, length - done
    q, k = start(q, row, begin, head, q_b, q_t, q_h), start(k, row, begin, head, k_b, k_t, k_h)
    v, h = start(v, row, begin, head, v_b, v_t, v_h), start(h, row, begin, head, h_b, h_t, h_h)
    own, plane = head * G.to(tl.int64) * TILE, G.to(tl.int64) * H * TILE
    gates, chunk = gates + own, head.to(tl.int64) * (G // PARTS) + tile // PARTS
    c, n, t = cs + chunk * K * V, ns + chunk * K, tile * TILE + tl.arange(0, TILE)
    total, mass = tl.zeros([TILE, BV], tl.float32), tl.zeros([TILE], tl.float32)
    for kk in range(0, K, BK):
        q_TK = rows(q, q_t, left, kk, TILE, K, BK)
        total = tl.dot(q_TK, matrix(c, kk, vv, K, V, BK, BV), total, input_precision=PRECISION)
        mass += tl.sum(q_TK * vector(n, kk, K, BK)[None, :], 1)
    part, gap, carries, writes = (
        tile % PARTS,
        tl.full((), 1.0, tl.float32),
        gates + CARRY * plane,
        gates + WRITE * plane,
    )
    for other in range(tile - part, tile):
        gap *= tl.load(carries + other * TILE + TILE - 1)
    total, mass, gap = total * gap, mass * gap, tl.full((), 1.0, tl.float32)
    for back in range(1, part + 1):
        past = back * TILE
        weight = tl.load(writes + t - past) * gap
        p = scores(q, q_t, left, k - past * k_t, k_t, left + past, TILE, K, BK, PRECISION) * weight[None, :]
        v_SV = rows(v - past * v_t, v_t, left + past, vv, TILE, V, BV)
        total, mass = tl.dot(p.to(v_SV.dtype), v_SV, total, input_precision=PRECISION), mass + tl.sum(p, 1)
        gap *= tl.load(carries + (tile - back) * TILE + TILE - 1)
    carry = tl.load(carries + t)
    total, mass = total * carry[:, None], mass * carry
    p = scores(q, q_t, left, k, k_t, left, TILE, K, BK, PRECISION) * pair_weights(gates, plane, t, t)
    v_SV = rows(v, v_t, left, vv, TILE, V, BV)
    total, mass = tl.dot(p.to(v_SV.dtype), v_SV, total, input_precision=PRECISION), (mass + tl.sum(p, 1)) * scale
    norm = norm_of(mass, tl.load(gates + M_HIGH * plane + t), eps, NORMALIZE)
    put_rows(h, total * (scale / norm)[:, None], h_t, left, vv, TILE, V, BV)
    tl.store(mass_HP + own + t, mass, mask=tl.arange(0, TILE) < tl.where(tl.program_id(1) == 0, TILE, 0))
