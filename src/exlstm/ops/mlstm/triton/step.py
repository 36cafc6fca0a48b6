# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"
# kernels are Python in looks, with types of their own
"""One time step of the mLSTM on a GPU, for decoding: one kernel, one pass over the memory.

A program is a head of a row and a block of V. It works out the gates and n for itself, which is little, reads its part
of C once, writes it once, and sums the read-out on the way. The host waits for nothing, so that a graph can hold it.

B batch  T time (one step)  H heads  M rows and heads merged  K key width  V value width
"""

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from exlstm.ops.common import wide
from exlstm.ops.mlstm.reference import InputGate, MLSTMState
from exlstm.runtime.gpu.math import log_sigmoid
from exlstm.runtime.gpu.operator import operator

ENOUGH = 512  # programs: some for each of the hundred or so multiprocessors of a large GPU
TILE = 4096  # numbers of C that a program holds at a time: 32 for each of its threads, all of them on their way at once


@triton.jit
def exponential(x):
    """e^x. Of x / log 2, of which the hardware takes the power of two, rounding would leave |x| times its error."""
    # what is beyond is 0 or infinite in float32; NaN stays
    x = tl.where(x < -150.0, -150.0, tl.where(x > 150.0, 150.0, x))
    n = tl.floor(x * 1.4426950408889634 + 0.5)
    return tl.exp((x - n * 0.693359375) + n * 2.12194440e-4) * tl.exp2(n)


@triton.jit
def larger(x, y):
    """The larger of two, or NaN if there is one."""
    return tl.maximum(x, y, propagate_nan=tl.PropagateNan.ALL)


