"""The LSTM (Hochreiter & Schmidhuber 1997; paper eqs 28-33): sequences run by torch's own fused kernel.

    (i, f, g, o)_t = W x_t + U h_{t-1} + b
    c_t = sigmoid(f) c_{t-1} + sigmoid(i) tanh(g) ,  h_t = sigmoid(o) tanh(c_t)

U is dense, or block-diagonal with one block per head; see `exlstm.ops.fused`, which runs it.

B batch  T time  L steps between two borders  D input width  V hidden width  K hidden width of a head
G the four gates' rows (4 V)
"""

from typing import NamedTuple

import torch
from torch import Tensor

from exlstm.ops.arguments import checked_rows, checked_state
from exlstm.ops.common import upcast
from exlstm.ops.fused import dense_recurrence, recurrent_product, run_fused, zero_bias
from exlstm.ops.linear import linears


class LSTMState(NamedTuple):
    """The memory after a step, batch first, float32 or wider."""

    h_BV: Tensor
    c_BV: Tensor


def lstm_step(x_BD: Tensor, w_GD: Tensor, u_GK: Tensor, b_G: Tensor, state: LSTMState, /) -> tuple[Tensor, LSTMState]:
    """One time step: the definition. Computed wide; h_BV is returned as wide."""
    x_BD = upcast(x_BD)
    raw_BG = linears(x_BD, [(w_GD, b_G, x_BD.dtype)])[0] + recurrent_product(state.h_BV, u_GK)
    i_BV, f_BV, g_BV, o_BV = raw_BG.chunk(4, dim=1)
    c_BV = torch.sigmoid(f_BV) * state.c_BV + torch.sigmoid(i_BV) * torch.tanh(g_BV)
    h_BV = torch.sigmoid(o_BV) * torch.tanh(c_BV)
    return h_BV, LSTMState(h_BV, c_BV)


def lstm(
    x_BTD: Tensor, w_GD: Tensor, u_GK: Tensor, b_G: Tensor, state: LSTMState, /,
    *, reset_BT: Tensor | None = None, lengths_B: Tensor | None = None, backend: str = "auto",
) -> tuple[Tensor, LSTMState]:  # fmt: skip
    """A sequence through the cell, computed wide; any T >= 1. reset_BT clears a row's state before that step.

    x: [B, T, D]. w: [4 V, D] and b: [4 V], rows in the order of the gates i, f, g, o. u: [4 V, V], or the blocks of a
    block-diagonal one below one another, [4 V, K] in the order (gate, head, unit).
    lengths_B: steps at or beyond a row's length leave its state alone and give h = 0, whatever is there.
    backend: "auto", "fused" (torch's kernel) or "recurrent" (the definition; for a single step "auto" takes it).

    Returns h [B, T, V] in x's dtype and the state after the last step. ValueError for what does not fit x and
    for a backend that cannot run.
    """
    reset_BT, lengths_B = checked_rows(x_BTD, reset_BT, lengths_B)
    state = checked_state(state, LSTMState, 2 * [(x_BTD.shape[0], len(b_G) // 4)], x_BTD)

    def kernel(x_BLD: Tensor, parts: list[Tensor], before: LSTMState) -> tuple[Tensor, LSTMState]:
        h_1BV, c_1BV = before.h_BV[None], before.c_BV[None]
        h_BLV, h_1BV, c_1BV = torch.lstm(x_BLD, (h_1BV, c_1BV), parts, True, 1, 0.0, False, False, True)
        return h_BLV, LSTMState(h_1BV[0], c_1BV[0])

    return run_fused(
        "lstm", backend, x_BTD, (w_GD, u_GK, b_G), state,
        lambda x_BD, before: lstm_step(x_BD, w_GD, u_GK, b_G, before),
        lambda: [upcast(w_GD), upcast(dense_recurrence(u_GK, 4)), upcast(b_G), zero_bias(b_G)], kernel,
        reset_BT=reset_BT, lengths_B=lengths_B,
    )  # fmt: skip
