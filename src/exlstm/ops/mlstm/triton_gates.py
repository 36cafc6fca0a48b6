"""What the gates of the mLSTM say, for Triton's kernels: scans of their own, before any matrix is touched.

The stabiliser m_t = max(log f_t + m_{t-1}, log i_t) depends on the gates alone. With it known, every weight

    D_ts = exp(F_t - F_s + log i_s - m_t)  for s <= t ,  F_t = sum of log f up to t

is at most one, and no kernel has to keep a running maximum. Time is cut into tiles, and F counts from the beginning of
its own. Between two tiles D is a column times a row, both at most one: with the end e of the source tile, the largest r
of log i_s + F_e - F_s in it, and the sum G of whole tiles in between,

    D_ts = exp(F_t + G + r - m_t) exp(F_e - F_s + log i_s - r)

so exponentials of pairs are taken on the diagonal only. Sums of strong gates cancel: they are taken in float64 and kept
as two float32, F = high + low, in units of log 2, for exp2 is what a GPU has; m is kept as two as well, for whatever is
in units of it has to be in exactly those. Kept per step are six planes of [H, G tiles, TILE]: high, low, log i, m, the
rest of m, and how many resets the tile has had.

Tiles belong to sequences: rows of a batch, or pieces of one packed row, whose `borders` say where each begins. Every
sequence has whole tiles, the first of them in `firsts`, and `owners` is the sequence of a tile. Behind those of the
last packed sequence there may be more, which are nobody's: their programs return.

B batch  T time  H heads  S sequences  G tiles of all sequences  N tiles of a sequence  M sequences and heads, merged
"""

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
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
def unit(at, plane):
    """m, in float64."""
    return tl.load(at + 3 * plane).to(tl.float64) + tl.load(at + 4 * plane).to(tl.float64)


@triton.jit
def put_unit(at, plane, m):
    """The way back; -inf, where nothing was written yet, becomes a number below all others."""
    m = tl.maximum(m, -1e30)
    high = m.to(tl.float32)
    tl.store(at + 3 * plane, high)
    tl.store(at + 4 * plane, (m - high.to(tl.float64)).to(tl.float32))


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
    tl.store(at, high)
    tl.store(at + plane, (total - high.to(tl.float64)).to(tl.float32))
    tl.store(at + 2 * plane, i.to(tl.float32))
    put_unit(at, plane, b)
    tl.store(at + 5 * plane, resets.to(tl.float32))
    here = maps + head * G + tile
    tl.store(here, tl.sum(tl.where(step == TILE - 1, a, 0.0), 0))
    tl.store(here + G.to(tl.int64) * H, tl.sum(tl.where(step == TILE - 1, b, 0.0), 0))


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
                PACKED: tl.constexpr):  # fmt: skip
    """A tile of a head: m, and after the last tile what the state says."""
    tile, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    number = owner(tile, owners, N, PACKED)
    _, _, _, first, tiles = sequence(number, borders, firsts, T, N, PACKED)
    if tile >= first + tiles:
        return
    before = tl.load(after + head * G + tile - 1, mask=tile > first, other=0.0)
    before = tl.where(tile > first, before, tl.load(first_m + number * H + head).to(tl.float64))
    step, plane = tl.arange(0, TILE), G.to(tl.int64) * H * TILE
    at = gates + (head * G.to(tl.int64) + tile) * TILE + step
    total = (tl.load(at).to(tl.float64) + tl.load(at + plane).to(tl.float64)) * LN2
    carried = tl.where(tl.load(at + 5 * plane) == 0, total + before, float("-inf"))
    m = tl.maximum(carried, unit(at, plane))
    put_unit(at, plane, m)
    last = tl.sum(tl.where(step == TILE - 1, m, 0.0), 0).to(tl.float32)
    tl.store(last_m + number * H + head, last, mask=tile == first + tiles - 1)


@triton.jit
def sums(gates, plane, t):
    """F of steps, in float64."""
    return tl.load(gates + t).to(tl.float64) + tl.load(gates + plane + t).to(tl.float64)


@triton.jit
def unit_before(gates, plane, tile, first, first_m, TILE: tl.constexpr):
    """m before a tile."""
    at, given = gates + tile * TILE - 1, tl.load(first_m).to(tl.float64)
    if tile > first:
        given = unit(at, plane)
    return given


@triton.jit
def exp2_where(condition, x):
    """2^x in float32 where the condition holds, else 0; elsewhere 2^x may be too large to exist."""
    return tl.exp2(tl.where(condition, x, float("-inf")).to(tl.float32))


@triton.jit
def whole(gates, plane, tile, TILE: tl.constexpr):
    """F over a whole tile, -inf if it has a reset: what it leaves of everything before."""
    end = tile * TILE + TILE - 1
    return tl.where(tl.load(gates + 5 * plane + end) == 0, sums(gates, plane, end), float("-inf"))


@triton.jit
def carry_weight(gates, plane, t, gap, before):
    """What the state in units of `before`, with whole tiles that decay by `gap` in between, is worth at t."""
    exponent = (sums(gates, plane, t) + gap) + (before - unit(gates + t, plane)) * LOG2E
    return exp2_where(tl.load(gates + 5 * plane + t) == 0, exponent)


@triton.jit
def worth_at_end(gates, plane, s, end):
    """log2 of what step s is worth at the end of its tile: F_e - F_s + log i_s, -inf if a reset is between."""
    worth = (sums(gates, plane, end) - sums(gates, plane, s)) + tl.load(gates + 2 * plane + s).to(tl.float64) * LOG2E
    together = tl.load(gates + 5 * plane + s) == tl.load(gates + 5 * plane + end)
    return tl.where(together, worth, float("-inf"))


@triton.jit
def write_weight(gates, plane, s, end):
    """What step s is worth in the state after its tile, whose last step is `end`."""
    return tl.exp2((worth_at_end(gates, plane, s, end) - unit(gates + end, plane) * LOG2E).to(tl.float32))


@triton.jit
def tile_weights(gates, plane, t, s, end, gap):
    """D of an earlier tile of sources, whose last step is `end`, as (a factor for each target, one for each source)."""
    worth = worth_at_end(gates, plane, s, end)
    most = tl.max(worth, 0)
    most = tl.where(most == float("-inf"), 0.0, most)
    return carry_weight(gates, plane, t, gap, most * LN2), tl.exp2((worth - most).to(tl.float32))


@triton.jit
def pair_weights(gates, plane, t, s):
    """D [T, S] of one tile on the diagonal."""
    high, m = tl.load(gates + t), tl.load(gates + 3 * plane + t)
    low = tl.load(gates + plane + t) - tl.load(gates + 4 * plane + t) * LOG2E
    high_s, low_s, i = tl.load(gates + s), tl.load(gates + plane + s), tl.load(gates + 2 * plane + s)
    resets, resets_s = tl.load(gates + 5 * plane + t), tl.load(gates + 5 * plane + s)
    total = (high[:, None] - high_s[None, :]) + (low[:, None] - low_s[None, :])
    together = (t[:, None] >= s[None, :]) & (resets[:, None] == resets_s[None, :])
    return exp2_where(together, total + (i[None, :] - m[:, None]) * LOG2E)
