"""The mLSTM's backward on a GPU: gradients of the states at the borders of tiles, then of all inputs at once.

A chunk is one tile here, whatever it was in the forward, so that one program has all of D, of the scores S and of dP in
hand and nothing is computed twice. With P = S D, dP = dh V^T / norm + dmass, dS = dP D and E = dS S, the gradients of
the gates are sums of E over exactly the pairs (t, s) that a gate acts on: log i_s on all t, log f_j on s < j <= t.
Nothing is ever the difference of two long sums, which would lose the digits that strong gates need. See `chunkwise` for
the formulas, `triton_forward` for the conventions.

M sequences and heads, merged  T time  H heads  G tiles  K key width  V value width
"""

import triton
import triton.language as tl

from exlstm.ops.mlstm.triton.forward import matrix, norm_of, put_matrix, put_rows, rows, scores, start, vector
from exlstm.ops.mlstm.triton.gates import CARRY, M_HIGH, SIZES, WRITE, owner, pair_weights, sequence


@triton.jit(do_not_specialize=SIZES)
def mass_kernel(h, dh, gates, mass_HP, inverse_HP, dmass_HP, borders, firsts, owners, T, N, G, H, h_b, h_t, h_h,
                g_b, g_t, g_h, eps, TILE: tl.constexpr, V: tl.constexpr, BV: tl.constexpr, PACKED: tl.constexpr,
                NORMALIZE: tl.constexpr):  # fmt: skip
    """Of a tile of steps: 1 / what h was divided by, and the gradient of the mass."""
    tile, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    row, begin, length, first, tiles = sequence(owner(tile, owners, N, PACKED), borders, firsts, T, N, PACKED)
    if tile >= first + tiles:
        return
    done = (tile - first) * TILE
    begin, left = begin + done, length - done
    h, dh = start(h, row, begin, head, h_b, h_t, h_h), start(dh, row, begin, head, g_b, g_t, g_h)
    plane, t = G.to(tl.int64) * H * TILE, (head * G.to(tl.int64) + tile) * TILE + tl.arange(0, TILE)
    m, mass = tl.load(gates + M_HIGH * plane + t), tl.load(mass_HP + t)
    inverse, dmass = 1.0 / norm_of(mass, m, eps, NORMALIZE), tl.zeros([TILE], tl.float32)
    if NORMALIZE:
        for vv in range(0, V, BV):
            h_TV = rows(h, h_t, left, vv, TILE, V, BV).to(tl.float32)
            dmass -= tl.sum(h_TV * rows(dh, g_t, left, vv, TILE, V, BV), 1)
        dmass = tl.where(tl.abs(mass) >= tl.exp(-m), tl.where(mass < 0, -dmass, dmass) * inverse, 0.0)
        dmass = tl.where(mass == 0, 0.0, dmass)
    tl.store(inverse_HP + t, inverse)
    tl.store(dmass_HP + t, dmass)


