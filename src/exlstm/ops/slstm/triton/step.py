# mypy: ignore-errors
"""One time step of the sLSTM on a GPU, for heads whose R no multiprocessor holds; launches are the barriers.

A program is some units of a head and some rows of the batch; it reads its part of R, block by block, in every step.
Tensors are those of `scan`. A program reads states that other programs wrote in the launch before, never in its own.

B rows of the batch  T time  H heads  V, K head width  J gates times units
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


@triton.jit(do_not_specialize=["t", "B", "T", "H"])
def forward_step(x, r, states, reset, lengths, t, B, T, H, V: tl.constexpr, UNITS: tl.constexpr,
                 ROWS: tl.constexpr, DEPTH: tl.constexpr, RESETS: tl.constexpr, EXP_FORGET: tl.constexpr,
                 PRECISION: tl.constexpr, STAGES: tl.constexpr):  # fmt: skip
    """h, c, n, m after step t."""
    here, k = block_of(B, H, V, UNITS, ROWS), tl.arange(0, DEPTH)
    head, b, v, real = here.head, here.b, here.v, here.row_there
    valid = t < tl.load(lengths + b, mask=real, other=0)
    # a state that a reset clears is not read
    seen = real
    if RESETS:
        seen = real & ((tl.load(reset + b * T + t, mask=real, other=0) == 0) | (valid == 0))
    there = (v < V)[:, None] & seen[None, :]
    before, each, plane = state_before(t, states, B, T, H, V)
    before += (b * each + head * V)[None, :]
    row = (((b * T + t) * H + head) * V)[None, :]
    raw_JB = tl.load(x + 4 * row + (here.gate * V + here.unit)[:, None], mask=here.all_there, other=0.0)
    r_at = r + (head * V + k)[None, :] * 4 * V + (here.gate * V + here.unit)[:, None]
    for past in tl.range(0, V, DEPTH, num_stages=STAGES):
        h_KB = tl.load(before + (past + k)[:, None], mask=(past + k < V)[:, None] & seen[None, :], other=0.0)
        r_JK = tl.load(r_at + past * 4 * V, mask=(here.unit < V)[:, None] & (past + k < V)[None, :], other=0.0)
        raw_JB = tl.dot(r_JK, h_KB.to(r.dtype.element_ty), acc=raw_JB, input_precision=PRECISION)
    i, f, z, o = split_gates(raw_JB, UNITS, ROWS)
    c_VB, n_VB, m_VB = load_memory(before + v[:, None], plane, there)
    valid = valid[None, :]
    h_after, c_after, n_after, m_after = step(i, f, z, o, c_VB, n_VB, m_VB, EXP_FORGET)
    c_VB, n_VB = tl.where(valid, c_after, c_VB), tl.where(valid, n_after, n_VB)
    out_JB = join_gates(tl.where(valid, h_after, 0.0), c_VB, n_VB, tl.where(valid, m_after, m_VB), UNITS, ROWS)
    out_at = states.planes + row + (here.gate * (tl.cast(B, tl.int64) * T * H * V) + here.unit)[:, None]
    tl.store(out_at, out_JB, mask=here.all_there)


@triton.jit(do_not_specialize=["t", "B", "T", "H"])
def backward_step(raw, r, states, reset, lengths, dh, dx, dstate, t, B, T, H, V: tl.constexpr,
                  UNITS: tl.constexpr, ROWS: tl.constexpr, DEPTH: tl.constexpr, RESETS: tl.constexpr,
                  EXP_FORGET: tl.constexpr, PRECISION: tl.constexpr, STAGES: tl.constexpr):  # fmt: skip
    """The gradient of x at step t, from that at step t + 1; for t = -1 the gradient of the first h."""
    here, q = block_of(B, H, V, UNITS, ROWS), tl.arange(0, DEPTH)
    head, b, v, real, there = here.head, here.b, here.v, here.row_there, here.there
    length = tl.load(lengths + b, mask=real, other=0)
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
    dh_VB = tl.where(later[None, :], dh_VB, tl.load(dstate.last_h + state_at, mask=there, other=0.0))
    if t < 0:
        tl.store(dstate.first_h + state_at, dh_VB, mask=there)
    else:
        valid, fresh = (t < length)[None, :], real & (t < 0)
        if RESETS:
            fresh = (t < length) & (tl.load(reset + b * T + t, mask=real, other=0) != 0)
        gates_at = 4 * row + (here.gate * V + here.unit)[:, None]
        before, each, plane = state_before(t, states, B, T, H, V)
        at, seen = before + (b * each + head * V)[None, :] + v[:, None], there & (fresh == 0)[None, :]
        c_VB, n_VB, m_VB = load_memory(at, plane, seen)
        raw_JB = tl.load(raw + gates_at, mask=here.all_there, other=0.0)
        i, f, z, o = split_gates(raw_JB, UNITS, ROWS)
        dh_VB += tl.load(dh + row + v[:, None], mask=there, other=0.0)
        dc_VB = tl.load(dstate.c + state_at, mask=there, other=0.0)
        dn_VB = tl.load(dstate.n + state_at, mask=there, other=0.0)
        di, df, dz, do, dc_t, dn_t = step_gradients(i, f, z, o, c_VB, n_VB, m_VB, dh_VB, dc_VB, dn_VB, EXP_FORGET)
        dx_JB = tl.where(valid, join_gates(di, df, dz, do, UNITS, ROWS), 0.0)
        tl.store(dx + gates_at, dx_JB, mask=here.all_there)
        dc_t, dn_t = tl.where(fresh[None, :], 0.0, dc_t), tl.where(fresh[None, :], 0.0, dn_t)
        tl.store(dstate.c + state_at, tl.where(valid, dc_t, dc_VB), mask=there)
        tl.store(dstate.n + state_at, tl.where(valid, dn_t, dn_VB), mask=there)
