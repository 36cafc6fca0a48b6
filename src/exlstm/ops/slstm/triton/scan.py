# mypy: ignore-errors
"""The loops over time of the sLSTM on a GPU, for heads whose R a multiprocessor holds.

A program is a head and some rows of the batch; it takes them through all of time and reads R once. Without R the units
of a head are independent, and a program is some of them. All inputs of a step but its h are fetched a step ahead.

Everything is contiguous and float32 but R, whose dtype may be narrower and is that of the products: x and raw
[B, T, H, 4, V], R [H, K, 4, V], dh [B, T, H, V]; states and their gradients are described in `cell`.

B rows of the batch  T time  H heads  V, K head width, WIDE with padding  J gates times units
"""

import triton
import triton.language as tl

from exlstm.ops.slstm.triton.cell import (
    block_of,
    join_gates,
    load_memory,
    split_gates,
    state_before,
    step,
    step_gradients,
)


@triton.jit
def transposed_r(r, head, V: tl.constexpr, WIDE: tl.constexpr):
    """(addresses of R^T of a head [4 WIDE, WIDE]; which of them exist)."""
    j, k = tl.arange(0, 4 * WIDE), tl.arange(0, WIDE)
    at = r + (head * V + k)[None, :] * 4 * V + (j // WIDE * V + j % WIDE)[:, None]
    return at, (j % WIDE < V)[:, None] & (k < V)[None, :]


@triton.jit(do_not_specialize=["B", "T", "H"])
def forward_kernel(x, r, states, reset, lengths, B, T, H, V: tl.constexpr, WIDE: tl.constexpr,
                   ROWS: tl.constexpr, MIXING: tl.constexpr, RESETS: tl.constexpr, EXP_FORGET: tl.constexpr,
                   PRECISION: tl.constexpr, STAGES: tl.constexpr):  # fmt: skip
    """h of every step and the state after every step; beyond a row's length h is 0 and the rest stays."""
    here = block_of(B, H, V, WIDE, ROWS)
    head, b, v, real, there = here.head, here.b, here.v, here.row_there, here.there
    at, plane = states.first + ((b * H + head) * V)[None, :] + v[:, None], tl.cast(B, tl.int64) * H * V
    h_VB = tl.load(at, mask=there, other=0.0)
    c_VB, n_VB, m_VB = load_memory(at, plane, there)
    length, row = tl.load(lengths + b, mask=real, other=0), ((b * T * H + head) * V)[None, :]
    x_at = x + 4 * row + (here.gate * V + here.unit)[:, None]
    out_at = states.planes + row + (here.gate * plane * T + here.unit)[:, None]
    if MIXING:
        r_at, r_there = transposed_r(r, head, V, WIDE)
        r_JK = tl.load(r_at, mask=r_there, other=0.0)
    if RESETS:
        soon = tl.load(reset + b * T, mask=real, other=0)
    for t in tl.range(T, num_stages=STAGES):
        valid, past = (t < length)[None, :], tl.cast(t, tl.int64) * H * V
        raw_JB = tl.load(x_at + 4 * past, mask=here.all_there, other=0.0)
        if RESETS:
            new = (soon != 0)[None, :] & valid
            soon = tl.load(reset + b * T + t + 1, mask=real & (t + 1 < T), other=0)
            h_VB, c_VB = tl.where(new, 0.0, h_VB), tl.where(new, 0.0, c_VB)
            n_VB, m_VB = tl.where(new, 0.0, n_VB), tl.where(new, 0.0, m_VB)
        if MIXING:
            raw_JB = tl.dot(r_JK, h_VB.to(r.dtype.element_ty), acc=raw_JB, input_precision=PRECISION)
        i, f, z, o = split_gates(raw_JB, WIDE, ROWS)
        h_after, c_after, n_after, m_after = step(i, f, z, o, c_VB, n_VB, m_VB, EXP_FORGET)
        h_VB, c_VB = tl.where(valid, h_after, 0.0), tl.where(valid, c_after, c_VB)
        n_VB, m_VB = tl.where(valid, n_after, n_VB), tl.where(valid, m_after, m_VB)
        tl.store(out_at + past, join_gates(h_VB, c_VB, n_VB, m_VB, WIDE, ROWS), mask=here.all_there)


@triton.jit(do_not_specialize=["B", "T", "H"])
def backward_kernel(raw, r, states, reset, lengths, dh, dx, dstate, B, T, H, V: tl.constexpr,
                    WIDE: tl.constexpr, ROWS: tl.constexpr, MIXING: tl.constexpr, RESETS: tl.constexpr,
                    EXP_FORGET: tl.constexpr, PRECISION: tl.constexpr, STAGES: tl.constexpr):  # fmt: skip
    """The gradients of x and of the first h, c, n. raw: the gates of all steps before their activations."""
    here = block_of(B, H, V, WIDE, ROWS)
    head, b, v, real, there = here.head, here.b, here.v, here.row_there, here.there
    state_at = ((b * H + head) * V)[None, :] + v[:, None]
    dh_VB = tl.load(dstate.last_h + state_at, mask=there, other=0.0)
    dc_VB = tl.load(dstate.c + state_at, mask=there, other=0.0)
    dn_VB = tl.load(dstate.n + state_at, mask=there, other=0.0)
    length = tl.load(lengths + b, mask=real, other=0)
    row = ((b * T * H + head) * V)[None, :]
    x_at, dx_at, dh_at = 4 * row + v[:, None], 4 * row + (here.gate * V + here.unit)[:, None], row + v[:, None]
    if MIXING:
        r_at, r_there = transposed_r(r, head, V, WIDE)
        r_KJ = tl.load(tl.trans(r_at), mask=tl.trans(r_there), other=0.0)
    if RESETS:
        soon = tl.load(reset + b * T + T - 1, mask=real, other=0)
    for back in tl.range(T, num_stages=STAGES):
        t = T - 1 - back
        valid, past = (t < length)[None, :], tl.cast(t, tl.int64) * H * V
        # four loads, not one tile that is split: the compiler then keeps all of it in the layout of the product
        at = raw + 4 * past + x_at
        i, f = tl.load(at, mask=there, other=0.0), tl.load(at + V, mask=there, other=0.0)
        z, o = tl.load(at + 2 * V, mask=there, other=0.0), tl.load(at + 3 * V, mask=there, other=0.0)
        before, each, plane = state_before(t, states, B, T, H, V)
        before += head * V + ((b * each)[None, :] + v[:, None])
        c_VB, n_VB, m_VB = load_memory(before, plane, there)
        dh_t = dh_VB + tl.load(dh + past + dh_at, mask=there, other=0.0)
        new = valid & (t < 0)
        if RESETS:
            new = (soon != 0)[None, :] & valid
            soon = tl.load(reset + b * T + t - 1, mask=real & (t > 0), other=0)
            c_VB, n_VB, m_VB = tl.where(new, 0.0, c_VB), tl.where(new, 0.0, n_VB), tl.where(new, 0.0, m_VB)
        di, df, dz, do, dc_t, dn_t = step_gradients(i, f, z, o, c_VB, n_VB, m_VB, dh_t, dc_VB, dn_VB, EXP_FORGET)
        dx_JB = join_gates(
            tl.where(valid, di, 0.0), tl.where(valid, df, 0.0), tl.where(valid, dz, 0.0), tl.where(valid, do, 0.0),
            WIDE, ROWS,
        )  # fmt: skip
        tl.store(dx + 4 * past + dx_at, dx_JB, mask=here.all_there)
        dh_before = tl.zeros([WIDE, ROWS], tl.float32)
        if MIXING:
            dh_before = tl.dot(r_KJ, dx_JB.to(r.dtype.element_ty), input_precision=PRECISION)
        dh_VB = tl.where(valid, tl.where(new, 0.0, dh_before), dh_VB)
        dc_VB = tl.where(valid, tl.where(new, 0.0, dc_t), dc_VB)
        dn_VB = tl.where(valid, tl.where(new, 0.0, dn_t), dn_VB)
    tl.store(dstate.first_h + state_at, dh_VB, mask=there)
    tl.store(dstate.c + state_at, dc_VB, mask=there)
    tl.store(dstate.n + state_at, dn_VB, mask=there)