@triton.jit(do_not_specialize=["H"])
def step_kernel(q, k, v, i, f, reset, c0, n0, m0, c1, n1, m1, h, H, q_b, q_h, q_k, k_b, k_h, k_k, v_b, v_h, v_v, i_b,
                i_h, f_b, f_h, reset_b, scale, eps, K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr,
                BV: tl.constexpr, EXP_GATE: tl.constexpr, NORMALIZE: tl.constexpr, RESETS: tl.constexpr):  # fmt: skip
    """q, k, v, i, f and reset in their own strides (*_b, *_h, and along the width), the rest contiguous.

    c0, n0, m0: the state, float32; c1, n1, m1: the one afterwards. h: [B, H, V].
    """
    merged, part = (tl.program_id(0) // tl.cdiv(V, BV)).to(tl.int64), tl.program_id(0) % tl.cdiv(V, BV)
    row, head = merged // H, merged % H
    log_i = tl.load(i + row * i_b + head * i_h).to(tl.float32)
    raw_f, m_before = tl.load(f + row * f_b + head * f_h).to(tl.float32), tl.load(m0 + merged)
    log_f = log_sigmoid(raw_f, exponential(-tl.abs(raw_f)))
    fresh = tl.full([], False, tl.int1)
    if RESETS:
        fresh = tl.load(reset + row * reset_b) != 0
        m_before = tl.where(fresh, 0.0, m_before)
    kept, m = log_f + m_before, tl.full([], 0.0, tl.float32)
    if EXP_GATE:
        m = larger(kept, log_i)
    else:
        log_i = log_sigmoid(log_i, exponential(-tl.abs(log_i)))
    decay, write = exponential(kept - m), exponential(log_i - m)
    column = part * BV + tl.arange(0, BV)
    v_V = tl.load(v + row * v_b + head * v_h + column * v_v, mask=column < V, other=0.0).to(tl.float32)
    total, mass = tl.zeros([BV], tl.float32), tl.zeros([BK], tl.float32)
    for first in range(0, K, BK):
        line = first + tl.arange(0, BK)
        there = line < K
        q_K = tl.load(q + row * q_b + head * q_h + line * q_k, mask=there, other=0.0).to(tl.float32) * scale
        k_K = tl.load(k + row * k_b + head * k_h + line * k_k, mask=there, other=0.0).to(tl.float32) * write
        n_K = tl.load(n0 + merged * K + line, mask=there, other=0.0)
        at, inside = merged * K * V + line[:, None] * V + column[None, :], there[:, None] & (column < V)[None, :]
        c_KV = tl.load(c0 + at, mask=inside, other=0.0)
        if RESETS:
            # what is forgotten may be infinite, so it is not multiplied by zero
            n_K, c_KV = tl.where(fresh, 0.0, n_K), tl.where(fresh, 0.0, c_KV)
        n_K, c_KV = decay * n_K + k_K, decay * c_KV + k_K[:, None] * v_V[None, :]
        total, mass = total + tl.sum(q_K[:, None] * c_KV, 0), mass + q_K * n_K
        tl.store(c1 + at, c_KV, mask=inside)
        tl.store(n1 + merged * K + line, n_K, mask=there & (part == 0))
    norm = exponential(-m)
    if NORMALIZE:
        norm = larger(tl.abs(tl.sum(mass, 0)), norm) + eps
    tl.store(h + merged * V + column, (total / norm).to(h.dtype.element_ty), mask=column < V)
    tl.store(m1 + merged, m, mask=part == 0)


def blocks(M: int, K: int, V: int) -> tuple[int, int]:
    """(BK, BV), powers of two: V is cut finely enough that all of a GPU has work, and no finer than 16."""
    BV = min(64, max(16, int(triton.next_power_of_2(V))))
    while BV > 16 and M * triton.cdiv(V, BV) < ENOUGH:
        BV //= 2
    return min(TILE // BV, int(triton.next_power_of_2(K))), BV


def step(q_BTHK: Tensor, k_BTHK: Tensor, v_BTHV: Tensor, i_BTH: Tensor, f_BTH: Tensor, c_BHKV: Tensor, n_BHK: Tensor,
         m_BH: Tensor, reset_BT: Tensor | None, exp_gate: bool, normalize: bool, eps: float
         ) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """h and the state afterwards."""
    B, H, K, V = c_BHKV.shape
    before = [x.contiguous() for x in (c_BHKV, n_BHK, m_BH)]
    h_BTHV, c, n, m = fake_step(q_BTHK, k_BTHK, v_BTHV, i_BTH, f_BTH, *before)
    reset_BT, resets = (i_BTH[..., 0], False) if reset_BT is None else (reset_BT, True)
    BK, BV = blocks(B * H, K, V)
    step_kernel[B * H * triton.cdiv(V, BV),](
        q_BTHK, k_BTHK, v_BTHV, i_BTH, f_BTH, reset_BT, *before, c, n, m, h_BTHV, H,
        *(x.stride(axis) for x in (q_BTHK, k_BTHK, v_BTHV) for axis in (0, 2, 3)),
        *(x.stride(axis) for x in (i_BTH, f_BTH) for axis in (0, 2)), reset_BT.stride(0), K**-0.5, eps,
        K=K, V=V, BK=BK, BV=BV, EXP_GATE=exp_gate, NORMALIZE=normalize, RESETS=resets,
    )  # fmt: skip
    return h_BTHV, c, n, m


def fake_step(q_BTHK: Tensor, k_BTHK: Tensor, v_BTHV: Tensor, i_BTH: Tensor, f_BTH: Tensor, c_BHKV: Tensor,
              n_BHK: Tensor, m_BH: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """What `step` fills."""
    after = (x.new_empty(x.shape) for x in (c_BHKV, n_BHK, m_BH))
    return q_BTHK.new_empty(v_BTHV.shape), *after  # type: ignore[return-value]


run_step = operator(
    "mlstm_step(Tensor q, Tensor k, Tensor v, Tensor i, Tensor f, Tensor c, Tensor n, Tensor m, Tensor? reset, "
    "bool exp_gate, bool normalize, float eps) -> (Tensor, Tensor, Tensor, Tensor)", step, fake_step,
)  # fmt: skip


def mlstm_triton_step(
    q_BTHK: Tensor, k_BTHK: Tensor, v_BTHV: Tensor, i_BTH: Tensor, f_BTH: Tensor, state: MLSTMState, /,
    *, reset_BT: Tensor | None = None, input_gate: InputGate = "exp", normalize: bool = True, eps: float = 1e-6,
) -> tuple[Tensor, MLSTMState]:  # fmt: skip
    """The numbers of `mlstm_recurrent` for T = 1, without gradients, in float32; h is returned in the dtype of q."""
    h_BTHV, *after = run_step(
        q_BTHK, k_BTHK, v_BTHV, i_BTH, f_BTH, *map(wide, state), reset_BT, input_gate == "exp", normalize, eps
    )
    return h_BTHV, MLSTMState(*after)
