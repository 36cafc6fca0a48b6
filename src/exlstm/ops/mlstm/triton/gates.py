"""What the gates of the mLSTM say, for Triton's kernels: scans of their own, before any matrix is touched.

The stabiliser m_t = max(log f_t + m_{t-1}, log i_t) depends on the gates alone. With it known, every weight

    D_ts = exp(F_t - F_s + log i_s - m_t)  for s <= t ,  F_t = sum of log f up to t

is at most one, and no kernel has to keep a running maximum. Time is cut into tiles, and F counts from the beginning of
its own. With the m before a tile, m_b, and the one at its end, m_e, two numbers say all about a step beyond its tile:

    carry_t = exp(F_t + m_b - m_t)             what the state before the tile is worth at t
    write_s = exp(F_e - F_s + log i_s - m_e)   what step s is worth in the state after the tile

Both are at most one. The carry of a tile's last step is what the whole tile leaves of the state before it, and between
two tiles D is write_s, times that of every tile in between, times carry_t: exponentials of pairs are taken on the
diagonal only. Sums of strong gates cancel: they are taken in float64 and kept as two float32, F = high + low, in units
of log 2, for exp2 is what a GPU has; m is kept as two as well, for the pairs of the diagonal. Kept per step are the
planes below, each [H, G tiles, TILE].

Tiles belong to sequences: rows of a batch, or pieces of one packed row, whose `borders` say where each begins. Every
sequence has whole tiles, the first of them in `firsts`, and `owners` is the sequence of a tile. Behind those of the
last packed sequence there may be more, which are nobody's: their programs return.

B batch  T time  H heads  S sequences  G tiles of all sequences  N tiles of a sequence  M sequences and heads, merged
"""

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
LEAST = tl.constexpr(-1e30)  # below every m that is anything
# planes of the gates: F of the tile in units of log 2, log i in nats, m of the step (over the tile alone until
# `unit_kernel` has run), resets of the tile up to the step, carry and write
F_HIGH, F_LOW = tl.constexpr(0), tl.constexpr(1)
LOG_I = tl.constexpr(2)
M_HIGH, M_LOW = tl.constexpr(3), tl.constexpr(4)
NUM_RESETS = tl.constexpr(5)
CARRY, WRITE = tl.constexpr(6), tl.constexpr(7)
NUM_PLANES = 8
# of kernels: one compiled form serves all lengths and batches, and a size of 1 is a number like any other
SIZES = ("T", "N", "G", "H")


@triton.jit
def sequence(number, borders, firsts, T, N, PACKED: tl.constexpr):
    """Of a sequence: its row, where it begins there, how many steps it has, its first tile and how many tiles."""
    row, begin, length, first, tiles = number, number * 0, T, number * N, N
    if PACKED:
        row, begin, first = number * 0, tl.load(borders + number).to(tl.int64), tl.load(firsts + number).to(tl.int64)
        length, tiles = tl.load(borders + number + 1) - begin, tl.load(firsts + number + 1) - first
    return row, begin, length, first, tiles


@triton.jit
def owner(tile, owners, N, PACKED: tl.constexpr):
    """The sequence of a tile."""
    number = tile // N if not PACKED else tl.load(owners + tile).to(tl.int64)
    return number


@triton.jit
def later(a0, b0, a1, b1):
    """x -> max(a + x, b) twice, as one such map."""
    return a0 + a1, tl.maximum(b0 + a1, b1)


@triton.jit
def at_end(x, TILE: tl.constexpr):
    """The last of a tile's numbers."""
    return tl.sum(tl.where(tl.arange(0, TILE) == TILE - 1, x, 0.0), 0)


@triton.jit
def put_unit(at, plane, m):
    """m as two float32; -inf, where nothing was written yet, becomes a number below all others."""
    m = tl.maximum(m, LEAST)
    high = m.to(tl.float32)
    tl.store(at + M_HIGH * plane, high)
    tl.store(at + M_LOW * plane, (m - high.to(tl.float64)).to(tl.float32))


@triton.jit(do_not_specialize=SIZES)
def sum_kernel(log_i, log_f, reset, gates, maps, borders, firsts, owners, T, N, G, H, TILE: tl.constexpr,
               PACKED: tl.constexpr, RESETS: tl.constexpr):  # fmt: skip
    """A tile of a head: all planes, with in the place of m what it is after nothing; and maps [2, H, G] of m over it.

    log_i, log_f: [B, T, H], reset: [B, T].
    """
    tile, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    row, begin, length, first, _ = sequence(owner(tile, owners, N, PACKED), borders, firsts, T, N, PACKED)
    step = tl.arange(0, TILE)
    t = (tile - first) * TILE + step
    there = row * T + begin + t
    f = tl.load(log_f + there * H + head, mask=t < length, other=0.0).to(tl.float64)
    i = tl.load(log_i + there * H + head, mask=t < length, other=float("-inf")).to(tl.float64)
    # a gate of -inf, or a reset by hand with a huge number, must not swallow the digits of its neighbours
    f = tl.maximum(f, -1e5)
    decay, enter = f, i
    resets = tl.zeros([TILE], tl.int32)
    if RESETS:
        new = tl.load(reset + there, mask=t < length, other=0).to(tl.int32)
        resets = tl.cumsum(new, 0)
        decay = tl.where(new > 0, float("-inf"), f)
        enter = tl.where(new > 0, tl.maximum(f, i), i)
    total = tl.cumsum(f * LOG2E, 0)
    high = total.to(tl.float32)
    a, b = tl.associative_scan((decay, enter), 0, later)
    plane, at = G.to(tl.int64) * H * TILE, gates + (head * G.to(tl.int64) + tile) * TILE + step
    tl.store(at + F_HIGH * plane, high)
    tl.store(at + F_LOW * plane, (total - high.to(tl.float64)).to(tl.float32))
    tl.store(at + LOG_I * plane, i.to(tl.float32))
    put_unit(at, plane, b)
    tl.store(at + NUM_RESETS * plane, resets.to(tl.float32))
    here = maps + head * G + tile
    tl.store(here, at_end(a, TILE))
    tl.store(here + G.to(tl.int64) * H, at_end(b, TILE))


