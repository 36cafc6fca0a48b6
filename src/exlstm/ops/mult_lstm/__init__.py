"""Multiplicative LSTM: the input chooses the recurrent matrix. `reference` defines it, `numba` runs it fast."""

from torch import Tensor

from exlstm.ops.arguments import check_like, checked_rows, checked_state
from exlstm.ops.common import length_mask, without_autocast, zero_padding
from exlstm.ops.mult_lstm.reference import MultLSTMState, mult_lstm_recurrent
from exlstm.runtime.availability import widened_kernel_obstacle
from exlstm.runtime.backend import choose

__all__ = ["MultLSTMState", "mult_lstm", "mult_lstm_recurrent"]


def mult_lstm(
    p_BTHV: Tensor,
    x_BTGHV: Tensor,
    m_HVK: Tensor,
    r_GHVK: Tensor,
    state: MultLSTMState | None = None,
    /,
    *,
    reset_BT: Tensor | None = None,
    lengths_B: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, MultLSTMState]:
    """A sequence through the multiplicative LSTM cell (Krause et al. 2016, arXiv:1609.07959); any T >= 1.

    p: [B, T, H, V] factors W_p x. x: [B, T, 4, H, V] pre-activations W x + b of i, f, z, o. Both in any float dtype.
    m: [H, V, V] weights from h to the products with p. r: [4, H, V, V] weights from those to the gates. In both the
    last axis is summed over; one block per head, H = 1 is dense.
    state: what came before, None for zeros. reset_BT (bool): clear the row's state before that step.
    lengths_B (int): steps at or beyond a row's length leave its state alone and give h = 0, whatever is there.
    backend: "auto", "numba" (float32 on a CPU) or "recurrent" (the definition, plain torch; for a single step "auto"
    takes it).

    Returns h [B, T, H, V] in x's dtype and the state after the last step, float32 or wider.
    Raises ValueError for shapes that do not fit and for a backend that cannot run.
    """
    B, T, H, V = p_BTHV.shape
    check_like("x", x_BTGHV, (B, T, 4, H, V), p_BTHV)
    check_like("m", m_HVK, (H, V, V), x_BTGHV)
    check_like("r", r_GHVK, (4, H, V, V), x_BTGHV)
    reset_BT, lengths_B = checked_rows(x_BTGHV, reset_BT, lengths_B)
    state = checked_state(state, MultLSTMState, 2 * [(B, H, V)], x_BTGHV)
    inputs = p_BTHV, x_BTGHV, m_HVK, r_GHVK
    single = "a single step needs no scan" if backend == "auto" and T == 1 else None
    candidates = [("numba", widened_kernel_obstacle((x_BTGHV,), single)), ("recurrent", None)]
    name = choose("mult_lstm", backend, candidates, (*inputs, *state))
    with without_autocast(x_BTGHV):
        if name == "numba":
            from exlstm.ops.mult_lstm.numba import mult_lstm_numba

            h_BTHV, state = mult_lstm_numba(*inputs, state, reset_BT=reset_BT, lengths_B=lengths_B)
        else:
            valid_BT = None if lengths_B is None else length_mask(lengths_B, T)
            if valid_BT is not None:
                p_BTHV, x_BTGHV = zero_padding(p_BTHV, valid_BT), zero_padding(x_BTGHV, valid_BT)
            h_BTHV, state = mult_lstm_recurrent(
                p_BTHV, x_BTGHV, m_HVK, r_GHVK, state, reset_BT=reset_BT, valid_BT=valid_BT
            )
    return h_BTHV.to(x_BTGHV.dtype), state
