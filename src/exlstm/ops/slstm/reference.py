"""sLSTM, the definition: a scalar memory with exponential gates and memory mixing (Beck et al. 2024, eqs 8-17).

    (i~, f~, z~, o~)_t = x_t + h_{t-1} R                         x_t = W x + b is computed outside
    m_t = max(log f_t + m_{t-1}, i~_t),  or i~_t for an element that has seen nothing yet (n = 0)
    c_t = exp(log f_t + m_{t-1} - m_t) c_{t-1} + exp(i~_t - m_t) phi(z~_t)
    n_t = exp(log f_t + m_{t-1} - m_t) n_{t-1} + exp(i~_t - m_t)
    h_t = sigmoid(o~_t) c_t / n_t

log f is log sigmoid(f~), or f~ itself for the exponential forget gate; phi is tanh by default. R is block-diagonal,
one block per head. After an element's first step n >= 1, so the division is safe without an eps.
Another input gate of `ops.gates` takes the place of i~ by its logarithm. A ReLU that is shut has log i = -1000: nothing
next to anything written. Where nothing has been written yet, all steps so far count alike, and the first h is
sigmoid(o~) phi(z~) at any gate. Without the normaliser h_t = sigmoid(o~_t) c_t exp(m_t), which is 0 there.
m is a unit of measure, as in the mLSTM: no gradient passes through it, in or out, and none is missing for that.

B batch  T time  H heads  K head width (of h_{t-1})  V head width (the same number)  G gates: i, f, z, o
"""

from collections.abc import Callable
from functools import partial
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import gelu, silu, softsign

from exlstm.ops.common import upcast, wide_dtype
from exlstm.ops.gates import ForgetGate, InputGate, log_forget_gate, log_input_gate
from exlstm.ops.steps import run_steps

SHUT = -1000.0  # log i of a ReLU that is shut; not -inf, for n = 0 would then have nothing to be divided by
CellActivation = Literal["tanh", "identity", "silu", "gelu", "sin", "softsign"]
CELL_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "identity": lambda z: z,
    "silu": silu,
    "gelu": gelu,
    "sin": torch.sin,
    "softsign": softsign,
}


class SLSTMState(NamedTuple):
    """The memory after a step, batch first, float32 or wider."""

    h_BHV: Tensor
    c_BHV: Tensor
    n_BHV: Tensor
    m_BHV: Tensor


def zero_state(x_BTHGV: Tensor, /) -> SLSTMState:
    """Nothing seen yet, for inputs like this."""
    B, _, H, _, V = x_BTHGV.shape
    zeros = x_BTHGV.new_zeros((), dtype=wide_dtype(x_BTHGV.dtype)).new_zeros
    return SLSTMState(*(zeros(B, H, V) for _ in range(4)))


def slstm_step(
    x_BHGV: Tensor, r_HKGV: Tensor | None, state: SLSTMState, /,
    *, input_gate: InputGate = "exp", forget_gate: ForgetGate = "sigmoid", cell_activation: CellActivation = "tanh",
    normalize: bool = True,
) -> tuple[Tensor, SLSTMState]:  # fmt: skip
    """One time step: the definition. Computed wide; r_HKGV=None leaves out the memory mixing."""
    raw_BHGV = upcast(x_BHGV)
    if r_HKGV is not None:
        raw_BHGV = raw_BHGV + torch.einsum("bhk,hkgv->bhgv", state.h_BHV, upcast(r_HKGV))
    i_BHV, f_BHV, z_BHV, o_BHV = raw_BHGV.unbind(2)
    log_i_BHV = log_input_gate(i_BHV, input_gate, SHUT)
    decayed_BHV = log_forget_gate(f_BHV, forget_gate) + state.m_BHV.detach()
    m_BHV = torch.where(state.n_BHV == 0, log_i_BHV, torch.maximum(decayed_BHV, log_i_BHV)).detach()
    # positive only where the memory is empty, n = 0: there it would be inf * 0. Not clamped, for at a tie, which is
    # wherever m comes from the old memory, torch has given clamp the gradient 1 and from 2.14 on 1/2
    difference_BHV = decayed_BHV - m_BHV
    decay_BHV = torch.exp(difference_BHV.masked_fill(difference_BHV > 0, 0))
    write_BHV = torch.exp(log_i_BHV - m_BHV)
    c_BHV = decay_BHV * state.c_BHV + write_BHV * CELL_ACTIVATIONS[cell_activation](z_BHV)
    n_BHV = decay_BHV * state.n_BHV + write_BHV
    h_BHV = torch.sigmoid(o_BHV) * (c_BHV / n_BHV if normalize else c_BHV * torch.exp(m_BHV))
    return h_BHV, SLSTMState(h_BHV, c_BHV, n_BHV, m_BHV)


def slstm_recurrent(
    x_BTHGV: Tensor, r_HKGV: Tensor | None, state: SLSTMState, /,
    *, reset_BT: Tensor | None = None, valid_BT: Tensor | None = None, input_gate: InputGate = "exp",
    forget_gate: ForgetGate = "sigmoid", cell_activation: CellActivation = "tanh", normalize: bool = True,
) -> tuple[Tensor, SLSTMState]:  # fmt: skip
    """The definition, one step after another, in plain torch. Where valid_BT is False nothing happens and h = 0."""
    step = partial(
        slstm_step, input_gate=input_gate, forget_gate=forget_gate, cell_activation=cell_activation, normalize=normalize
    )
    before = state._replace(m_BHV=state.m_BHV.detach())
    h_BTHV, after = run_steps(
        lambda x_BHGV, state: step(x_BHGV, r_HKGV, state), [x_BTHGV], before, reset_BT=reset_BT, valid_BT=valid_BT
    )
    return h_BTHV.to(x_BTHGV.dtype), after
