"""The mLSTM's forward on a GPU: states at the borders of chunks, then all outputs at once.

q, k, v and h are [B, T, H, width] in whatever strides, the last axis without gaps; *_b and *_t and *_h are strides.
What the gates say comes from `triton_gates`. Products are summed in float32; PRECISION is how float32 inputs are
multiplied. K and V need not be powers of two; tiles of BK and BV are masked.

M merged batch and heads  T time  N chunks  L chunk length  K key width  V value width
"""

import triton
import triton.language as tl

from exlstm.ops.mlstm.triton_gates import carry_weight, pair_weights, target, tile_weights, write_weight


@triton.jit
def of_head(x, merged, H, stride_b, stride_h):
    """Where the steps of a row and head begin."""
    return x + merged // H * stride_b + merged % H * stride_h


@triton.jit
def rows(x, rows_T, stride_t, first, WIDTH: tl.constexpr, BLOCK: tl.constexpr, T):
    """Rows of a tensor, numbers `first` to first + BLOCK - 1 of each; zeros beyond its end and beyond T."""
    column = first + tl.arange(0, BLOCK)
    at = x + rows_T.to(tl.int64)[:, None] * stride_t + column[None, :]
    return tl.load(at, mask=(rows_T < T)[:, None] & (column < WIDTH)[None, :], other=0.0)


@triton.jit
def matrix(x, first_k, first_v, K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr):
    """A tile of a contiguous [K, V] matrix, zeros beyond its end."""
    k, v = first_k + tl.arange(0, BK), first_v + tl.arange(0, BV)
    return tl.load(x + k[:, None] * V + v[None, :], mask=(k < K)[:, None] & (v < V)[None, :], other=0.0)


@triton.jit
def put_matrix(x, value, first_k, first_v, K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr):
    """The way back."""
    k, v = first_k + tl.arange(0, BK), first_v + tl.arange(0, BV)
    tl.store(x + k[:, None] * V + v[None, :], value, mask=(k < K)[:, None] & (v < V)[None, :])


@triton.jit
def scores(q, t, q_t, k, s, k_t, T, ROWS: tl.constexpr, COLUMNS: tl.constexpr, K: tl.constexpr, BK: tl.constexpr,
           PRECISION: tl.constexpr):  # fmt: skip
    """q k^T of some steps: [ROWS, COLUMNS], not scaled."""
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    for first in range(0, K, BK):
        q_TK, k_SK = rows(q, t, q_t, first, K, BK, T), rows(k, s, k_t, first, K, BK, T)
        total = tl.dot(q_TK, tl.trans(k_SK), total, input_precision=PRECISION)
    return total


