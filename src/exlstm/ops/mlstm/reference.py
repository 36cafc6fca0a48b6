"""mLSTM, the definition: a matrix memory with exponential gates (Beck et al. 2024, eqs 19-27).

    m_t = max(log f_t + m_{t-1},  log i_t)                       stabiliser
    C_t = exp(log f_t + m_{t-1} - m_t) C_{t-1} + exp(log i_t - m_t) k_t v_t^T      memory
    n_t = exp(log f_t + m_{t-1} - m_t) n_{t-1} + exp(log i_t - m_t) k_t            normaliser
    h_t = C_t^T q_t / (max(|n_t . q_t|, exp(-m_t)) + eps)        with q_t scaled by K^-1/2

f is the sigmoid of its pre-activation (or its exponential), i its exponential (or another gate of `ops.gates`). Two
sigmoids are mLSTMsig: then m = 0, for no exponent is positive. A gate that is shut has log i = -inf and writes nothing.
m is a unit of measure: the memory's true value is C exp(m). Any m gives the same h, so no gradient
passes through m, neither in nor out, and the gradient of h is complete all the same. (Only eps,
which is added in the unit m, sees m at all.)

B batch  T time  H heads  K key width  V value width
"""

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from exlstm.ops.common import upcast, wide_dtype
from exlstm.ops.gates import ForgetGate, log_forget_gate, log_input_gate
from exlstm.ops.gates import InputGate as InputGate
from exlstm.ops.steps import run_steps


class MLSTMState(NamedTuple):
    """The memory after a step, batch first, float32 or wider; k is stored unscaled."""

    c_BHKV: Tensor
    n_BHK: Tensor
    m_BH: Tensor


def zero_state(k_BTHK: Tensor, v_BTHV: Tensor, /) -> MLSTMState:
    """Nothing seen yet, for inputs like these."""
    B, _, H, K = k_BTHK.shape
    zeros = k_BTHK.new_zeros((), dtype=wide_dtype(k_BTHK.dtype)).new_zeros
    return MLSTMState(zeros(B, H, K, v_BTHV.shape[-1]), zeros(B, H, K), zeros(B, H))


def log_gates(
    i: Tensor, f: Tensor, input_gate: InputGate, forget_gate: ForgetGate = "sigmoid"
) -> tuple[Tensor, Tensor]:
    """(log i, log f) of the pre-activations, wide."""
    return log_input_gate(upcast(i), input_gate, -torch.inf), log_forget_gate(upcast(f), forget_gate)


def needs_unit(input_gate: InputGate, forget_gate: ForgetGate) -> bool:
    """Whether a gate may exceed one, so that the memory needs a stabiliser."""
    return input_gate != "sigmoid" or forget_gate != "sigmoid"


def mlstm_step(
    q_BHK: Tensor, k_BHK: Tensor, v_BHV: Tensor, i_BH: Tensor, f_BH: Tensor, state: MLSTMState, /,
    *, input_gate: InputGate = "exp", forget_gate: ForgetGate = "sigmoid", normalize: bool = True, eps: float = 1e-6,
) -> tuple[Tensor, MLSTMState]:  # fmt: skip
    """One time step: the definition. Computed wide; h_BHV is returned in the dtype of q."""
    log_i_BH, log_f_BH = log_gates(i_BH, f_BH, input_gate, forget_gate)
    q_BHK, k_BHK, v_BHV, dtype = upcast(q_BHK) * q_BHK.shape[-1] ** -0.5, upcast(k_BHK), upcast(v_BHV), q_BHK.dtype
    m0_BH = state.m_BH.detach()
    m_BH = torch.zeros_like(m0_BH)
    if needs_unit(input_gate, forget_gate):
        m_BH = torch.maximum(log_f_BH + m0_BH, log_i_BH).detach()
    decay_BH, write_BH = torch.exp(log_f_BH + m0_BH - m_BH), torch.exp(log_i_BH - m_BH)
    c_BHKV = decay_BH[..., None, None] * state.c_BHKV + (write_BH[..., None] * k_BHK)[..., None] * v_BHV[..., None, :]
    n_BHK = decay_BH[..., None] * state.n_BHK + write_BH[..., None] * k_BHK
    norm_BH = torch.exp(-m_BH)
    if normalize:
        norm_BH = torch.maximum((q_BHK * n_BHK).sum(-1).abs(), norm_BH) + eps
    h_BHV = (q_BHK[..., None, :] @ c_BHKV)[..., 0, :] / norm_BH[..., None]
    return h_BHV.to(dtype), MLSTMState(c_BHKV, n_BHK, m_BH)


def mlstm_recurrent(
    q_BTHK: Tensor, k_BTHK: Tensor, v_BTHV: Tensor, i_BTH: Tensor, f_BTH: Tensor, state: MLSTMState, /,
    *, reset_BT: Tensor | None = None, input_gate: InputGate = "exp", forget_gate: ForgetGate = "sigmoid",
    normalize: bool = True, eps: float = 1e-6,
) -> tuple[Tensor, MLSTMState]:  # fmt: skip
    """The definition, one step after another. reset_BT clears a row's state before that step."""
    step = partial(mlstm_step, input_gate=input_gate, forget_gate=forget_gate, normalize=normalize, eps=eps)
    return run_steps(step, [q_BTHK, k_BTHK, v_BTHV, i_BTH, f_BTH], state, reset_BT=reset_BT)