@triton.jit(do_not_specialize=SIZES)
def unit_scan(maps, first_m, after, borders, firsts, T, N, G, H, BLOCK: tl.constexpr, PACKED: tl.constexpr):
    """A sequence and head: m after each of its tiles, in float64 [H, G], from the tiles' maps."""
    merged = tl.program_id(0).to(tl.int64)
    _, _, _, first, tiles = sequence(merged // H, borders, firsts, T, N, PACKED)
    m, at, plane = tl.load(first_m + merged).to(tl.float64), merged % H * G + first, G.to(tl.int64) * H
    step = tl.arange(0, BLOCK)
    for begin in range(0, tiles, BLOCK):
        there = begin + step
        a = tl.load(maps + at + there, mask=there < tiles, other=0.0)
        b = tl.load(maps + plane + at + there, mask=there < tiles, other=float("-inf"))
        a, b = tl.associative_scan((a, b), 0, later)
        m_after = tl.maximum(a + m, b)
        tl.store(after + at + there, m_after, mask=there < tiles)
        m = tl.sum(tl.where(step == BLOCK - 1, m_after, 0.0), 0)


@triton.jit(do_not_specialize=SIZES)
def unit_kernel(gates, after, first_m, last_m, borders, firsts, owners, T, N, G, H, TILE: tl.constexpr,
                PACKED: tl.constexpr, STABILIZE: tl.constexpr):  # fmt: skip
    """A tile of a head: m, 0 if not to STABILIZE, carry and write; after the last tile m as the state has it."""
    tile, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    number = owner(tile, owners, N, PACKED)
    _, _, _, first, tiles = sequence(number, borders, firsts, T, N, PACKED)
    if tile >= first + tiles:
        return
    step, plane = tl.arange(0, TILE), G.to(tl.int64) * H * TILE
    at = gates + (head * G.to(tl.int64) + tile) * TILE + step
    total = tl.load(at + F_HIGH * plane).to(tl.float64) + tl.load(at + F_LOW * plane).to(tl.float64)
    resets = tl.load(at + NUM_RESETS * plane)
    before, m = tl.load(first_m + number * H + head).to(tl.float64), tl.zeros([TILE], tl.float64)
    if tile > first:
        before = tl.load(after + head * G + tile - 1) if STABILIZE else before * 0
    if STABILIZE:
        carried = tl.where(resets == 0, total * LN2 + before, float("-inf"))
        entered = tl.load(at + M_HIGH * plane).to(tl.float64) + tl.load(at + M_LOW * plane).to(tl.float64)
        m = tl.maximum(carried, entered)
    put_unit(at, plane, m)
    last, m, before = at_end(m, TILE), tl.maximum(m, LEAST), tl.maximum(before, LEAST)
    tl.store(last_m + number * H + head, last.to(tl.float32), mask=tile == first + tiles - 1)
    tl.store(at + CARRY * plane, exp2_where(resets == 0, total + (before - m) * LOG2E))
    worth = at_end(total, TILE) - total + (tl.load(at + LOG_I * plane).to(tl.float64) - at_end(m, TILE)) * LOG2E
    tl.store(at + WRITE * plane, exp2_where(resets == at_end(resets, TILE), worth))


@triton.jit
def exp2_where(condition, x):
    """2^x in float32 where the condition holds, else 0; elsewhere 2^x may be too large to exist."""
    return tl.exp2(tl.where(condition, x, float("-inf")).to(tl.float32))


@triton.jit
def pair_weights(gates, plane, t, s):
    """D [T, S] of one tile on the diagonal."""
    high, m = tl.load(gates + F_HIGH * plane + t), tl.load(gates + M_HIGH * plane + t)
    low = tl.load(gates + F_LOW * plane + t) - tl.load(gates + M_LOW * plane + t) * LOG2E
    high_s, low_s = tl.load(gates + F_HIGH * plane + s), tl.load(gates + F_LOW * plane + s)
    i = tl.load(gates + LOG_I * plane + s)
    resets, resets_s = tl.load(gates + NUM_RESETS * plane + t), tl.load(gates + NUM_RESETS * plane + s)
    total = (high[:, None] - high_s[None, :]) + (low[:, None] - low_s[None, :])
    together = (t[:, None] >= s[None, :]) & (resets[:, None] == resets_s[None, :])
    return exp2_where(together, total + (i[None, :] - m[:, None]) * LOG2E)
