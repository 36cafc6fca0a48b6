"""The loops over time of the sLSTM on a GPU: only what is truly sequential is in them.

A program is a head and a tile of rows of the batch; it takes them through all of time and reads R once. Everything is
contiguous and float32 but R, which is also in the inputs' own dtype for the products: x and raw [B, T, H, 4, V],
h and dh [B, T, H, V], R [H, K, 4, V], states [B, H, V], kept [3, B, T, H, V]: c, n, m after every step.

B batch  T time  H heads  V head width, WIDE with padding  ROWS of a tile
"""

import triton
import triton.language as tl


@triton.jit
def matrix(r, head, gate, V: tl.constexpr, WIDE: tl.constexpr):
    """R of a head and a gate, [WIDE, WIDE]."""
    k, v = tl.arange(0, WIDE), tl.arange(0, WIDE)
    at = r + ((head * V + k[:, None]) * 4 + gate) * V + v[None, :]
    return tl.load(at, mask=(k < V)[:, None] & (v < V)[None, :], other=0.0)


@triton.jit
def mix(x, r, PRECISION: tl.constexpr):
    """x R, summed in float32."""
    return tl.dot(x, r, input_precision=PRECISION)


@triton.jit
def log_sigmoid(x):
    """log(1 / (1 + e^-x)) = min(x, 0) - log(1 + e^-|x|); the logarithm as 2 artanh(e / (2 + e))."""
    e = tl.exp(-tl.abs(x))
    y = e / (e + 2.0)
    y2 = y * y
    p = (((y2 / 15 + 1 / 13) * y2 + 1 / 11) * y2 + 1 / 9) * y2 + 1 / 7
    p = (p * y2 + 1 / 5) * y2 + 1 / 3
    return tl.minimum(x, 0.0) - 2.0 * (y + y * y2 * p)


@triton.jit
def sigmoid(x):
    """1 / (1 + e^-x), for any x."""
    e = tl.exp(-tl.abs(x))
    return tl.where(x >= 0, 1.0, e) / (1.0 + e)


@triton.jit
def tanh(x):
    """For any x; a polynomial where 1 - e^-2x would cancel."""
    e = tl.exp(-2.0 * tl.abs(x))
    far = 1.0 - 2.0 * e / (1.0 + e)
    x2 = x * x
    p = ((((-5.70498872745e-3 * x2 + 2.06390887954e-2) * x2 - 5.37397155531e-2) * x2 + 1.33314422036e-1) * x2
         - 3.33332819422e-1)  # fmt: skip
    return tl.where(tl.abs(x) < 0.625, p * x2 * x + x, tl.where(x >= 0, far, -far))


@triton.jit
def weights(i, f, n, m, EXP_FORGET: tl.constexpr):
    """(decay, write, m after) of a step, from the gates before their activations and the state before."""
    past = (f if EXP_FORGET else log_sigmoid(f)) + m
    after = tl.where(n == 0, i, tl.maximum(past, i))
    return tl.exp(tl.minimum(past - after, 0.0)), tl.exp(i - after), after


