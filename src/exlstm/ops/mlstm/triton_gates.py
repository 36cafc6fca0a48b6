"""What the gates of the mLSTM say, for Triton's kernels: a scan of its own, before any matrix is touched.

The stabiliser m_t = max(log f_t + m_{t-1}, log i_t) depends on the gates alone. With it known, every weight

    D_ts = exp(F_t - F_s + log i_s - m_t)  for s <= t ,  F_t = sum of log f over the chunk up to t

is at most one, and no kernel has to keep a running maximum. Between two tiles of a chunk D is a column times a row,
both at most one: with the end e of the source tile and r the largest of log i_s + F_e - F_s in it,

    D_ts = exp(F_t - F_e + r - m_t) exp(F_e - F_s + log i_s - r)

so exponentials of pairs are taken on the diagonal only. Sums of strong gates cancel: they are taken in float64 and
kept as two float32, F = high + low. What is kept per step are five planes of [M, T padded to whole chunks]: high, low,
log i, m, and how many resets the chunk has had.

M merged batch and heads  T time  N chunks  L chunk length
"""

import triton
import triton.language as tl


@triton.jit
def later(a0, b0, a1, b1):
    """x -> max(a + x, b) twice, as one such map."""
    return a0 + a1, tl.maximum(b0 + a1, b1)


@triton.jit
def gate_scan(log_i, log_f, reset, first_m, gates, starts, last_m, T, H, N, L: tl.constexpr, STABILIZE: tl.constexpr,
              RESETS: tl.constexpr):  # fmt: skip
    """A row and head, chunk after chunk. log_i, log_f: [B, T, H], reset: [B, T]; fills gates, starts [M, N], last_m."""
    merged = tl.program_id(0).to(tl.int64)
    b, h = merged // H, merged % H
    plane, own = tl.num_programs(0).to(tl.int64) * N * L, merged * N * L
    m = tl.load(first_m + merged).to(tl.float64)
    step = tl.arange(0, L)
    for chunk in range(N):
        t = chunk * L + step
        there = (b * T + t) * H + h
        f = tl.load(log_f + there, mask=t < T, other=0.0).to(tl.float64)
        i = tl.load(log_i + there, mask=t < T, other=float("-inf")).to(tl.float64)
        # a gate of -inf, or a reset by hand with a huge number, must not swallow the digits of its neighbours
        f = tl.maximum(f, -1e5)
        total = tl.cumsum(f, 0)
        high = total.to(tl.float32)
        decay, enter = f, i
        resets = tl.zeros([L], tl.int32)
        if RESETS:
            new = tl.load(reset + b * T + t, mask=t < T, other=0).to(tl.int32)
            resets = tl.cumsum(new, 0)
            decay = tl.where(new > 0, float("-inf"), f)
            enter = tl.where(new > 0, tl.maximum(f, i), i)
        tl.store(starts + merged * N + chunk, m.to(tl.float32))
        m_t = tl.zeros([L], tl.float64)
        if STABILIZE:
            enter = tl.where(step == 0, tl.maximum(decay + m, enter), enter)
            _, m_t = tl.associative_scan((decay, enter), 0, later)
        # states are kept in units of the rounded m
        m_t = m_t.to(tl.float32).to(tl.float64)
        m = tl.sum(tl.where(step == L - 1, m_t, 0.0), 0)
        at = gates + own + t
        tl.store(at, high)
        tl.store(at + plane, (total - high.to(tl.float64)).to(tl.float32))
        tl.store(at + 2 * plane, i.to(tl.float32))
        tl.store(at + 3 * plane, m_t.to(tl.float32))
        tl.store(at + 4 * plane, resets.to(tl.float32))
    tl.store(last_m + merged, m.to(tl.float32))


@triton.jit
def target(gates, plane, t):
    """Of steps as targets: high, low, m, resets."""
    at = gates + t
    return tl.load(at), tl.load(at + plane), tl.load(at + 3 * plane), tl.load(at + 4 * plane)


@triton.jit
def source(gates, plane, s):
    """Of steps as sources: high, low, log i, resets."""
    at = gates + s
    return tl.load(at), tl.load(at + plane), tl.load(at + 2 * plane), tl.load(at + 4 * plane)


@triton.jit
def exp_where(condition, x):
    """e^x where the condition holds, else 0; elsewhere e^x may be too large to exist."""
    return tl.exp(tl.where(condition, x, float("-inf")))


@triton.jit
def carry_weight(gates, plane, t, m_start):
    """What the state before the chunk is worth at t: exp(F_t + m before - m_t), 0 after a reset."""
    high, low, m, resets = target(gates, plane, t)
    return exp_where(resets == 0, high + (low + (m_start - m)))


@triton.jit
def write_weight(gates, plane, s, end):
    """What step s is worth in the state after the chunk, whose last step is `end`."""
    high, low, i, resets = source(gates, plane, s)
    high_e, low_e, m_e, resets_e = target(gates, plane, end)
    return exp_where(resets == resets_e, ((high_e - high) + (low_e - low)) + (i - m_e))


@triton.jit
def pair_weights(gates, plane, t, s):
    """D [T, S] of one tile on the diagonal."""
    high, low, m, resets = target(gates, plane, t)
    high_s, low_s, i, resets_s = source(gates, plane, s)
    exponent = ((high[:, None] - high_s[None, :]) + (low[:, None] - low_s[None, :])) + (i[None, :] - m[:, None])
    together = (t[:, None] >= s[None, :]) & (resets[:, None] == resets_s[None, :])
    return exp_where(together, exponent)


@triton.jit
def tile_weights(gates, plane, t, s, end):
    """D of an earlier tile of sources, whose last step is `end`, as (a factor for each target, one for each source)."""
    high, low, m, resets = target(gates, plane, t)
    high_s, low_s, i, resets_s = source(gates, plane, s)
    high_e, low_e, _, resets_e = target(gates, plane, end)
    worth = tl.where(resets_s == resets_e, ((high_e - high_s) + (low_e - low_s)) + i, float("-inf"))
    most = tl.max(worth, 0)
    most = tl.where(most == float("-inf"), 0.0, most)
    row = exp_where(resets == resets_e, ((high - high_e) + (low - low_e)) + (most - m))
    return row, tl.exp(worth - most)
