# mypy: ignore-errors
# a page of Triton's language: Python in looks, with types of its own
"""One time step of the sLSTM on a GPU, for heads whose R no multiprocessor holds: a launch per step is the barrier.

A program is some units of a head and some rows of the batch; it reads its part of R, block by block, in every step.
Tensors are those of `triton_scan`. A step reads what another wrote in the launch before, never in its own.

B rows of the batch  T time  H heads  V, K head width  J gates times units
"""

import triton
import triton.language as tl

from exlstm.ops.slstm.triton.cell import apart, state_before, step, step_gradients, together


@triton.jit(do_not_specialize=["t", "B", "T", "H"])
def forward_step(x, r, first, reset, lengths, planes, t, B, T, H, V: tl.constexpr, UNITS: tl.constexpr,
                 ROWS: tl.constexpr, DEPTH: tl.constexpr, RESETS: tl.constexpr, EXP_FORGET: tl.constexpr,
                 PRECISION: tl.constexpr, STAGES: tl.constexpr):  # fmt: skip
    """h, c, n, m after step t."""
    head, unit = tl.program_id(0) % H, tl.program_id(0) // H * UNITS
    b, v, j = tl.program_id(1) * ROWS + tl.arange(0, ROWS), unit + tl.arange(0, UNITS), tl.arange(0, 4 * UNITS)
    real, gate, j, k = b < B, j // UNITS, unit + j % UNITS, tl.arange(0, DEPTH)
    valid, b = t < tl.load(lengths + b, mask=real, other=0), b.to(tl.int64)
    # what a reset clears is not read
    seen = real
    if RESETS:
        seen = real & ((tl.load(reset + b * T + t, mask=real, other=0) == 0) | (valid == 0))
    all_there, there = (j < V)[:, None] & real[None, :], (v < V)[:, None] & seen[None, :]
    before, each, plane = state_before(t, first, planes, B, T, H, V)
    before += (b * each + head * V)[None, :]
    row = (((b * T + t) * H + head) * V)[None, :]
    raw_JB = tl.load(x + 4 * row + (gate * V + j)[:, None], mask=all_there, other=0.0)
    r_at = r + (head * V + k)[None, :] * 4 * V + (gate * V + j)[:, None]
    for past in tl.range(0, V, DEPTH, num_stages=STAGES):
        h_KB = tl.load(before + (past + k)[:, None], mask=(past + k < V)[:, None] & seen[None, :], other=0.0)
        r_JK = tl.load(r_at + past * 4 * V, mask=(j < V)[:, None] & (past + k < V)[None, :], other=0.0)
        raw_JB = tl.dot(r_JK, h_KB.to(r.dtype.element_ty), acc=raw_JB, input_precision=PRECISION)
    i, f, z, o = apart(raw_JB, UNITS, ROWS)
    c_at = before + plane + v[:, None]
    c_VB, n_VB = tl.load(c_at, mask=there, other=0.0), tl.load(c_at + plane, mask=there, other=0.0)
    m_VB, valid = tl.load(c_at + 2 * plane, mask=there, other=0.0), valid[None, :]
    h_after, c_after, n_after, m_after = step(i, f, z, o, c_VB, n_VB, m_VB, EXP_FORGET)
    c_VB, n_VB = tl.where(valid, c_after, c_VB), tl.where(valid, n_after, n_VB)
    out_JB = together(tl.where(valid, h_after, 0.0), c_VB, n_VB, tl.where(valid, m_after, m_VB), UNITS, ROWS)
    out_at = planes + row + (gate * (tl.cast(B, tl.int64) * T * H * V) + j)[:, None]
    tl.store(out_at, out_JB, mask=all_there)


