"""Recurrent nets whose state is a matrix, the definition.

    Z_t = tanh(H_{t-1} R + k_t v_t^T / sqrt(K))
    H_t = Z_t                                               Elman
    H_t = sigmoid(f_t) H_{t-1} + (1 - sigmoid(f_t)) Z_t     GRU, with one update gate per head
    o_t = H_t^T q_t

R mixes the value axis of the whole matrix: every row of H, one per key channel, is a recurrent net of its own with the
weights of all others. Without R every number keeps to itself: Z_t = tanh(H_{t-1} + ...).

B batch  T time  H heads  K key width  V value width, of columns of R too  U value width, of rows of R
"""

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from exlstm.ops.common import upcast
from exlstm.ops.steps import run_steps


class MatrixRNNState(NamedTuple):
    """The memory after a step, batch first, float32 or wider."""

    h_BHKV: Tensor


def matrix_rnn_step(
    q_BHK: Tensor, k_BHK: Tensor, v_BHV: Tensor, f_BH: Tensor | None, state: MatrixRNNState, /, *, r_HUV: Tensor | None
) -> tuple[Tensor, MatrixRNNState]:
    """One time step, computed wide."""
    q_BHK, k_BHK, v_BHV, before_BHKV = upcast(q_BHK), upcast(k_BHK), upcast(v_BHV), state.h_BHKV
    written_BHKV = (k_BHK * k_BHK.shape[2] ** -0.5)[..., None] * v_BHV[:, :, None]
    mixed_BHKV = before_BHKV if r_HUV is None else before_BHKV @ upcast(r_HUV)
    h_BHKV = torch.tanh(mixed_BHKV + written_BHKV)
    if f_BH is not None:
        f_BH11 = upcast(f_BH)[..., None, None]
        h_BHKV = torch.sigmoid(f_BH11) * before_BHKV + torch.sigmoid(-f_BH11) * h_BHKV
    o_BHV = (q_BHK[:, :, None] @ h_BHKV)[:, :, 0]
    return o_BHV, MatrixRNNState(h_BHKV)


def matrix_rnn_recurrent(
    q_BTHK: Tensor,
    k_BTHK: Tensor,
    v_BTHV: Tensor,
    f_BTH: Tensor | None,
    r_HUV: Tensor | None,
    state: MatrixRNNState,
    /,
    *,
    reset_BT: Tensor | None,
    valid_BT: Tensor | None,
) -> tuple[Tensor, MatrixRNNState]:
    """The definition, one step after another. Where valid_BT is False nothing happens and o = 0."""
    step = partial(matrix_rnn_step, r_HUV=r_HUV)
    inputs = [q_BTHK, k_BTHK, v_BTHV]
    if f_BTH is None:
        return run_steps(
            lambda q, k, v, before: step(q, k, v, None, before), inputs, state, reset_BT=reset_BT, valid_BT=valid_BT
        )
    return run_steps(step, [*inputs, f_BTH], state, reset_BT=reset_BT, valid_BT=valid_BT)
