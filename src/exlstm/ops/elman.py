"""The Elman net, the plain recurrent net (Elman 1990): sequences run by torch's own fused kernel.

    h_t = tanh(W x_t + U h_{t-1} + b)

U is dense, or block-diagonal with one block per head; see `exlstm.ops.fused`, which runs it.

B batch  T time  L steps between two borders  D input width  V hidden width  K hidden width of a head
"""

from typing import NamedTuple

import torch
from torch import Tensor

from exlstm.ops.arguments import checked_rows, checked_state
from exlstm.ops.common import upcast
from exlstm.ops.fused import dense_recurrence, recurrent_product, run_fused, zero_bias
from exlstm.ops.linear import linears


class ElmanState(NamedTuple):
    """The memory after a step, batch first, float32 or wider."""

    h_BV: Tensor


def elman_step(
    x_BD: Tensor, w_VD: Tensor, u_VK: Tensor, b_V: Tensor, state: ElmanState, /
) -> tuple[Tensor, ElmanState]:
    """One time step: the definition. Computed wide; h_BV is returned as wide."""
    x_BD = upcast(x_BD)
    h_BV = torch.tanh(linears(x_BD, [(w_VD, b_V, x_BD.dtype)])[0] + recurrent_product(state.h_BV, u_VK))
    return h_BV, ElmanState(h_BV)


def elman(
    x_BTD: Tensor,
    w_VD: Tensor,
    u_VK: Tensor,
    b_V: Tensor,
    state: ElmanState,
    /,
    *,
    reset_BT: Tensor | None = None,
    lengths_B: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, ElmanState]:
    """A sequence through the cell, computed wide; any T >= 1. reset_BT clears a row's state before that step.

    x: [B, T, D]. w: [V, D]. b: [V]. u: [V, V], or the blocks of a block-diagonal one below one another, [V, K].
    lengths_B: steps at or beyond a row's length leave its state alone and give h = 0, whatever is there.
    backend: "auto", "fused" (torch's kernel) or "recurrent" (the definition; for a single step "auto" takes it).

    Returns h [B, T, V] in x's dtype and the state after the last step. ValueError for what does not fit x and
    for a backend that cannot run.
    """
    reset_BT, lengths_B = checked_rows(x_BTD, reset_BT, lengths_B)
    state = checked_state(state, ElmanState, [(x_BTD.shape[0], len(b_V))], x_BTD)

    def kernel(x_BLD: Tensor, parts: list[Tensor], before: ElmanState) -> tuple[Tensor, ElmanState]:
        h_BLV, h_1BV = torch.rnn_tanh(x_BLD, before.h_BV[None], parts, True, 1, 0.0, False, False, True)
        return h_BLV, ElmanState(h_1BV[0])

    return run_fused(
        "elman",
        backend,
        x_BTD,
        (w_VD, u_VK, b_V),
        state,
        lambda x_BD, before: elman_step(x_BD, w_VD, u_VK, b_V, before),
        lambda: [upcast(w_VD), upcast(dense_recurrence(u_VK, 1)), upcast(b_V), zero_bias(b_V)],
        kernel,
        reset_BT=reset_BT,
        lengths_B=lengths_B,
    )