@triton.jit(do_not_specialize=["t", "B", "T", "H"])
def backward_step(raw, r, first, reset, lengths, planes, dh, dh1, dx, dh0, dc, dn, t, B, T, H, V: tl.constexpr,
                  UNITS: tl.constexpr, ROWS: tl.constexpr, DEPTH: tl.constexpr, RESETS: tl.constexpr,
                  EXP_FORGET: tl.constexpr, PRECISION: tl.constexpr, STAGES: tl.constexpr):  # fmt: skip
    """The gradient of x at step t, from that at step t + 1; for t = -1 the gradient of the first h."""
    head, unit = tl.program_id(0) % H, tl.program_id(0) // H * UNITS
    b, v, j = tl.program_id(1) * ROWS + tl.arange(0, ROWS), unit + tl.arange(0, UNITS), tl.arange(0, 4 * UNITS)
    real, gate, j, q = b < B, j // UNITS, unit + j % UNITS, tl.arange(0, DEPTH)
    length, b = tl.load(lengths + b, mask=real, other=0), b.to(tl.int64)
    there, all_there = (v < V)[:, None] & real[None, :], (j < V)[:, None] & real[None, :]
    state_at, row = ((b * H + head) * V)[None, :] + v[:, None], (((b * T + t) * H + head) * V)[None, :]
    later = real & (t + 1 < length)
    mixed = later
    if RESETS:
        mixed = later & (tl.load(reset + b * T + t + 1, mask=later, other=0) == 0)
    dh_VB = tl.zeros([UNITS, ROWS], tl.float32)
    r_at = r + (head * V + v)[:, None] * 4 * V + q[None, :]
    for past in tl.range(0, 4 * V, DEPTH, num_stages=STAGES):
        inside = past + q < 4 * V
        dx_QB = tl.load(dx + 4 * (row + H * V) + (past + q)[:, None], mask=inside[:, None] & mixed[None, :], other=0.0)
        r_VQ = tl.load(r_at + past, mask=(v < V)[:, None] & inside[None, :], other=0.0)
        dh_VB = tl.dot(r_VQ, dx_QB.to(r.dtype.element_ty), acc=dh_VB, input_precision=PRECISION)
    dh_VB = tl.where(later[None, :], dh_VB, tl.load(dh1 + state_at, mask=there, other=0.0))
    if t < 0:
        tl.store(dh0 + state_at, dh_VB, mask=there)
    else:
        valid, fresh = (t < length)[None, :], real & (t < 0)
        if RESETS:
            fresh = (t < length) & (tl.load(reset + b * T + t, mask=real, other=0) != 0)
        before, each, plane = state_before(t, first, planes, B, T, H, V)
        c_at, seen = before + plane + (b * each + head * V)[None, :] + v[:, None], there & (fresh == 0)[None, :]
        c_VB, n_VB = tl.load(c_at, mask=seen, other=0.0), tl.load(c_at + plane, mask=seen, other=0.0)
        m_VB = tl.load(c_at + 2 * plane, mask=seen, other=0.0)
        i, f, z, o = apart(tl.load(raw + 4 * row + (gate * V + j)[:, None], mask=all_there, other=0.0), UNITS, ROWS)
        dh_VB += tl.load(dh + row + v[:, None], mask=there, other=0.0)
        dc_VB, dn_VB = tl.load(dc + state_at, mask=there, other=0.0), tl.load(dn + state_at, mask=there, other=0.0)
        di, df, dz, do, dc_t, dn_t = step_gradients(i, f, z, o, c_VB, n_VB, m_VB, dh_VB, dc_VB, dn_VB, EXP_FORGET)
        dx_JB = tl.where(valid, together(di, df, dz, do, UNITS, ROWS), 0.0)
        tl.store(dx + 4 * row + (gate * V + j)[:, None], dx_JB, mask=all_there)
        dc_t, dn_t = tl.where(fresh[None, :], 0.0, dc_t), tl.where(fresh[None, :], 0.0, dn_t)
        tl.store(dc + state_at, tl.where(valid, dc_t, dc_VB), mask=there)
        tl.store(dn + state_at, tl.where(valid, dn_t, dn_VB), mask=there)
