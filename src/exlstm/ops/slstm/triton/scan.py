"""The loops over time of the sLSTM on a GPU, for heads whose R a multiprocessor holds: only what is sequential.

A program is a head and some rows of the batch; it takes them through all of time and reads R once. Without R the units
of a head do not know each other, and it is some of them. What a step needs beside its h is fetched a step ahead.

Everything is contiguous and float32 but R, which is also in the inputs' own dtype for the products: x and raw
[B, T, H, 4, V], R [H, K, 4, V], dh [B, T, H, V], first [4, B, H, V] and planes [4, B, T, H, V]: h, c, n, m before the
first step and after every step. dc and dn [B, H, V] are those of the last state and become those of the first.

B rows of the batch  T time  H heads  V, K head width, WIDE with padding  J gates times units
"""

import triton
import triton.language as tl

from exlstm.ops.slstm.triton.cell import apart, state_before, step, step_gradients, together


@triton.jit
def matrix(r, head, V: tl.constexpr, WIDE: tl.constexpr):
    """(where R^T of a head is, [4 WIDE, WIDE]; which of it is there)."""
    j, k = tl.arange(0, 4 * WIDE), tl.arange(0, WIDE)
    at = r + (head * V + k)[None, :] * 4 * V + (j // WIDE * V + j % WIDE)[:, None]
    return at, (j % WIDE < V)[:, None] & (k < V)[None, :]


@triton.jit(do_not_specialize=["B", "T", "H"])
def forward_kernel(x, r, first, reset, lengths, planes, B, T, H, V: tl.constexpr, WIDE: tl.constexpr,
                   ROWS: tl.constexpr, MIXING: tl.constexpr, RESETS: tl.constexpr, EXP_FORGET: tl.constexpr,
                   PRECISION: tl.constexpr, STAGES: tl.constexpr):  # fmt: skip
    """h of every step and the state after every step; beyond a row's length h is 0 and the rest stays."""
    head, unit = tl.program_id(0) % H, tl.program_id(0) // H * WIDE
    b, v, j = tl.program_id(1) * ROWS + tl.arange(0, ROWS), unit + tl.arange(0, WIDE), tl.arange(0, 4 * WIDE)
    real, gate, j = b < B, j // WIDE, unit + j % WIDE
    there, all_there, b = (v < V)[:, None] & real[None, :], (j < V)[:, None] & real[None, :], b.to(tl.int64)
    at, plane = first + ((b * H + head) * V)[None, :] + v[:, None], tl.cast(B, tl.int64) * H * V
    h_VB, c_VB = tl.load(at, mask=there, other=0.0), tl.load(at + plane, mask=there, other=0.0)
    n_VB, m_VB = tl.load(at + 2 * plane, mask=there, other=0.0), tl.load(at + 3 * plane, mask=there, other=0.0)
    length, row = tl.load(lengths + b, mask=real, other=0), ((b * T * H + head) * V)[None, :]
    x_at, out_at = x + 4 * row + (gate * V + j)[:, None], planes + row + (gate * plane * T + j)[:, None]
    if MIXING:
        r_at, r_there = matrix(r, head, V, WIDE)
        r_JK = tl.load(r_at, mask=r_there, other=0.0)
    if RESETS:
        soon = tl.load(reset + b * T, mask=real, other=0)
    for t in tl.range(T, num_stages=STAGES):
        valid, past = (t < length)[None, :], tl.cast(t, tl.int64) * H * V
        raw_JB = tl.load(x_at + 4 * past, mask=all_there, other=0.0)
        if RESETS:
            new = (soon != 0)[None, :] & valid
            soon = tl.load(reset + b * T + t + 1, mask=real & (t + 1 < T), other=0)
            h_VB, c_VB = tl.where(new, 0.0, h_VB), tl.where(new, 0.0, c_VB)
            n_VB, m_VB = tl.where(new, 0.0, n_VB), tl.where(new, 0.0, m_VB)
        if MIXING:
            raw_JB = tl.dot(r_JK, h_VB.to(r.dtype.element_ty), acc=raw_JB, input_precision=PRECISION)
        i, f, z, o = apart(raw_JB, WIDE, ROWS)
        h_after, c_after, n_after, m_after = step(i, f, z, o, c_VB, n_VB, m_VB, EXP_FORGET)
        h_VB, c_VB = tl.where(valid, h_after, 0.0), tl.where(valid, c_after, c_VB)
        n_VB, m_VB = tl.where(valid, n_after, n_VB), tl.where(valid, m_after, m_VB)
        tl.store(out_at + past, together(h_VB, c_VB, n_VB, m_VB, WIDE, ROWS), mask=all_there)


@triton.jit(do_not_specialize=["B", "T", "H"])
def backward_kernel(raw, r, first, reset, lengths, planes, dh, dh1, dx, dh0, dc, dn, B, T, H, V: tl.constexpr,
                    WIDE: tl.constexpr, ROWS: tl.constexpr, MIXING: tl.constexpr, RESETS: tl.constexpr,
                    EXP_FORGET: tl.constexpr, PRECISION: tl.constexpr, STAGES: tl.constexpr):  # fmt: skip
    """The gradients of x and of the first h, c, n. raw: the gates of all steps before their activations."""
    head, unit = tl.program_id(0) % H, tl.program_id(0) // H * WIDE
    b, v, j = tl.program_id(1) * ROWS + tl.arange(0, ROWS), unit + tl.arange(0, WIDE), tl.arange(0, 4 * WIDE)
    real, gate, j = b < B, j // WIDE, unit + j % WIDE
    there, all_there, b = (v < V)[:, None] & real[None, :], (j < V)[:, None] & real[None, :], b.to(tl.int64)
    state_at = ((b * H + head) * V)[None, :] + v[:, None]
    dh_VB, dc_VB = tl.load(dh1 + state_at, mask=there, other=0.0), tl.load(dc + state_at, mask=there, other=0.0)
    dn_VB, length = tl.load(dn + state_at, mask=there, other=0.0), tl.load(lengths + b, mask=real, other=0)
    row = ((b * T * H + head) * V)[None, :]
    x_at, dx_at, dh_at = 4 * row + v[:, None], 4 * row + (gate * V + j)[:, None], row + v[:, None]
    if MIXING:
        r_at, r_there = matrix(r, head, V, WIDE)
        r_KJ = tl.load(tl.trans(r_at), mask=tl.trans(r_there), other=0.0)
    if RESETS:
        soon = tl.load(reset + b * T + T - 1, mask=real, other=0)
    for back in tl.range(T, num_stages=STAGES):
        t = T - 1 - back
        valid, past = (t < length)[None, :], tl.cast(t, tl.int64) * H * V
        # four loads, not one tile to take apart: the compiler then keeps all of it where the product is
        at = raw + 4 * past + x_at
        i, f = tl.load(at, mask=there, other=0.0), tl.load(at + V, mask=there, other=0.0)
        z, o = tl.load(at + 2 * V, mask=there, other=0.0), tl.load(at + 3 * V, mask=there, other=0.0)
        before, each, plane = state_before(t, first, planes, B, T, H, V)
        before += head * V + ((b * each)[None, :] + v[:, None])
        c_VB, n_VB = tl.load(before + plane, mask=there, other=0.0), tl.load(before + 2 * plane, mask=there, other=0.0)
        m_VB = tl.load(before + 3 * plane, mask=there, other=0.0)
        dh_t = dh_VB + tl.load(dh + past + dh_at, mask=there, other=0.0)
        new = valid & (t < 0)
        if RESETS:
            new = (soon != 0)[None, :] & valid
            soon = tl.load(reset + b * T + t - 1, mask=real & (t > 0), other=0)
            c_VB, n_VB, m_VB = tl.where(new, 0.0, c_VB), tl.where(new, 0.0, n_VB), tl.where(new, 0.0, m_VB)
        di, df, dz, do, dc_t, dn_t = step_gradients(i, f, z, o, c_VB, n_VB, m_VB, dh_t, dc_VB, dn_VB, EXP_FORGET)
        dx_JB = together(
            tl.where(valid, di, 0.0), tl.where(valid, df, 0.0), tl.where(valid, dz, 0.0), tl.where(valid, do, 0.0),
            WIDE, ROWS,
        )  # fmt: skip
        tl.store(dx + 4 * past + dx_at, dx_JB, mask=all_there)
        dh_before = tl.zeros([WIDE, ROWS], tl.float32)
        if MIXING:
            dh_before = tl.dot(r_KJ, dx_JB.to(r.dtype.element_ty), input_precision=PRECISION)
        dh_VB = tl.where(valid, tl.where(new, 0.0, dh_before), dh_VB)
        dc_VB = tl.where(valid, tl.where(new, 0.0, dc_t), dc_VB)
        dn_VB = tl.where(valid, tl.where(new, 0.0, dn_t), dn_VB)
    tl.store(dh0 + state_at, dh_VB, mask=there)
    tl.store(dc + state_at, dc_VB, mask=there)
    tl.store(dn + state_at, dn_VB, mask=there)
