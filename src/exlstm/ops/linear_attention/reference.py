"""Linear attention, the definition: a sum of keys times values that decays, and its form with a normalizer.

    S_t = e^{g_t} S_{t-1} + w_t k_t v_t^T       o_t = S_t^T q_t

    S_t = S_{t-1} + k_t v_t^T ,  n_t = n_{t-1} + k_t ,  o_t = S_t^T q_t / (|n_t . q_t| + eps)

The first is retention (Sun et al. 2023, arXiv:2307.08621, eq 5) and the state space of Mamba-2 (Dao & Gu 2024,
arXiv:2405.21060, section 6): g is the logarithm of a decay, w the strength of a write. The second is Katharopoulos et
al. 2020, arXiv:2006.16236, eqs 16-20, whose features are not negative, so that their products are weights.

B batch  T time  H heads  K key width  V value width
"""

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from exlstm.ops.common import upcast
from exlstm.ops.steps import run_steps


class LinearAttentionState(NamedTuple):
    """The sum of keys times values after a step, batch first, float32 or wider.

    It is the mLSTM's C. That has n and m beside it, which would be a sum that nothing reads and a zero.
    """

    s_BHKV: Tensor


class NormalizedState(NamedTuple):
    """The sum of keys times values, and of keys, after a step, batch first, float32 or wider."""

    s_BHKV: Tensor
    n_BHK: Tensor


def linear_attention_step(
    q_BHK: Tensor, k_BHK: Tensor, v_BHV: Tensor, g_BH: Tensor, state: LinearAttentionState, /
) -> tuple[Tensor, LinearAttentionState]:
    """One time step, computed wide. v is weighed by w already."""
    s_BHKV = torch.exp(g_BH)[..., None, None] * state.s_BHKV + upcast(k_BHK)[..., None] * upcast(v_BHV)[..., None, :]
    return (upcast(q_BHK)[..., None, :] @ s_BHKV)[..., 0, :], LinearAttentionState(s_BHKV)


def normalized_step(
    q_BHK: Tensor, k_BHK: Tensor, v_BHV: Tensor, state: NormalizedState, /, *, eps: float
) -> tuple[Tensor, NormalizedState]:
    """One time step with the normalizer, computed wide."""
    s_BHKV = state.s_BHKV + upcast(k_BHK)[..., None] * upcast(v_BHV)[..., None, :]
    n_BHK = state.n_BHK + upcast(k_BHK)
    mass_BH = (upcast(q_BHK) * n_BHK).sum(-1)
    o_BHV = (upcast(q_BHK)[..., None, :] @ s_BHKV)[..., 0, :] / (mass_BH.abs() + eps)[..., None]
    return o_BHV, NormalizedState(s_BHKV, n_BHK)


def linear_attention_recurrent(
    q_BTHK: Tensor,
    k_BTHK: Tensor,
    v_BTHV: Tensor,
    g_BTH: Tensor,
    state: LinearAttentionState,
    /,
    *,
    reset_BT: Tensor | None,
    valid_BT: Tensor | None,
) -> tuple[Tensor, LinearAttentionState]:
    """The definition, one step after another. Where valid_BT is False nothing happens and the output is 0."""
    inputs = [q_BTHK, k_BTHK, v_BTHV, g_BTH]
    return run_steps(linear_attention_step, inputs, state, reset_BT=reset_BT, valid_BT=valid_BT)


def normalized_recurrent(
    q_BTHK: Tensor,
    k_BTHK: Tensor,
    v_BTHV: Tensor,
    state: NormalizedState,
    /,
    *,
    reset_BT: Tensor | None,
    valid_BT: Tensor | None,
    eps: float,
) -> tuple[Tensor, NormalizedState]:
    """The definition of the normalized form, as `linear_attention_recurrent`."""
    step = partial(normalized_step, eps=eps)
    return run_steps(step, [q_BTHK, k_BTHK, v_BTHV], state, reset_BT=reset_BT, valid_BT=valid_BT)
