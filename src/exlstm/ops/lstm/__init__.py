"""The LSTM (Hochreiter & Schmidhuber 1997). `reference` defines it, `numba` runs sequences on a CPU.

Elsewhere torch's fused kernel does: see `exlstm.ops.fused`. U is dense, or block-diagonal with one block per head.

B batch  T time  L steps between two borders  D input width  V hidden width  K hidden width of a head
G the four gates' rows (4 V)
"""

import torch
from torch import Tensor

from exlstm.ops.arguments import checked_rows, checked_state
from exlstm.ops.common import upcast
from exlstm.ops.fused import dense_recurrence, run_fused, zero_bias
from exlstm.ops.layer import Layer, in_own_kernels
from exlstm.ops.lstm.reference import LSTMState, lstm_step
from exlstm.runtime.backend import record

__all__ = ["LSTMState", "lstm", "lstm_layer", "lstm_step"]


def lstm(
    x_BTD: Tensor,
    w_GD: Tensor,
    u_GK: Tensor,
    b_G: Tensor,
    state: LSTMState,
    /,
    *,
    reset_BT: Tensor | None = None,
    lengths_B: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, LSTMState]:
    """A sequence through the cell, computed wide; any T >= 1. reset_BT clears a row's state before that step.

    x: [B, T, D]. w: [4 V, D] and b: [4 V], rows in the order of the gates i, f, g, o. u: [4 V, V], or the blocks of a
    block-diagonal one below one another, [4 V, K] in the order (gate, head, unit).
    lengths_B: steps at or beyond a row's length leave its state alone and give h = 0, whatever is there.
    backend: "auto", "numba" (float32 on a CPU, with a hand-written backward), "fused" (torch's kernel) or "recurrent"
    (the definition; for a single step "auto" takes it).

    Returns h [B, T, V] in x's dtype and the state after the last step. ValueError for what does not fit x and
    for a backend that cannot run.
    """
    reset_BT, lengths_B = checked_rows(x_BTD, reset_BT, lengths_B)
    state = checked_state(state, LSTMState, 2 * [(x_BTD.shape[0], len(b_G) // 4)], x_BTD)

    def kernel(x_BLD: Tensor, parts: list[Tensor], before: LSTMState) -> tuple[Tensor, LSTMState]:
        h_1BV, c_1BV = before.h_BV[None], before.c_BV[None]
        h_BLV, h_1BV, c_1BV = torch.lstm(x_BLD, (h_1BV, c_1BV), parts, True, 1, 0.0, False, False, True)
        return h_BLV, LSTMState(h_1BV[0], c_1BV[0])

    def scan(x_BTD: Tensor) -> tuple[Tensor, LSTMState]:
        from exlstm.ops.slstm.numba.layer import LSTM, run_layer

        layer = Layer(upcast(w_GD), upcast(u_GK), upcast(b_G), None)
        h_BTV, *after = run_layer(LSTM, x_BTD, layer, *state, reset_BT, lengths_B)
        return h_BTV, LSTMState(*after)

    return run_fused(
        "lstm",
        backend,
        x_BTD,
        (w_GD, u_GK, b_G),
        state,
        lambda x_BD, before: lstm_step(x_BD, w_GD, u_GK, b_G, before),
        lambda: [upcast(w_GD), upcast(dense_recurrence(u_GK, 4)), upcast(b_G), zero_bias(b_G)],
        kernel,
        scan,
        reset_BT=reset_BT,
        lengths_B=lengths_B,
    )


def lstm_layer(
    x_BTD: Tensor,
    layer: Layer,
    h_BV: Tensor,
    c_BV: Tensor,
    /,
    *,
    reset_BT: Tensor | None = None,
    lengths_B: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor, Tensor]:
    """A sequence through a layer with torch's weights: h of every step [B, T, V], and h and c after the last.

    The rest is as in `lstm`.
    """
    if reset_BT is not None or lengths_B is not None or not x_BTD.shape[1]:
        reset_BT, lengths_B = checked_rows(x_BTD, reset_BT, lengths_B)
    if in_own_kernels(x_BTD, layer, backend):
        record("lstm", "numba")
        from exlstm.ops.slstm.numba.layer import LSTM, run_layer

        return run_layer(LSTM, x_BTD, layer, h_BV, c_BV, reset_BT, lengths_B)
    w_GD, u_GK, b_G, more_b_G = layer
    b_G = w_GD.new_zeros(len(w_GD)) if b_G is None or more_b_G is None else b_G + more_b_G
    state, borders = LSTMState(h_BV, c_BV), {"reset_BT": reset_BT, "lengths_B": lengths_B}
    h_BTV, after = lstm(x_BTD, w_GD, u_GK, b_G, state, **borders, backend=backend)
    return h_BTV, after.h_BV, after.c_BV
