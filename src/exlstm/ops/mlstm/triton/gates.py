# mypy: ignore-errors
"""Scans of the mLSTM's gates on a GPU, before any matrix is touched: the stabilizer, decays inside and between tiles.

The stabilizer m_t = max(log f_t + m_{t-1}, log i_t) depends on the gates alone. With it known, every weight

    D_ts = exp(F_t - F_s + log i_s - m_t)  for s <= t ,  F_t = sum of log f up to t

is at most one, and no kernel keeps a running maximum. Time is cut into tiles, and F counts from the beginning of its
own. With the m before a tile, m_b, and the one at its end, m_e, two numbers describe a step beyond its tile:

    carry_t = exp(F_t + m_b - m_t)             weight of the state before the tile at t
    write_s = exp(F_e - F_s + log i_s - m_e)   weight of step s in the state after the tile

Both are at most one. The carry of a tile's last step is the decay of the state across the whole tile, and between
two tiles D is write_s, times that decay of every tile in between, times carry_t: exponentials of pairs are taken on the
diagonal only. Sums of strong gates cancel: they are taken in float64 and stored as two float32, F = high + low, in
units of log 2, for exp2 is what a GPU has; m is stored as two as well, for the pairs of the diagonal.

Tiles belong to sequences: rows of a batch, or pieces of one packed row. Every sequence has whole tiles. Behind those of
the last packed sequence the grid may have more, which belong to none: their programs return.

B batch  T time  H heads  S sequences  G tiles of all sequences  N tiles of a sequence  M sequences and heads, merged
"""

import triton
import triton.language as tl

from exlstm.ops.mlstm.triton.tiles import SIZES, Gates, sequence_at, tile_at

# planes of the gates, each [H, G, TILE]: F in units of log 2, log i in nats, m (over the tile alone until `unit_kernel`
# has run), resets of the tile up to the step, carry and write
F_HIGH, F_LOW = tl.constexpr(0), tl.constexpr(1)
LOG_I = tl.constexpr(2)
M_HIGH, M_LOW = tl.constexpr(3), tl.constexpr(4)
NUM_RESETS = tl.constexpr(5)
CARRY, WRITE = tl.constexpr(6), tl.constexpr(7)
NUM_PLANES = 8

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
MIN_M = tl.constexpr(-1e30)  # stands for -inf, below every m of a gate


@triton.jit
def load_plane(gates, plane, t):
    """A plane at steps t."""
    return tl.load(gates.at + plane * gates.plane + t)


@triton.jit
def load_pair(gates, high, low, t):
    """The sum of two planes, in float64."""
    return load_plane(gates, high, t).to(tl.float64) + load_plane(gates, low, t).to(tl.float64)


@triton.jit
def store_plane(gates, plane, t, x):
    """The inverse of `load_plane`."""
    tl.store(gates.at + plane * gates.plane + t, x)


@triton.jit
def store_m(gates, t, m):
    """m as two float32; -inf, where nothing has been written yet, becomes a number below all others."""
    m = tl.maximum(m, MIN_M)
    high = m.to(tl.float32)
    store_plane(gates, M_HIGH, t, high)
    store_plane(gates, M_LOW, t, (m - high.to(tl.float64)).to(tl.float32))


@triton.jit
def compose(a0, b0, a1, b1):
    """The map x -> max(a + x, b) of index 0, followed by that of index 1."""
    return a0 + a1, tl.maximum(b0 + a1, b1)


@triton.jit
def last_of(x, TILE: tl.constexpr):
    """The last number of a tile."""
    return tl.sum(tl.where(tl.arange(0, TILE) == TILE - 1, x, 0.0), 0)


@triton.jit(do_not_specialize=SIZES)
def sum_kernel(log_i, log_f, reset, gates, maps, sequences, T, N, G, H, TILE: tl.constexpr, PACKED: tl.constexpr,
               RESETS: tl.constexpr):  # fmt: skip
    """A tile of a head: planes but carry and write, m as if the state before were empty; the tile's map of m.

    log_i, log_f: [B, T, H], reset: [B, T]. maps: [2, H, G], m after a tile is max(maps[0] + m before, maps[1]).
    """
    tile, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    here, step = tile_at(tile, sequences, T, N, TILE, PACKED), tl.arange(0, TILE)
    there, inside = here.row * T + here.begin + step, step < here.left
    f = tl.load(log_f + there * H + head, mask=inside, other=0.0).to(tl.float64)
    i = tl.load(log_i + there * H + head, mask=inside, other=float("-inf")).to(tl.float64)
    # a gate of -inf, or a reset by hand with a huge number, must not swallow the digits of its neighbors
    f = tl.maximum(f, -1e5)
    decay, enter = f, i
    resets = tl.zeros([TILE], tl.int32)
    if RESETS:
        new = tl.load(reset + there, mask=inside, other=0).to(tl.int32)
        resets = tl.cumsum(new, 0)
        decay = tl.where(new > 0, float("-inf"), f)
        enter = tl.where(new > 0, tl.maximum(f, i), i)
    total = tl.cumsum(f * LOG2E, 0)
    high = total.to(tl.float32)
    a, b = tl.associative_scan((decay, enter), 0, compose)
    gates, t = Gates(gates, G.to(tl.int64) * H * TILE), (head * G.to(tl.int64) + tile) * TILE + step
    store_plane(gates, F_HIGH, t, high)
    store_plane(gates, F_LOW, t, (total - high.to(tl.float64)).to(tl.float32))
    store_plane(gates, LOG_I, t, i.to(tl.float32))
    store_m(gates, t, b)
    store_plane(gates, NUM_RESETS, t, resets.to(tl.float32))
    at = maps + head * G + tile
    tl.store(at, last_of(a, TILE))
    tl.store(at + G.to(tl.int64) * H, last_of(b, TILE))


