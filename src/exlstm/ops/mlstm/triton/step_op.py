"""The mLSTM's step for decoding as an operator of torch; the host waits for nothing, so that a CUDA graph can hold it.

B batch  T time (one step)  H heads  M rows and heads merged  K key width  V value width
"""

from typing import Any

import triton
from torch import Tensor

from exlstm.ops.common import upcast
from exlstm.ops.mlstm.reference import InputGate, MLSTMState
from exlstm.ops.mlstm.triton.step import Scalars, State, Vectors, step_kernel
from exlstm.runtime.gpu.operator import operator

MIN_PROGRAMS = 512  # some for each of the hundred or so multiprocessors of a large GPU
BLOCK_NUMEL = 4096  # of C, held by a program at a time: 32 for each of its threads, all of them loaded at once


def blocks(M: int, K: int, V: int) -> tuple[int, int]:
    """(BK, BV), powers of two: V is cut finely enough that all of a GPU has work, and no finer than 16."""
    BV = min(64, max(16, int(triton.next_power_of_2(V))))
    while BV > 16 and M * triton.cdiv(V, BV) < MIN_PROGRAMS:
        BV //= 2
    return min(BLOCK_NUMEL // BV, int(triton.next_power_of_2(K))), BV


def step(q_BTHK: Tensor, k_BTHK: Tensor, v_BTHV: Tensor, i_BTH: Tensor, f_BTH: Tensor, c_BHKV: Tensor, n_BHK: Tensor,
         m_BH: Tensor, reset_BT: Tensor | None, exp_gate: bool, normalize: bool, eps: float
         ) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """h and the state afterwards."""
    B, H, K, V = c_BHKV.shape
    before = [x.contiguous() for x in (c_BHKV, n_BHK, m_BH)]
    h_BTHV, c, n, m = fake_step(q_BTHK, k_BTHK, v_BTHV, i_BTH, f_BTH, *before)
    reset_BT, resets = (i_BTH[..., 0], False) if reset_BT is None else (reset_BT, True)
    BK, BV = blocks(B * H, K, V)
    qkv = (Vectors(x, x.stride(0), x.stride(2), x.stride(3)) for x in (q_BTHK, k_BTHK, v_BTHV))
    gates = (Scalars(x, x.stride(0), x.stride(2)) for x in (i_BTH, f_BTH))
    step_kernel[B * H * triton.cdiv(V, BV),](
        *qkv, *gates, reset_BT, reset_BT.stride(0), State(*before), State(c, n, m), h_BTHV, H, K**-0.5, eps,
        K=K, V=V, BK=BK, BV=BV, EXP_GATE=exp_gate, NORMALIZE=normalize, RESETS=resets,
    )  # fmt: skip
    return h_BTHV, c, n, m


def fake_step(q_BTHK: Tensor, k_BTHK: Tensor, v_BTHV: Tensor, i_BTH: Tensor, f_BTH: Tensor, c_BHKV: Tensor,
              n_BHK: Tensor, m_BH: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """The shapes of `step`."""
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
        q_BTHK, k_BTHK, v_BTHV, i_BTH, f_BTH, *map(upcast, state), reset_BT, input_gate == "exp", normalize, eps
    )
    return h_BTHV, MLSTMState(*after)
