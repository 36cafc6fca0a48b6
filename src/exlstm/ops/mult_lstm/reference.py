"""Multiplicative LSTM, the definition (Krause et al. 2016, arXiv:1609.07959, section 3).

    m_t = p_t * (M h_{t-1})                                 p_t = W_p x_t
    (i, f, z, o)_t = x_t + R m_t                            x_t = W x_t + b; both are computed outside
    c_t = sigmoid(f) c_{t-1} + sigmoid(i) tanh(z) ,  h_t = sigmoid(o) tanh(c_t)

The input chooses, by p, another recurrent matrix R diag(p) M for every step. M and R are block-diagonal, one block per
head; one head is the published, dense form.

B batch  T time  H heads  V head width, of rows  K head width, of columns (the same number)  G gates: i, f, z, o
"""

from typing import NamedTuple

import torch
from torch import Tensor

from exlstm.ops.common import upcast
from exlstm.ops.fused import recurrent_product
from exlstm.ops.steps import run_steps


class MultLSTMState(NamedTuple):
    """The memory after a step, batch first, float32 or wider."""

    h_BHV: Tensor
    c_BHV: Tensor


def mult_lstm_step(
    p_BHV: Tensor, x_BGHV: Tensor, m_HVK: Tensor, r_GHVK: Tensor, state: MultLSTMState, /
) -> tuple[Tensor, MultLSTMState]:
    """One time step, computed wide."""
    p_BHV, x_BGHV = upcast(p_BHV), upcast(x_BGHV)
    h_BHV = state.h_BHV
    mixed_BHV = p_BHV * recurrent_product(h_BHV.flatten(1), m_HVK.flatten(0, 1)).view_as(p_BHV)
    raw_BGHV = x_BGHV + recurrent_product(mixed_BHV.flatten(1), r_GHVK.flatten(0, 2)).view_as(x_BGHV)
    i_BHV, f_BHV, z_BHV, o_BHV = raw_BGHV.unbind(1)
    c_BHV = torch.sigmoid(f_BHV) * state.c_BHV + torch.sigmoid(i_BHV) * torch.tanh(z_BHV)
    h_BHV = torch.sigmoid(o_BHV) * torch.tanh(c_BHV)
    return h_BHV, MultLSTMState(h_BHV, c_BHV)


def mult_lstm_recurrent(
    p_BTHV: Tensor,
    x_BTGHV: Tensor,
    m_HVK: Tensor,
    r_GHVK: Tensor,
    state: MultLSTMState,
    /,
    *,
    reset_BT: Tensor | None,
    valid_BT: Tensor | None,
) -> tuple[Tensor, MultLSTMState]:
    """The definition, one step after another. Where valid_BT is False nothing happens and h = 0."""

    def step(p_BHV: Tensor, x_BGHV: Tensor, before: MultLSTMState) -> tuple[Tensor, MultLSTMState]:
        return mult_lstm_step(p_BHV, x_BGHV, m_HVK, r_GHVK, before)

    return run_steps(step, [p_BTHV, x_BTGHV], state, reset_BT=reset_BT, valid_BT=valid_BT)
