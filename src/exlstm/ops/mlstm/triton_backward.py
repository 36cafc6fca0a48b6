"""The mLSTM's backward on a GPU: gradients of the states at the borders of chunks, then of all inputs at once.

With dS = dP D, dP = dnum V^T + dmass and E = dP P, all of one tile, the gradients of the gates are sums of E over
exactly the pairs (t, s) that a gate acts on: log i_s on all t, log f_j on s < j <= t. Sums over whole tiles and over
rows or columns of one are added up here and there; nothing is ever the difference of two long sums, which would lose
the digits that strong gates need. See `chunkwise` for the formulas, `triton_forward` for the conventions.

M merged batch and heads  T time  N chunks  L chunk length  K key width  V value width
"""

import triton
import triton.language as tl

from exlstm.ops.mlstm.triton_forward import matrix, of_head, put_matrix, rows, scores
from exlstm.ops.mlstm.triton_gates import carry_weight, pair_weights, tile_weights, write_weight


@triton.jit
def mass_kernel(h, dh, gates, mass_MP, inverse_MP, dmass_MP, T, H, N, h_b, h_t, h_h, g_b, g_t, g_h, eps,
                L: tl.constexpr, TILE: tl.constexpr, V: tl.constexpr, BV: tl.constexpr, NORMALIZE: tl.constexpr
                ):  # fmt: skip
    """Of a tile of steps: 1 / what h was divided by, and the gradient of the mass."""
    merged, t = tl.program_id(1).to(tl.int64), tl.program_id(0) * TILE + tl.arange(0, TILE)
    plane, own = tl.num_programs(1).to(tl.int64) * N * L, merged * N * L
    h, dh = of_head(h, merged, H, h_b, h_h), of_head(dh, merged, H, g_b, g_h)
    m, mass = tl.load(gates + 3 * plane + own + t), tl.load(mass_MP + own + t)
    norm, dmass = tl.exp(-m), tl.zeros([TILE], tl.float32)
    if NORMALIZE:
        for vv in range(0, V, BV):
            h_TV = rows(h, t, h_t, vv, V, BV, T).to(tl.float32)
            dmass -= tl.sum(h_TV * rows(dh, t, g_t, vv, V, BV, T), 1)
        wins = tl.abs(mass) >= norm
        norm = tl.maximum(tl.abs(mass), norm) + eps
        dmass = tl.where(wins, tl.where(mass < 0, -dmass, dmass) / norm, 0.0)
        dmass = tl.where(mass == 0, 0.0, dmass)
    tl.store(inverse_MP + own + t, 1.0 / norm)
    tl.store(dmass_MP + own + t, dmass)


@triton.jit
def state_gradient_kernel(q, dh, gates, starts, inverse_MP, dmass_MP, cs, ns, last_dc, last_dn, dcs, dns, first_dc,
                          first_dn, kept_MNX, T, H, N, q_b, q_t, q_h, g_b, g_t, g_h, scale, L: tl.constexpr,
                          TILE: tl.constexpr, K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
                          PRECISION: tl.constexpr):  # fmt: skip
    """A tile of dC, and of dn, back through all chunks: dcs and dns are those after each chunk.

    kept: the tile's part of the gradient of what the state before a chunk is worth after it.
    """
    merged, kk, vv = tl.program_id(0).to(tl.int64), tl.program_id(1) * BK, tl.program_id(2) * BV
    part, parts = tl.program_id(1) * tl.num_programs(2) + tl.program_id(2), tl.num_programs(1) * tl.num_programs(2)
    plane, gates, own = tl.num_programs(0).to(tl.int64) * N * L, gates + merged * N * L, merged * N * L
    q, dh = of_head(q, merged, H, q_b, q_h), of_head(dh, merged, H, g_b, g_h)
    column, first = kk + tl.arange(0, BK), tl.program_id(2) == 0
    dc = matrix(last_dc + merged * K * V, kk, vv, K, V, BK, BV)
    dn = tl.load(last_dn + merged * K + column, mask=column < K, other=0.0)
    for back in range(N):
        chunk = N - 1 - back
        here = merged * N + chunk
        put_matrix(dcs + here * K * V, dc, kk, vv, K, V, BK, BV)
        tl.store(dns + here * K + column, dn, mask=(column < K) & first)
        m_start = tl.load(starts + here)
        kept = carry_weight(gates, plane, chunk * L + L - 1, m_start)
        of_n = tl.sum(dn * tl.load(ns + here * K + column, mask=column < K, other=0.0), 0)
        of_c = tl.sum(tl.sum(dc * matrix(cs + here * K * V, kk, vv, K, V, BK, BV), 1), 0)
        tl.store(kept_MNX + here * parts + part, (of_c + tl.where(first, of_n, 0.0)) * kept)
        dc, dn = dc * kept, dn * kept
        for begin in range(chunk * L, chunk * L + L, TILE):
            t = begin + tl.arange(0, TILE)
            q_TK, dh_TV = rows(q, t, q_t, kk, K, BK, T), rows(dh, t, g_t, vv, V, BV, T)
            old = q_TK * (carry_weight(gates, plane, t, m_start) * scale)[:, None]
            dn += tl.sum(old * tl.load(dmass_MP + own + t)[:, None], 0)
            dnum = (dh_TV * tl.load(inverse_MP + own + t)[:, None]).to(q_TK.dtype)
            dc = tl.dot(tl.trans(old).to(q_TK.dtype), dnum, dc, input_precision=PRECISION)
    put_matrix(first_dc + merged * K * V, dc, kk, vv, K, V, BK, BV)
    tl.store(first_dn + merged * K + column, dn, mask=(column < K) & first)