@triton.jit
def state_kernel(k, v, gates, starts, first_c, first_n, cs, ns, last_c, last_n, T, H, N, k_b, k_t, k_h, v_b, v_t, v_h,
                 L: tl.constexpr, TILE: tl.constexpr, K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr,
                 BV: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """A tile of C, and of n, through all chunks: cs [M, N, K, V] and ns [M, N, K] are those before each chunk."""
    merged, kk, vv = tl.program_id(0).to(tl.int64), tl.program_id(1) * BK, tl.program_id(2) * BV
    plane, gates = tl.num_programs(0).to(tl.int64) * N * L, gates + merged * N * L
    k, v = of_head(k, merged, H, k_b, k_h), of_head(v, merged, H, v_b, v_h)
    column, first = kk + tl.arange(0, BK), tl.program_id(2) == 0
    c = matrix(first_c + merged * K * V, kk, vv, K, V, BK, BV)
    n = tl.load(first_n + merged * K + column, mask=column < K, other=0.0)
    for chunk in range(N):
        put_matrix(cs + (merged * N + chunk) * K * V, c, kk, vv, K, V, BK, BV)
        tl.store(ns + (merged * N + chunk) * K + column, n, mask=(column < K) & first)
        end = chunk * L + L - 1
        kept = carry_weight(gates, plane, end, tl.load(starts + merged * N + chunk))
        c, n = c * kept, n * kept
        for begin in range(chunk * L, chunk * L + L, TILE):
            s = begin + tl.arange(0, TILE)
            k_SK, v_SV = rows(k, s, k_t, kk, K, BK, T), rows(v, s, v_t, vv, V, BV, T)
            worth = k_SK * write_weight(gates, plane, s, end)[:, None]
            c = tl.dot(tl.trans(worth).to(v_SV.dtype), v_SV, c, input_precision=PRECISION)
            n += tl.sum(worth, 0)
    put_matrix(last_c + merged * K * V, c, kk, vv, K, V, BK, BV)
    tl.store(last_n + merged * K + column, n, mask=(column < K) & first)


@triton.jit
def norm_of(mass, m, eps, NORMALIZE: tl.constexpr):
    """What h is divided by."""
    floor = tl.exp(-m)
    if NORMALIZE:
        floor = tl.maximum(tl.abs(mass), floor) + eps
    return floor


@triton.jit
def output_kernel(q, k, v, gates, starts, cs, ns, h, mass_MP, T, H, N, q_b, q_t, q_h, k_b, k_t, k_h, v_b, v_t, v_h,
                  h_b, h_t, h_h, scale, eps, L: tl.constexpr, TILE: tl.constexpr, K: tl.constexpr, V: tl.constexpr,
                  BK: tl.constexpr, BV: tl.constexpr, NORMALIZE: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """A tile of steps, a part of V: h. Also the signed mass n_t . q_t, [M, T padded], which the backward needs."""
    tile, vv, merged = tl.program_id(0), tl.program_id(1) * BV, tl.program_id(2).to(tl.int64)
    plane, gates, own = tl.num_programs(2).to(tl.int64) * N * L, gates + merged * N * L, merged * N * L
    q, k = of_head(q, merged, H, q_b, q_h), of_head(k, merged, H, k_b, k_h)
    v, h = of_head(v, merged, H, v_b, v_h), of_head(h, merged, H, h_b, h_h)
    chunk, t = tile * TILE // L, tile * TILE + tl.arange(0, TILE)
    c, n = cs + (merged * N + chunk) * K * V, ns + (merged * N + chunk) * K
    total, mass = tl.zeros([TILE, BV], tl.float32), tl.zeros([TILE], tl.float32)
    for kk in range(0, K, BK):
        q_TK, column = rows(q, t, q_t, kk, K, BK, T), kk + tl.arange(0, BK)
        total = tl.dot(q_TK, matrix(c, kk, vv, K, V, BK, BV).to(q_TK.dtype), total, input_precision=PRECISION)
        mass += tl.sum(q_TK * tl.load(n + column, mask=column < K, other=0.0)[None, :], 1)
    carry = carry_weight(gates, plane, t, tl.load(starts + merged * N + chunk)) * scale
    total, mass = total * carry[:, None], mass * carry
    for first in range(chunk * L, tile * TILE, TILE):
        s = first + tl.arange(0, TILE)
        row, column = tile_weights(gates, plane, t, s, first + TILE - 1)
        p = scores(q, t, q_t, k, s, k_t, T, TILE, TILE, K, BK, PRECISION) * (row * scale)[:, None] * column[None, :]
        v_SV = rows(v, s, v_t, vv, V, BV, T)
        total, mass = tl.dot(p.to(v_SV.dtype), v_SV, total, input_precision=PRECISION), mass + tl.sum(p, 1)
    p = scores(q, t, q_t, k, t, k_t, T, TILE, TILE, K, BK, PRECISION) * (pair_weights(gates, plane, t, t) * scale)
    v_SV = rows(v, t, v_t, vv, V, BV, T)
    total, mass = tl.dot(p.to(v_SV.dtype), v_SV, total, input_precision=PRECISION), mass + tl.sum(p, 1)
    _, _, m, _ = target(gates, plane, t)
    value = total / norm_of(mass, m, eps, NORMALIZE)[:, None]
    column = vv + tl.arange(0, BV)
    at = h + t.to(tl.int64)[:, None] * h_t + column[None, :]
    tl.store(at, value.to(h.dtype.element_ty), mask=(t < T)[:, None] & (column < V)[None, :])
    tl.store(mass_MP + own + t, mass, mask=tl.program_id(1) == 0)