@triton.jit
def forward_kernel(x, r, h0, c0, n0, m0, reset, lengths, h, kept, h1, c1, n1, m1, B, T, H, V: tl.constexpr,
                   WIDE: tl.constexpr, ROWS: tl.constexpr, MIXING: tl.constexpr, RESETS: tl.constexpr,
                   EXP_FORGET: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """h of every step, the states after every step (kept), and after the last."""
    head, b, v = tl.program_id(0), tl.program_id(1) * ROWS + tl.arange(0, ROWS), tl.arange(0, WIDE)
    there, b = (b < B)[:, None] & (v < V)[None, :], b.to(tl.int64)
    state_at, plane = (b * H + head)[:, None] * V + v[None, :], tl.cast(B, tl.int64) * T * H * V
    h_BV, c_BV = tl.load(h0 + state_at, mask=there, other=0.0), tl.load(c0 + state_at, mask=there, other=0.0)
    n_BV, m_BV = tl.load(n0 + state_at, mask=there, other=0.0), tl.load(m0 + state_at, mask=there, other=0.0)
    length = tl.load(lengths + b, mask=b < B, other=0)
    if MIXING:
        r_i, r_f = matrix(r, head, 0, V, WIDE), matrix(r, head, 1, V, WIDE)
        r_z, r_o = matrix(r, head, 2, V, WIDE), matrix(r, head, 3, V, WIDE)
    for t in range(T):
        valid = (t < length)[:, None]
        if RESETS:
            new = (tl.load(reset + b * T + t, mask=b < B, other=0) != 0)[:, None] & valid
            h_BV, c_BV = tl.where(new, 0.0, h_BV), tl.where(new, 0.0, c_BV)
            n_BV, m_BV = tl.where(new, 0.0, n_BV), tl.where(new, 0.0, m_BV)
        step = ((b * T + t) * H + head)[:, None] * V + v[None, :]
        at = x + ((b * T + t) * H + head)[:, None] * 4 * V + v[None, :]
        i, f = tl.load(at, mask=there, other=0.0), tl.load(at + V, mask=there, other=0.0)
        z, o = tl.load(at + 2 * V, mask=there, other=0.0), tl.load(at + 3 * V, mask=there, other=0.0)
        if MIXING:
            before = h_BV.to(r.dtype.element_ty)
            i, f = i + mix(before, r_i, PRECISION), f + mix(before, r_f, PRECISION)
            z, o = z + mix(before, r_z, PRECISION), o + mix(before, r_o, PRECISION)
        decay, write, m_after = weights(i, f, n_BV, m_BV, EXP_FORGET)
        c_after, n_after = decay * c_BV + write * tanh(z), decay * n_BV + write
        h_after = sigmoid(o) * c_after / n_after
        c_BV, n_BV = tl.where(valid, c_after, c_BV), tl.where(valid, n_after, n_BV)
        m_BV, h_BV = tl.where(valid, m_after, m_BV), tl.where(valid, h_after, h_BV)
        tl.store(h + step, tl.where(valid, h_after, 0.0), mask=there)
        tl.store(kept + step, c_BV, mask=there)
        tl.store(kept + plane + step, n_BV, mask=there)
        tl.store(kept + 2 * plane + step, m_BV, mask=there)
    tl.store(h1 + state_at, h_BV, mask=there)
    tl.store(c1 + state_at, c_BV, mask=there)
    tl.store(n1 + state_at, n_BV, mask=there)
    tl.store(m1 + state_at, m_BV, mask=there)


@triton.jit
def backward_kernel(raw, r, c0, n0, m0, reset, lengths, kept, dh, dh1, dc1, dn1, dx, dh0, dc0, dn0, B, T, H,
                    V: tl.constexpr, WIDE: tl.constexpr, ROWS: tl.constexpr, MIXING: tl.constexpr,
                    RESETS: tl.constexpr, EXP_FORGET: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """The gradients of x and of the first h, c, n. raw: the gates of all steps before their activations."""
    head, b, v = tl.program_id(0), tl.program_id(1) * ROWS + tl.arange(0, ROWS), tl.arange(0, WIDE)
    there, b = (b < B)[:, None] & (v < V)[None, :], b.to(tl.int64)
    state_at, plane = (b * H + head)[:, None] * V + v[None, :], tl.cast(B, tl.int64) * T * H * V
    dh_BV, dc_BV = tl.load(dh1 + state_at, mask=there, other=0.0), tl.load(dc1 + state_at, mask=there, other=0.0)
    dn_BV = tl.load(dn1 + state_at, mask=there, other=0.0)
    length = tl.load(lengths + b, mask=b < B, other=0)
    if MIXING:
        r_i, r_f = tl.trans(matrix(r, head, 0, V, WIDE)), tl.trans(matrix(r, head, 1, V, WIDE))
        r_z, r_o = tl.trans(matrix(r, head, 2, V, WIDE)), tl.trans(matrix(r, head, 3, V, WIDE))
    for back in range(T):
        t = T - 1 - back
        valid, step = (t < length)[:, None], ((b * T + t) * H + head)[:, None] * V + v[None, :]
        at = ((b * T + t) * H + head)[:, None] * 4 * V + v[None, :]
        i, f = tl.load(raw + at, mask=there, other=0.0), tl.load(raw + at + V, mask=there, other=0.0)
        z, o = tl.load(raw + at + 2 * V, mask=there, other=0.0), tl.load(raw + at + 3 * V, mask=there, other=0.0)
        earlier = kept + step - H * V
        if t == 0:
            c_BV, n_BV = tl.load(c0 + state_at, mask=there, other=0.0), tl.load(n0 + state_at, mask=there, other=0.0)
            m_BV = tl.load(m0 + state_at, mask=there, other=0.0)
        else:
            c_BV, n_BV = tl.load(earlier, mask=there, other=0.0), tl.load(earlier + plane, mask=there, other=0.0)
            m_BV = tl.load(earlier + 2 * plane, mask=there, other=0.0)
        new = valid & (t < 0)
        if RESETS:
            new = (tl.load(reset + b * T + t, mask=b < B, other=0) != 0)[:, None] & valid
            c_BV, n_BV, m_BV = tl.where(new, 0.0, c_BV), tl.where(new, 0.0, n_BV), tl.where(new, 0.0, m_BV)
        decay, write, _ = weights(i, f, n_BV, m_BV, EXP_FORGET)
        cell, gate = tanh(z), sigmoid(o)
        n_after = decay * n_BV + write
        ratio = (decay * c_BV + write * cell) / n_after
        dh_t = dh_BV + tl.load(dh + step, mask=there, other=0.0)
        dratio = dh_t * gate / n_after
        dc_t, dn_t = dc_BV + dratio, dn_BV - dratio * ratio
        slope = tl.full(f.shape, 1.0, tl.float32) if EXP_FORGET else sigmoid(-f)
        di = tl.where(valid, (cell * dc_t + dn_t) * write, 0.0)
        df = tl.where(valid, (c_BV * dc_t + n_BV * dn_t) * decay * slope, 0.0)
        dz = tl.where(valid, write * dc_t * (1.0 - cell * cell), 0.0)
        do = tl.where(valid, dh_t * ratio * gate * (1.0 - gate), 0.0)
        tl.store(dx + at, di, mask=there)
        tl.store(dx + at + V, df, mask=there)
        tl.store(dx + at + 2 * V, dz, mask=there)
        tl.store(dx + at + 3 * V, do, mask=there)
        dh_before = tl.zeros([ROWS, WIDE], tl.float32)
        if MIXING:
            kind = r.dtype.element_ty
            dh_before = mix(di.to(kind), r_i, PRECISION) + mix(df.to(kind), r_f, PRECISION)
            dh_before += mix(dz.to(kind), r_z, PRECISION) + mix(do.to(kind), r_o, PRECISION)
        dh_BV = tl.where(valid, tl.where(new, 0.0, dh_before), dh_BV)
        dc_BV = tl.where(valid, tl.where(new, 0.0, decay * dc_t), dc_BV)
        dn_BV = tl.where(valid, tl.where(new, 0.0, decay * dn_t), dn_BV)
    tl.store(dh0 + state_at, dh_BV, mask=there)
    tl.store(dc0 + state_at, dc_BV, mask=there)
    tl.store(dn0 + state_at, dn_BV, mask=there)
