# mypy: ignore-errors
"""The mLSTM's backward on a GPU: gradients of the states at the borders of tiles, then of all inputs at once.

A chunk is one tile here, whatever it was in the forward, so that one program has all of D, of the scores S and of dP in
hand and nothing is computed twice. With P = S D, dP = dh V^T / norm + dmass, dS = dP D and E = dS S, the gradients of
the gates are sums of E over exactly the pairs (t, s) that a gate acts on: log i_s on all t, log f_j on s < j <= t.
Nothing is ever the difference of two long sums, which would lose the digits that strong gates need. See `chunkwise` for
the formulas, `forward` for the conventions.

M sequences and heads, merged  T time  H heads  G tiles  K key width  V value width
"""

import triton
import triton.language as tl

from exlstm.ops.mlstm.triton.forward import divisor, scores
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


@triton.jit(do_not_specialize=SIZES)
def mass_kernel(h, dh, gates, mass_HP, inverse_HP, dmass_HP, sequences, T, N, G, H, eps, TILE: tl.constexpr,
                V: tl.constexpr, BV: tl.constexpr, PACKED: tl.constexpr, NORMALIZE: tl.constexpr):  # fmt: skip
    """A tile of steps: 1 / what h was divided by, and the gradient of the mass."""
    tile, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    here = tile_at(tile, sequences, T, N, TILE, PACKED)
    if tile >= here.end:
        return
    h, dh = steps_at(h, here.row, here.begin, head), steps_at(dh, here.row, here.begin, head)
    gates = Gates(gates, G.to(tl.int64) * H * TILE)
    t = (head * G.to(tl.int64) + tile) * TILE + tl.arange(0, TILE)
    m, mass = load_plane(gates, M_HIGH, t), tl.load(mass_HP + t)
    inverse, dmass = 1.0 / divisor(mass, m, eps, NORMALIZE), tl.zeros([TILE], tl.float32)
    if NORMALIZE:
        for vv in range(0, V, BV):
            h_TV = load_steps(h, here.left, vv, TILE, V, BV).to(tl.float32)
            dmass -= tl.sum(h_TV * load_steps(dh, here.left, vv, TILE, V, BV), 1)
        dmass = tl.where(tl.abs(mass) >= tl.exp(-m), tl.where(mass < 0, -dmass, dmass) * inverse, 0.0)
        dmass = tl.where(mass == 0, 0.0, dmass)
    tl.store(inverse_HP + t, inverse)
    tl.store(dmass_HP + t, dmass)


