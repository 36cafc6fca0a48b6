"""The GRU (Cho et al. 2014, arXiv:1406.1078), in the form of cuDNN and torch: sequences run by torch's fused kernel.

    r = sigmoid(W_r x_t + U_r h_{t-1} + b_r) ,  z = sigmoid(W_z x_t + U_z h_{t-1} + b_z)
    n = tanh(W_n x_t + b_n + r (U_n h_{t-1} + c))
    h_t = (1 - z) n + z h_{t-1}

The reset gate r acts behind the product with U_n, so that all three products of h are one.
U is dense, or block-diagonal with one block per head; see `exlstm.ops.fused`, which runs it.

B batch  T time  L steps between two borders  D input width  V hidden width  K hidden width of a head
G the rows of r, z and n (3 V)
"""

from typing import NamedTuple

import torch
from torch import Tensor

from exlstm.ops.arguments import checked_rows, checked_state
from exlstm.ops.common import upcast
from exlstm.ops.fused import dense_recurrence, recurrent_product, run_fused, zero_bias
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


def gru(
    x_BTD: Tensor,
    w_GD: Tensor,
    u_GK: Tensor,
    b_G: Tensor,
    c_V: Tensor,
    state: GRUState,
    /,
    *,
    reset_BT: Tensor | None = None,
    lengths_B: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, GRUState]:
    """A sequence through the cell, computed wide; any T >= 1. reset_BT clears a row's state before that step.

    x: [B, T, D]. w: [3 V, D] and b: [3 V], rows in the order r, z, n. u: [3 V, V], or the blocks of a block-diagonal
    one below one another, [3 V, K] in the order (gate, head, unit). c: [V], the bias inside the reset gate.
    lengths_B: steps at or beyond a row's length leave its state alone and give h = 0, whatever is there.
    backend: "auto", "fused" (torch's kernel) or "recurrent" (the definition; for a single step "auto" takes it).

    Returns h [B, T, V] in x's dtype and the state after the last step. ValueError for what does not fit x and
    for a backend that cannot run.
    """
    reset_BT, lengths_B = checked_rows(x_BTD, reset_BT, lengths_B)
    state = checked_state(state, GRUState, [(x_BTD.shape[0], len(c_V))], x_BTD)

    def dense() -> list[Tensor]:
        inner_G = torch.cat([zero_bias(b_G)[: 2 * len(c_V)], upcast(c_V)])
        return [upcast(w_GD), upcast(dense_recurrence(u_GK, 3)), upcast(b_G), inner_G]

    def kernel(x_BLD: Tensor, parts: list[Tensor], before: GRUState) -> tuple[Tensor, GRUState]:
        h_BLV, h_1BV = torch.gru(x_BLD, before.h_BV[None], parts, True, 1, 0.0, False, False, True)
        return h_BLV, GRUState(h_1BV[0])

    return run_fused(
        "gru",
        backend,
        x_BTD,
        (w_GD, u_GK, b_G, c_V),
        state,
        lambda x_BD, before: gru_step(x_BD, w_GD, u_GK, b_G, c_V, before),
        dense,
        kernel,
        reset_BT=reset_BT,
        lengths_B=lengths_B,
    )
