"""The LSTM, the definition (Hochreiter & Schmidhuber 1997; paper eqs 28-33).

    (i, f, g, o)_t = W x_t + U h_{t-1} + b
    c_t = sigmoid(f) c_{t-1} + sigmoid(i) tanh(g) ,  h_t = sigmoid(o) tanh(c_t)

B batch  D input width  V hidden width  K hidden width of a head  G the four gates' rows (4 V)
"""

from typing import NamedTuple

import torch
from torch import Tensor

from exlstm.ops.common import upcast
from exlstm.ops.fused import recurrent_product
from exlstm.ops.linear import linears


class LSTMState(NamedTuple):
    """The memory after a step, batch first, float32 or wider."""

    h_BV: Tensor
    c_BV: Tensor


def lstm_step(x_BD: Tensor, w_GD: Tensor, u_GK: Tensor, b_G: Tensor, state: LSTMState, /) -> tuple[Tensor, LSTMState]:
    """One time step. Computed wide; h_BV is returned as wide."""
    x_BD = upcast(x_BD)
    raw_BG = linears(x_BD, [(w_GD, b_G, x_BD.dtype)])[0] + recurrent_product(state.h_BV, u_GK)
    i_BV, f_BV, g_BV, o_BV = raw_BG.chunk(4, dim=1)
    c_BV = torch.sigmoid(f_BV) * state.c_BV + torch.sigmoid(i_BV) * torch.tanh(g_BV)
    h_BV = torch.sigmoid(o_BV) * torch.tanh(c_BV)
    return h_BV, LSTMState(h_BV, c_BV)