@triton.jit(do_not_specialize=SIZES)
def state_gradient_kernel(q, dh, gates, inverse_HP, dmass_HP, last, tiles_after, first, sequences, T, N, G, H, scale,
                          const):  # fmt: skip
    """A block of dC, and of dn, back through a sequence, from that of the last state to that of the first.

    last, first: `Memory` of [M]. tiles_after: after each tile, of [H, G].
    """
    merged, kk, vv = tl.program_id(0).to(tl.int64), tl.program_id(1) * const.BK, tl.program_id(2) * const.BV
    head = merged % H
    TILE: tl.constexpr = const.TILE
    K: tl.constexpr = const.K
    V: tl.constexpr = const.V
    row, begin, length, first_tile, tiles = sequence_at(merged // H, sequences, T, N, const.PACKED)
    begin, left = begin + (tiles - 1) * TILE, length - (tiles - 1) * TILE
    q, dh = steps_at(q, row, begin, head), steps_at(dh, row, begin, head)
    own = head * G * TILE
    gates, inverse_HP, dmass_HP = Gates(gates + own, G.to(tl.int64) * H * TILE), inverse_HP + own, dmass_HP + own
    # n is the same in every block of V: one of them writes it
    column, most = kk + tl.arange(0, const.BK), tl.where(tl.program_id(2) == 0, K, 0)
    dc = load_matrix(last.c + merged * K * V, kk, vv, K, V, const.BK, const.BV)
    dn = load_vector(last.n + merged * K, kk, K, const.BK)
    for back in range(tiles):
        tile = first_tile + tiles - 1 - back
        at = head * G + tile
        store_matrix(tiles_after.c + at * K * V, dc, kk, vv, K, V, const.BK, const.BV)
        tl.store(tiles_after.n + at * K + column, dn, mask=column < most)
        decay, t = load_plane(gates, CARRY, tile * TILE + TILE - 1), tile * TILE + tl.arange(0, TILE)
        q_TK, dh_TV = load_steps(q, left, kk, TILE, K, const.BK), load_steps(dh, left, vv, TILE, V, const.BV)
        read = q_TK * (load_plane(gates, CARRY, t) * scale)[:, None]
        dn = dn * decay + tl.sum(read * tl.load(dmass_HP + t)[:, None], 0)
        read = (read * tl.load(inverse_HP + t)[:, None]).to(dh_TV.dtype)
        dc = tl.dot(tl.trans(read), dh_TV, dc * decay, input_precision=const.PRECISION)
        q, dh, left = moved(q, -TILE), moved(dh, -TILE), left + TILE
    store_matrix(first.c + merged * K * V, dc, kk, vv, K, V, const.BK, const.BV)
    tl.store(first.n + merged * K + column, dn, mask=column < most)


@triton.jit
def pair_gradients(q, k, v, dh, left, inverse, dmass, d, const):
    """P / norm, dS, and the gradients of log i_s and log f_j through the pairs of this tile."""
    TILE: tl.constexpr = const.TILE
    V: tl.constexpr = const.V
    BV: tl.constexpr = const.BV
    dp, step = tl.zeros([TILE, TILE], tl.float32), tl.arange(0, TILE)
    for vv in range(0, V, BV):
        dh_TV, v_SV = load_steps(dh, left, vv, TILE, V, BV), load_steps(v, left, vv, TILE, V, BV)
        dp = tl.dot(dh_TV, tl.trans(v_SV), dp, input_precision=const.PRECISION)
    p = scores(q, k, left, left, const)
    ds = (dp * inverse[:, None] + dmass[:, None]) * d
    e = ds * p
    p = (p * d * inverse[:, None]).to(q.at.dtype.element_ty)
    # log f_j acts on the pairs with s < j <= t
    forget = tl.sum(tl.where(step[:, None] >= step[None, :], tl.cumsum(e, 1) - e, 0.0), 0)
    return p, ds.to(q.at.dtype.element_ty), tl.sum(e, 0), forget


@triton.jit
def store_dv(dv, p, k, dh, dc, left, write, const):
    """dv, through the outputs of this tile and through the state after it, whose gradient is dc."""
    TILE: tl.constexpr = const.TILE
    K: tl.constexpr = const.K
    V: tl.constexpr = const.V
    BK: tl.constexpr = const.BK
    BV: tl.constexpr = const.BV
    for vv in range(0, V, BV):
        total = tl.zeros([TILE, BV], tl.float32)
        for kk in range(0, K, BK):
            k_SK, dc_KV = load_steps(k, left, kk, TILE, K, BK), load_matrix(dc, kk, vv, K, V, BK, BV)
            total = tl.dot(k_SK, dc_KV, total, input_precision=const.PRECISION)
        dh_TV = load_steps(dh, left, vv, TILE, V, BV)
        total = tl.dot(tl.trans(p), dh_TV, total * write[:, None], input_precision=const.PRECISION)
        store_steps(dv, total, left, vv, TILE, V, BV)


@triton.jit
def state_gradients(v, dh, before, after, left, inverse, dmass, kk, const):
    """A block of K: gradients of what is read from the state before and written to the one after; their product.

    before: the state before the tile, after: the gradient of the state after it.
    """
    TILE: tl.constexpr = const.TILE
    K: tl.constexpr = const.K
    V: tl.constexpr = const.V
    BK: tl.constexpr = const.BK
    BV: tl.constexpr = const.BV
    n_K, dn_K = load_vector(before.n, kk, K, BK), load_vector(after.n, kk, K, BK)
    read, written = tl.zeros([TILE, BK], tl.float32), tl.zeros([TILE, BK], tl.float32)
    product = n_K * dn_K
    for vv in range(0, V, BV):
        c_KV, dc_KV = load_matrix(before.c, kk, vv, K, V, BK, BV), load_matrix(after.c, kk, vv, K, V, BK, BV)
        dh_TV, v_SV = load_steps(dh, left, vv, TILE, V, BV), load_steps(v, left, vv, TILE, V, BV)
        read = tl.dot(dh_TV, tl.trans(c_KV), read, input_precision=const.PRECISION)
        written = tl.dot(v_SV, tl.trans(dc_KV), written, input_precision=const.PRECISION)
        product += tl.sum(c_KV.to(tl.float32) * dc_KV, 1)
    return read * inverse[:, None] + dmass[:, None] * n_K[None, :], written + dn_K[None, :], tl.sum(product, 0)


@triton.jit(do_not_specialize=SIZES)
def gradient_kernel(q, k, v, dh, gates, inverse_HP, dmass_HP, before, after, dq, dk, dv, dgates, sequences, T, N, G, H,
                    scale, const):  # fmt: skip
    """A tile of steps: dq, dk, dv and dgates, which are those of log i and log f, [B, T, H].

    before: states before each tile, after: gradients of those after each tile; `Memory` of [H, G].
    """
    tile, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    TILE: tl.constexpr = const.TILE
    K: tl.constexpr = const.K
    V: tl.constexpr = const.V
    BK: tl.constexpr = const.BK
    PRECISION: tl.constexpr = const.PRECISION
    here = tile_at(tile, sequences, T, N, TILE, const.PACKED)
    if tile >= here.end:
        return
    row, begin, left = here.row, here.begin, here.left
    q, k = steps_at(q, row, begin, head), steps_at(k, row, begin, head)
    v, dh = steps_at(v, row, begin, head), steps_at(dh, row, begin, head)
    dq, dk, dv = steps_at(dq, row, begin, head), steps_at(dk, row, begin, head), steps_at(dv, row, begin, head)
    at, own = head * G.to(tl.int64) + tile, head * G.to(tl.int64) * TILE
    gates, t = Gates(gates + own, G.to(tl.int64) * H * TILE), tile * TILE + tl.arange(0, TILE)
    inverse, dmass = tl.load(inverse_HP + own + t), tl.load(dmass_HP + own + t)
    carry, write = load_plane(gates, CARRY, t), load_plane(gates, WRITE, t)
    before = Memory(before.c + at * K * V, before.n + at * K)
    after = Memory(after.c + at * K * V, after.n + at * K)

    d = pair_weights(gates, t) * scale
    p, ds, input_gate, forget = pair_gradients(q, k, v, dh, left, inverse, dmass, d, const)
    store_dv(dv, p, k, dh, after.c, left, write, const)
    by_source, by_target = tl.zeros([TILE], tl.float32), tl.zeros([TILE], tl.float32)
    decayed = tl.full((), 0.0, tl.float32)
    for kk in range(0, K, BK):
        read, written, product = state_gradients(v, dh, before, after, left, inverse, dmass, kk, const)
        q_TK, k_SK = load_steps(q, left, kk, TILE, K, BK), load_steps(k, left, kk, TILE, K, BK)
        read, written, decayed = read * (carry * scale)[:, None], written * write[:, None], decayed + product
        by_target += tl.sum(read * q_TK, 1)
        by_source += tl.sum(written * k_SK, 1)
        read = tl.dot(ds, k_SK, read, input_precision=PRECISION)
        store_steps(dq, read, left, kk, TILE, K, BK)
        written = tl.dot(tl.trans(ds), q_TK, written, input_precision=PRECISION)
        store_steps(dk, written, left, kk, TILE, K, BK)

    # log f_j also acts on what later steps read from the state before, on what earlier ones write to the state after,
    # and on what the one leaves in the other
    decayed *= load_plane(gates, CARRY, tile * TILE + TILE - 1)
    forget += tl.cumsum(by_target, 0, reverse=True) + (tl.cumsum(by_source, 0) - by_source) + decayed
    place, there = (row * T + begin + tl.arange(0, TILE)) * H + head, tl.arange(0, TILE) < left
    dlog_i, dlog_f = dgates
    tl.store(dlog_i + place, input_gate + by_source, mask=there)
    tl.store(dlog_f + place, forget, mask=there)
