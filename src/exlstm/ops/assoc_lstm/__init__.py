"""Associative LSTM: a complex memory of keys and values, in copies. `reference` defines it, `numba` runs it fast."""

import torch
from torch import Tensor

from exlstm.ops.arguments import check_like, checked_rows, checked_state
from exlstm.ops.assoc_lstm.reference import PLANES, AssocLSTMState, assoc_lstm_recurrent
from exlstm.ops.common import length_mask, without_autocast, zero_padding
from exlstm.runtime.availability import widened_kernel_obstacle
from exlstm.runtime.backend import choose

__all__ = ["PLANES", "AssocLSTMState", "assoc_lstm", "assoc_lstm_recurrent"]


def assoc_lstm(
    x_BTGN: Tensor,
    r_GNPM: Tensor,
    order_CN: Tensor,
    state: AssocLSTMState | None = None,
    /,
    *,
    reset_BT: Tensor | None = None,
    lengths_B: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, AssocLSTMState]:
    """A sequence through the associative LSTM cell (Danihelka et al. 2016, arXiv:1602.03032); any T >= 1.

    x: [B, T, 9, N] pre-activations W x + b of the gates i, f, o, and of real and imaginary parts of u and of the keys a
    (writing) and b (reading), in any float dtype. r: [9, N, 2, N] weights from real and imaginary parts of h.
    order: [C, N] int64, a permutation of the units for every copy: copy s of unit n has the keys of unit order[s, n].
    state: what came before, None for zeros. reset_BT (bool): clear the row's state before that step.
    lengths_B (int): steps at or beyond a row's length leave its state alone and give h = 0, whatever is there.
    backend: "auto", "numba" (float32 on a CPU) or "recurrent" (the definition, plain torch).

    Returns h [B, T, 2, N] in x's dtype and the state after the last step, float32 or wider.
    Raises ValueError for shapes that do not fit and for a backend that cannot run.
    """
    B, T, G, N = x_BTGN.shape
    if G != PLANES:
        raise ValueError(f"x has shape {tuple(x_BTGN.shape)}; it must be [B, T, {PLANES}, N].")
    check_like("r", r_GNPM, (G, N, 2, N), x_BTGN)
    if order_CN.dtype is not torch.int64 or order_CN.shape[1:] != (N,):
        raise ValueError(f"order is {order_CN.dtype} of shape {tuple(order_CN.shape)}; it must be int64 of [C, {N}].")
    reset_BT, lengths_B = checked_rows(x_BTGN, reset_BT, lengths_B)
    state = checked_state(state, AssocLSTMState, [(B, 2, N), (B, len(order_CN), 2, N)], x_BTGN)
    inputs = x_BTGN, r_GNPM, order_CN
    candidates = [("numba", widened_kernel_obstacle((x_BTGN,))), ("recurrent", None)]
    name = choose("assoc_lstm", backend, candidates, (*inputs, *state))
    with without_autocast(x_BTGN):
        if name == "numba":
            from exlstm.ops.assoc_lstm.numba.op import assoc_lstm_numba

            h_BTPN, state = assoc_lstm_numba(*inputs, state, reset_BT=reset_BT, lengths_B=lengths_B)
        else:
            valid_BT = None if lengths_B is None else length_mask(lengths_B, T)
            x_BTGN = x_BTGN if valid_BT is None else zero_padding(x_BTGN, valid_BT)
            h_BTPN, state = assoc_lstm_recurrent(x_BTGN, *inputs[1:], state, reset_BT=reset_BT, valid_BT=valid_BT)
    return h_BTPN.to(x_BTGN.dtype), state