@triton.jit(do_not_specialize=SIZES)
def unit_scan(maps, first_m, after, sequences, T, N, G, H, BLOCK: tl.constexpr, PACKED: tl.constexpr):
    """A sequence and head: m after each of its tiles, in float64 [H, G], from the tiles' maps."""
    merged = tl.program_id(0).to(tl.int64)
    _, _, _, first, tiles = sequence_at(merged // H, sequences, T, N, PACKED)
    m, at, plane = tl.load(first_m + merged).to(tl.float64), merged % H * G + first, G.to(tl.int64) * H
    step = tl.arange(0, BLOCK)
    for begin in range(0, tiles, BLOCK):
        there = begin + step
        a = tl.load(maps + at + there, mask=there < tiles, other=0.0)
        b = tl.load(maps + plane + at + there, mask=there < tiles, other=float("-inf"))
        a, b = tl.associative_scan((a, b), 0, compose)
        m_after = tl.maximum(a + m, b)
        tl.store(after + at + there, m_after, mask=there < tiles)
        m = tl.sum(tl.where(step == BLOCK - 1, m_after, 0.0), 0)


@triton.jit(do_not_specialize=SIZES)
def unit_kernel(gates, after, first_m, last_m, sequences, T, N, G, H, TILE: tl.constexpr, PACKED: tl.constexpr,
                STABILIZE: tl.constexpr):  # fmt: skip
    """A tile of a head: m (0 without STABILIZE), carry and write; after a sequence's last tile, m of its state."""
    tile, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    here = tile_at(tile, sequences, T, N, TILE, PACKED)
    if tile >= here.end:
        return
    gates = Gates(gates, G.to(tl.int64) * H * TILE)
    t = (head * G.to(tl.int64) + tile) * TILE + tl.arange(0, TILE)
    total, resets = load_pair(gates, F_HIGH, F_LOW, t), load_plane(gates, NUM_RESETS, t)
    before, m = tl.load(first_m + here.sequence * H + head).to(tl.float64), tl.zeros([TILE], tl.float64)
    if tile > here.first:
        before = tl.load(after + head * G + tile - 1) if STABILIZE else before * 0
    if STABILIZE:
        carried = tl.where(resets == 0, total * LN2 + before, float("-inf"))
        m = tl.maximum(carried, load_pair(gates, M_HIGH, M_LOW, t))
    store_m(gates, t, m)
    last, m, before = last_of(m, TILE), tl.maximum(m, MIN_M), tl.maximum(before, MIN_M)
    tl.store(last_m + here.sequence * H + head, last.to(tl.float32), mask=tile == here.end - 1)
    store_plane(gates, CARRY, t, exp2_where(resets == 0, total + (before - m) * LOG2E))
    log_write = last_of(total, TILE) - total + (load_plane(gates, LOG_I, t).to(tl.float64) - last_of(m, TILE)) * LOG2E
    store_plane(gates, WRITE, t, exp2_where(resets == last_of(resets, TILE), log_write))


@triton.jit
def exp2_where(condition, x):
    """2^x in float32 where the condition holds, else 0; elsewhere 2^x may overflow."""
    return tl.exp2(tl.where(condition, x, float("-inf")).to(tl.float32))


@triton.jit
def pair_weights(gates, t):
    """D [T, S] of one tile on the diagonal, whose steps are t."""
    high, m, i = load_plane(gates, F_HIGH, t), load_plane(gates, M_HIGH, t), load_plane(gates, LOG_I, t)
    low, resets = load_plane(gates, F_LOW, t), load_plane(gates, NUM_RESETS, t)
    low_t = low - load_plane(gates, M_LOW, t) * LOG2E
    total = (high[:, None] - high[None, :]) + (low_t[:, None] - low[None, :])
    allowed = (t[:, None] >= t[None, :]) & (resets[:, None] == resets[None, :])
    return exp2_where(allowed, total + (i[None, :] - m[:, None]) * LOG2E)
