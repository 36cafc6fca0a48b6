"""The GRU, the definition (Cho et al. 2014, arXiv:1406.1078), in the form of cuDNN and torch.

    r = sigmoid(W_r x_t + U_r h_{t-1} + b_r) ,  z = sigmoid(W_z x_t + U_z h_{t-1} + b_z)
    n = tanh(W_n x_t + b_n + r (U_n h_{t-1} + c))
    h_t = (1 - z) n + z h_{t-1}

The reset gate r acts behind the product with U_n, so that all three products of h are one.

B batch  D input width  V hidden width  K hidden width of a head  G the rows of r, z and n (3 V)
"""

from typing import NamedTuple

import torch
from torch import Tensor

from exlstm.ops.common import upcast
from exlstm.ops.fused import recurrent_product
from exlstm.ops.linear import linears


class GRUState(NamedTuple):
    """The memory after a step, batch first, float32 or wider."""

    h_BV: Tensor


def gru_step(
    x_BD: Tensor, w_GD: Tensor, u_GK: Tensor, b_G: Tensor, c_V: Tensor, state: GRUState, /
) -> tuple[Tensor, GRUState]:
    """One time step: the definition. Computed wide; h_BV is returned as wide."""
    x_BD = upcast(x_BD)
    r_BV, z_BV, n_BV = linears(x_BD, [(w_GD, b_G, x_BD.dtype)])[0].chunk(3, dim=1)
    past_r_BV, past_z_BV, past_n_BV = recurrent_product(state.h_BV, u_GK).chunk(3, dim=1)
    z_BV = torch.sigmoid(z_BV + past_z_BV)
    n_BV = torch.tanh(n_BV + torch.sigmoid(r_BV + past_r_BV) * (past_n_BV + upcast(c_V)))
    h_BV = (1 - z_BV) * n_BV + z_BV * state.h_BV
    return h_BV, GRUState(h_BV)