@triton.jit
def pair_gradients(dh, t, g_t, inverse, dmass, v, s, v_t, T, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
                   V: tl.constexpr, BV: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """dP [ROWS, COLUMNS] = dnum v^T + dmass."""
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    for vv in range(0, V, BV):
        v_SV = rows(v, s, v_t, vv, V, BV, T)
        dnum = (rows(dh, t, g_t, vv, V, BV, T) * inverse[:, None]).to(v_SV.dtype)
        total = tl.dot(dnum, tl.trans(v_SV), total, input_precision=PRECISION)
    return total + dmass[:, None]


@triton.jit
def query_kernel(q, k, v, dh, gates, starts, inverse_MP, dmass_MP, cs, ns, dq, forget_MP, carry_MP, between, T, H, N,
                 q_b, q_t, q_h, k_b, k_t, k_h, v_b, v_t, v_h, g_b, g_t, g_h, d_b, d_t, d_h, scale, L: tl.constexpr,
                 TILE: tl.constexpr, K: tl.constexpr, V: tl.constexpr, WIDE: tl.constexpr, BK: tl.constexpr,
                 BV: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """A tile of steps as targets: dq; for log f what pairs of its t say; sums over E of whole tiles: [M, N, I, J]."""
    tile, merged, PARTS = tl.program_id(0), tl.program_id(1).to(tl.int64), L // TILE
    plane, gates, own = tl.num_programs(1).to(tl.int64) * N * L, gates + merged * N * L, merged * N * L
    chunk, part = tile // PARTS, tile % PARTS
    q, k = of_head(q, merged, H, q_b, q_h), of_head(k, merged, H, k_b, k_h)
    v, dh = of_head(v, merged, H, v_b, v_h), of_head(dh, merged, H, g_b, g_h)
    here, t, column = merged * N + chunk, tile * TILE + tl.arange(0, TILE), tl.arange(0, WIDE)
    inverse, dmass = tl.load(inverse_MP + own + t), tl.load(dmass_MP + own + t)
    dold = dmass[:, None] * tl.load(ns + here * K + column, mask=column < K, other=0.0)[None, :]
    for vv in range(0, V, BV):
        c_KV, dh_TV = matrix(cs + here * K * V, 0, vv, K, V, WIDE, BV), rows(dh, t, g_t, vv, V, BV, T)
        dnum = (dh_TV * inverse[:, None]).to(dh_TV.dtype)
        dold = tl.dot(dnum, tl.trans(c_KV).to(dnum.dtype), dold, input_precision=PRECISION)
    carry = carry_weight(gates, plane, t, tl.load(starts + here))
    q_TK = rows(q, t, q_t, 0, K, WIDE, T)
    tl.store(carry_MP + own + t, tl.sum(dold * q_TK, 1) * carry * scale)
    total, by_row = dold * carry[:, None], tl.zeros([TILE], tl.float32)
    for other in range(part):
        s = (chunk * PARTS + other) * TILE + tl.arange(0, TILE)
        row, weight = tile_weights(gates, plane, t, s, (chunk * PARTS + other + 1) * TILE - 1)
        ds = pair_gradients(dh, t, g_t, inverse, dmass, v, s, v_t, T, TILE, TILE, V, BV, PRECISION)
        ds = ds * row[:, None] * weight[None, :]
        pairs = tl.sum(ds * scores(q, t, q_t, k, s, k_t, T, TILE, TILE, K, BK, PRECISION), 1) * scale
        by_row += pairs
        tl.store(between + (here * PARTS + part) * PARTS + other, tl.sum(pairs, 0))
        k_SK = rows(k, s, k_t, 0, K, WIDE, T)
        total = tl.dot(ds.to(k_SK.dtype), k_SK, total, input_precision=PRECISION)
    ds = pair_gradients(dh, t, g_t, inverse, dmass, v, t, v_t, T, TILE, TILE, V, BV, PRECISION)
    ds = ds * pair_weights(gates, plane, t, t)
    e = ds * scores(q, t, q_t, k, t, k_t, T, TILE, TILE, K, BK, PRECISION) * scale
    k_SK = rows(k, t, k_t, 0, K, WIDE, T)
    total = tl.dot(ds.to(k_SK.dtype), k_SK, total, input_precision=PRECISION) * scale
    # log f_j acts on the pairs of this tile with s < j <= t, and for every earlier tile on those with t >= j
    within = tl.where(t[:, None] >= t[None, :], tl.cumsum(e, 1) - e, 0.0)
    forget = tl.sum(within, 0) + tl.cumsum(by_row, 0, reverse=True)
    tl.store(forget_MP + own + t, forget)
    at = of_head(dq, merged, H, d_b, d_h) + t.to(tl.int64)[:, None] * d_t + column[None, :]
    tl.store(at, total.to(dq.dtype.element_ty), mask=(t < T)[:, None] & (column < K)[None, :])


@triton.jit
def key_kernel(q, k, v, dh, gates, inverse_MP, dmass_MP, dcs, dns, dk, input_MP, forget_MP, after, T, H, N, q_b, q_t,
               q_h, k_b, k_t, k_h, v_b, v_t, v_h, g_b, g_t, g_h, d_b, d_t, d_h, scale, L: tl.constexpr,
               TILE: tl.constexpr, K: tl.constexpr, V: tl.constexpr, WIDE: tl.constexpr, BK: tl.constexpr,
               BV: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """A tile of steps as sources: dk, the gradient of log i; for log f what pairs of its s say with later tiles."""
    tile, merged, PARTS = tl.program_id(0), tl.program_id(1).to(tl.int64), L // TILE
    plane, gates, own = tl.num_programs(1).to(tl.int64) * N * L, gates + merged * N * L, merged * N * L
    chunk, part = tile // PARTS, tile % PARTS
    q, k = of_head(q, merged, H, q_b, q_h), of_head(k, merged, H, k_b, k_h)
    v, dh = of_head(v, merged, H, v_b, v_h), of_head(dh, merged, H, g_b, g_h)
    here, s, column = merged * N + chunk, tile * TILE + tl.arange(0, TILE), tl.arange(0, WIDE)
    dworth = tl.zeros([TILE, WIDE], tl.float32)
    dworth += tl.load(dns + here * K + column, mask=column < K, other=0.0)[None, :]
    for vv in range(0, V, BV):
        dc_KV, v_SV = matrix(dcs + here * K * V, 0, vv, K, V, WIDE, BV), rows(v, s, v_t, vv, V, BV, T)
        dworth = tl.dot(v_SV, tl.trans(dc_KV).to(v_SV.dtype), dworth, input_precision=PRECISION)
    write = write_weight(gates, plane, s, chunk * L + L - 1)
    by_column = tl.sum(dworth * rows(k, s, k_t, 0, K, WIDE, T), 1) * write
    tl.store(after + here * PARTS + part, tl.sum(by_column, 0))
    total = dworth * write[:, None]
    for other in range(part + 1, PARTS):
        t = (chunk * PARTS + other) * TILE + tl.arange(0, TILE)
        inverse, dmass = tl.load(inverse_MP + own + t), tl.load(dmass_MP + own + t)
        row, weight = tile_weights(gates, plane, t, s, (tile + 1) * TILE - 1)
        ds = pair_gradients(dh, t, g_t, inverse, dmass, v, s, v_t, T, TILE, TILE, V, BV, PRECISION)
        ds = ds * row[:, None] * (weight * scale)[None, :]
        by_column += tl.sum(ds * scores(q, t, q_t, k, s, k_t, T, TILE, TILE, K, BK, PRECISION), 0)
        q_TK = rows(q, t, q_t, 0, K, WIDE, T)
        total = tl.dot(tl.trans(ds).to(q_TK.dtype), q_TK, total, input_precision=PRECISION)
    inverse, dmass = tl.load(inverse_MP + own + s), tl.load(dmass_MP + own + s)
    ds = pair_gradients(dh, s, g_t, inverse, dmass, v, s, v_t, T, TILE, TILE, V, BV, PRECISION)
    ds = ds * (pair_weights(gates, plane, s, s) * scale)
    q_TK = rows(q, s, q_t, 0, K, WIDE, T)
    total = tl.dot(tl.trans(ds).to(q_TK.dtype), q_TK, total, input_precision=PRECISION)
    inside = tl.sum(ds * scores(q, s, q_t, k, s, k_t, T, TILE, TILE, K, BK, PRECISION), 0)
    tl.store(input_MP + own + s, by_column + inside)
    tl.store(forget_MP + own + s, tl.load(forget_MP + own + s) + tl.cumsum(by_column, 0) - by_column)
    at = of_head(dk, merged, H, d_b, d_h) + s.to(tl.int64)[:, None] * d_t + column[None, :]
    tl.store(at, total.to(dk.dtype.element_ty), mask=(s < T)[:, None] & (column < K)[None, :])


@triton.jit
def value_kernel(q, k, dh, gates, inverse_MP, dcs, dv, T, H, N, q_b, q_t, q_h, k_b, k_t, k_h, g_b, g_t, g_h, d_b, d_t,
                 d_h, scale, L: tl.constexpr, TILE: tl.constexpr, K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr,
                 BV: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """A tile of steps as sources, a part of V: dv."""
    tile, vv, merged = tl.program_id(0), tl.program_id(1) * BV, tl.program_id(2).to(tl.int64)
    plane, gates, own = tl.num_programs(2).to(tl.int64) * N * L, gates + merged * N * L, merged * N * L
    chunk, PARTS = tile * TILE // L, L // TILE
    q, k, dh = of_head(q, merged, H, q_b, q_h), of_head(k, merged, H, k_b, k_h), of_head(dh, merged, H, g_b, g_h)
    here, s = merged * N + chunk, tile * TILE + tl.arange(0, TILE)
    total = tl.zeros([TILE, BV], tl.float32)
    for kk in range(0, K, BK):
        k_SK = rows(k, s, k_t, kk, K, BK, T)
        dc_KV = matrix(dcs + here * K * V, kk, vv, K, V, BK, BV).to(k_SK.dtype)
        total = tl.dot(k_SK, dc_KV, total, input_precision=PRECISION)
    total = total * write_weight(gates, plane, s, chunk * L + L - 1)[:, None]
    for other in range(tile % PARTS + 1, PARTS):
        t = (chunk * PARTS + other) * TILE + tl.arange(0, TILE)
        row, weight = tile_weights(gates, plane, t, s, (tile + 1) * TILE - 1)
        p = scores(q, t, q_t, k, s, k_t, T, TILE, TILE, K, BK, PRECISION) * row[:, None] * (weight * scale)[None, :]
        dh_TV = rows(dh, t, g_t, vv, V, BV, T)
        dnum = (dh_TV * tl.load(inverse_MP + own + t)[:, None]).to(dh_TV.dtype)
        total = tl.dot(tl.trans(p).to(dh_TV.dtype), dnum, total, input_precision=PRECISION)
    p = scores(q, s, q_t, k, s, k_t, T, TILE, TILE, K, BK, PRECISION) * (pair_weights(gates, plane, s, s) * scale)
    dh_TV = rows(dh, s, g_t, vv, V, BV, T)
    dnum = (dh_TV * tl.load(inverse_MP + own + s)[:, None]).to(dh_TV.dtype)
    total = tl.dot(tl.trans(p).to(dh_TV.dtype), dnum, total, input_precision=PRECISION)
    column = vv + tl.arange(0, BV)
    at = of_head(dv, merged, H, d_b, d_h) + s.to(tl.int64)[:, None] * d_t + column[None, :]
    tl.store(at, total.to(dv.dtype.element_ty), mask=(s < T)[:, None] & (column < V)[None, :])
