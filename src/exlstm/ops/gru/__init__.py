"""The GRU (Cho et al. 2014, arXiv:1406.1078). `reference` defines it, `numba` runs sequences on a CPU.

Elsewhere torch's fused kernel does: see `exlstm.ops.fused`. U is dense, or block-diagonal with one block per head.

B batch  T time  L steps between two borders  D input width  V hidden width  K hidden width of a head
G the rows of r, z and n (3 V)  N gates (3)  H heads
"""

import torch
from torch import Tensor

from exlstm.ops.arguments import checked_rows, checked_state
from exlstm.ops.common import upcast
from exlstm.ops.fused import dense_recurrence, run_fused, zero_bias
from exlstm.ops.gru.reference import GRUState, gru_step
from exlstm.ops.linear import linears

__all__ = ["GRUState", "gru", "gru_step"]


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
    backend: "auto", "numba" (float32 on a CPU, with a hand-written backward), "fused" (torch's kernel) or "recurrent"
    (the definition; for a single step "auto" takes it).

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

    def scan(x_BTD: Tensor) -> tuple[Tensor, GRUState]:
        from exlstm.ops.gru.numba import gru_numba

        (B, T, _), K = x_BTD.shape, u_GK.shape[1]
        H = len(c_V) // K
        u_NHKK, c_HK = upcast(u_GK).view(3, H, K, K), upcast(c_V).view(H, K)
        x_BTNHK = linears(x_BTD, [(w_GD, b_G, x_BTD.dtype)])[0].view(B, T, 3, H, K)
        h_BHK = state.h_BV.view(B, H, K)
        h_BTHK, h_BHK = gru_numba(x_BTNHK, u_NHKK, c_HK, h_BHK, reset_BT=reset_BT, lengths_B=lengths_B)
        return h_BTHK.flatten(2), GRUState(h_BHK.flatten(1))

    return run_fused(
        "gru",
        backend,
        x_BTD,
        (w_GD, u_GK, b_G, c_V),
        state,
        lambda x_BD, before: gru_step(x_BD, w_GD, u_GK, b_G, c_V, before),
        dense,
        kernel,
        scan,
        reset_BT=reset_BT,
        lengths_B=lengths_B,
    )