@triton.jit(do_not_specialize=SIZES)
def state_gradient_kernel(q, dh, gates, inverse_HP, dmass_HP, last_dc, last_dn, dcs, dns, first_dc, first_dn,
                          borders, firsts, T, N, G, H, q_b, q_t, q_h, g_b, g_t, g_h, scale, TILE: tl.constexpr,
                          K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
                          PACKED: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """A block of dC, and of dn, back through a sequence: dcs [H, G, K, V] and dns [H, G, K] after each tile."""
    merged, kk, vv = tl.program_id(0).to(tl.int64), tl.program_id(1) * BK, tl.program_id(2) * BV
    head, plane = merged % H, G.to(tl.int64) * H * TILE
    row, begin, length, first, tiles = sequence(merged // H, borders, firsts, T, N, PACKED)
    begin, left = begin + (tiles - 1) * TILE, length - (tiles - 1) * TILE
    q, dh = start(q, row, begin, head, q_b, q_t, q_h), start(dh, row, begin, head, g_b, g_t, g_h)
    own = head * G * TILE
    carries, inverse_HP, dmass_HP = gates + CARRY * plane + own, inverse_HP + own, dmass_HP + own
    # n is the same in every block of V: one of them writes it
    column, most = kk + tl.arange(0, BK), tl.where(tl.program_id(2) == 0, K, 0)
    dc = matrix(last_dc + merged * K * V, kk, vv, K, V, BK, BV)
    dn = vector(last_dn + merged * K, kk, K, BK)
    for back in range(tiles):
        tile = first + tiles - 1 - back
        here = head * G + tile
        put_matrix(dcs + here * K * V, dc, kk, vv, K, V, BK, BV)
        tl.store(dns + here * K + column, dn, mask=column < most)
        kept, t = tl.load(carries + tile * TILE + TILE - 1), tile * TILE + tl.arange(0, TILE)
        q_TK, dh_TV = rows(q, q_t, left, kk, TILE, K, BK), rows(dh, g_t, left, vv, TILE, V, BV)
        read = q_TK * (tl.load(carries + t) * scale)[:, None]
        dn = dn * kept + tl.sum(read * tl.load(dmass_HP + t)[:, None], 0)
        read = (read * tl.load(inverse_HP + t)[:, None]).to(dh_TV.dtype)
        dc = tl.dot(tl.trans(read), dh_TV, dc * kept, input_precision=PRECISION)
        q, dh, left = q - q_t * TILE, dh - g_t * TILE, left + TILE
    put_matrix(first_dc + merged * K * V, dc, kk, vv, K, V, BK, BV)
    tl.store(first_dn + merged * K + column, dn, mask=column < most)


@triton.jit
def of_pairs(q, q_t, k, k_t, v, v_t, dh, g_t, left, inverse, dmass, d, TILE: tl.constexpr, K: tl.constexpr,
             V: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """P / norm, dS, and what the pairs of this tile say of log i_s and of log f_j."""
    dp, step = tl.zeros([TILE, TILE], tl.float32), tl.arange(0, TILE)
    for vv in range(0, V, BV):
        dh_TV, v_SV = rows(dh, g_t, left, vv, TILE, V, BV), rows(v, v_t, left, vv, TILE, V, BV)
        dp = tl.dot(dh_TV, tl.trans(v_SV), dp, input_precision=PRECISION)
    p = scores(q, q_t, left, k, k_t, left, TILE, K, BK, PRECISION)
    ds = (dp * inverse[:, None] + dmass[:, None]) * d
    e = ds * p
    p = (p * d * inverse[:, None]).to(q.dtype.element_ty)
    # log f_j acts on the pairs with s < j <= t
    forget = tl.sum(tl.where(step[:, None] >= step[None, :], tl.cumsum(e, 1) - e, 0.0), 0)
    return p, ds.to(q.dtype.element_ty), tl.sum(e, 0), forget


@triton.jit
def put_dv(dv, d_t, p, k, k_t, dh, g_t, dcs, left, write, TILE: tl.constexpr, K: tl.constexpr, V: tl.constexpr,
           BK: tl.constexpr, BV: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """dv, through the outputs of this tile and through the state after it."""
    for vv in range(0, V, BV):
        total = tl.zeros([TILE, BV], tl.float32)
        for kk in range(0, K, BK):
            k_SK, dc_KV = rows(k, k_t, left, kk, TILE, K, BK), matrix(dcs, kk, vv, K, V, BK, BV)
            total = tl.dot(k_SK, dc_KV, total, input_precision=PRECISION)
        dh_TV = rows(dh, g_t, left, vv, TILE, V, BV)
        total = tl.dot(tl.trans(p), dh_TV, total * write[:, None], input_precision=PRECISION)
        put_rows(dv, total, d_t, left, vv, TILE, V, BV)


@triton.jit
def of_states(v, v_t, dh, g_t, cs, ns, dcs, dns, left, inverse, dmass, kk, TILE: tl.constexpr, K: tl.constexpr,
              V: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """A block of K: gradients of what is read from the state before and written to the one after; their product."""
    n_K, dn_K = vector(ns, kk, K, BK), vector(dns, kk, K, BK)
    read, written = tl.zeros([TILE, BK], tl.float32), tl.zeros([TILE, BK], tl.float32)
    product = n_K * dn_K
    for vv in range(0, V, BV):
        c_KV, dc_KV = matrix(cs, kk, vv, K, V, BK, BV), matrix(dcs, kk, vv, K, V, BK, BV)
        dh_TV, v_SV = rows(dh, g_t, left, vv, TILE, V, BV), rows(v, v_t, left, vv, TILE, V, BV)
        read = tl.dot(dh_TV, tl.trans(c_KV), read, input_precision=PRECISION)
        written = tl.dot(v_SV, tl.trans(dc_KV), written, input_precision=PRECISION)
        product += tl.sum(c_KV.to(tl.float32) * dc_KV, 1)
    return read * inverse[:, None] + dmass[:, None] * n_K[None, :], written + dn_K[None, :], tl.sum(product, 0)


@triton.jit(do_not_specialize=SIZES)
def gradient_kernel(q, k, v, dh, gates, inverse_HP, dmass_HP, cs, ns, dcs, dns, dq, dk, dv, dlog_i, dlog_f,
                    borders, firsts, owners, T, N, G, H, q_b, q_t, q_h, k_b, k_t, k_h, v_b, v_t, v_h, g_b, g_t, g_h,
                    a_b, a_t, a_h, c_b, c_t, c_h, d_b, d_t, d_h, scale, TILE: tl.constexpr, K: tl.constexpr,
                    V: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, PACKED: tl.constexpr,
                    PRECISION: tl.constexpr):  # fmt: skip
    """A tile of steps: dq, dk, dv, whose strides are a_*, c_* and d_*, and the gradients of the gates, [B, T, H]."""
    tile, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    row, begin, length, first, tiles = sequence(owner(tile, owners, N, PACKED), borders, firsts, T, N, PACKED)
    if tile >= first + tiles:
        return
    done = (tile - first) * TILE
    begin, left = begin + done, length - done
    q, k = start(q, row, begin, head, q_b, q_t, q_h), start(k, row, begin, head, k_b, k_t, k_h)
    v, dh = start(v, row, begin, head, v_b, v_t, v_h), start(dh, row, begin, head, g_b, g_t, g_h)
    dq, dk = start(dq, row, begin, head, a_b, a_t, a_h), start(dk, row, begin, head, c_b, c_t, c_h)
    dv = start(dv, row, begin, head, d_b, d_t, d_h)
    here, own, plane = head * G.to(tl.int64) + tile, head * G.to(tl.int64) * TILE, G.to(tl.int64) * H * TILE
    gates, t = gates + own, tile * TILE + tl.arange(0, TILE)
    inverse, dmass = tl.load(inverse_HP + own + t), tl.load(dmass_HP + own + t)
    carry, write = tl.load(gates + CARRY * plane + t), tl.load(gates + WRITE * plane + t)
    cs, ns, dcs, dns = cs + here * K * V, ns + here * K, dcs + here * K * V, dns + here * K

    d = pair_weights(gates, plane, t, t) * scale
    p, ds, input_gate, forget = of_pairs(
        q, q_t, k, k_t, v, v_t, dh, g_t, left, inverse, dmass, d, TILE, K, V, BK, BV, PRECISION
    )
    put_dv(dv, d_t, p, k, k_t, dh, g_t, dcs, left, write, TILE, K, V, BK, BV, PRECISION)
    by_source, by_target = tl.zeros([TILE], tl.float32), tl.zeros([TILE], tl.float32)
    kept = tl.full((), 0.0, tl.float32)
    for kk in range(0, K, BK):
        read, written, product = of_states(
            v, v_t, dh, g_t, cs, ns, dcs, dns, left, inverse, dmass, kk, TILE, K, V, BK, BV, PRECISION
        )
        q_TK, k_SK = rows(q, q_t, left, kk, TILE, K, BK), rows(k, k_t, left, kk, TILE, K, BK)
        read, written, kept = read * (carry * scale)[:, None], written * write[:, None], kept + product
        by_target += tl.sum(read * q_TK, 1)
        by_source += tl.sum(written * k_SK, 1)
        read = tl.dot(ds, k_SK, read, input_precision=PRECISION)
        put_rows(dq, read, a_t, left, kk, TILE, K, BK)
        written = tl.dot(tl.trans(ds), q_TK, written, input_precision=PRECISION)
        put_rows(dk, written, c_t, left, kk, TILE, K, BK)

    # log f_j also acts on what later steps read from the state before, on what earlier ones write to the state after,
    # and on what the one leaves in the other
    kept *= tl.load(gates + CARRY * plane + tile * TILE + TILE - 1)
    forget += tl.cumsum(by_target, 0, reverse=True) + (tl.cumsum(by_source, 0) - by_source) + kept
    at, there = (row * T + begin + tl.arange(0, TILE)) * H + head, tl.arange(0, TILE) < left
    tl.store(dlog_i + at, input_gate + by_source, mask=there)
    tl.store(dlog_f + at, forget, mask=there)
