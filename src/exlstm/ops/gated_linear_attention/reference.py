"""Linear attention with a decay per channel, the definition: one step after another.

    S_t = diag(e^g_t) S_{t-1} + k_t v_t^T       g over the key channels; of GLA, HGRN2 and RWKV
    S_t = S_{t-1} diag(e^g_t) + k_t v_t^T       g over the value channels; of ABC and GSA
    o_t = S_t^T q_t                             or, with a bonus u, before the step is written, as in RWKV:
    o_t = S_{t-1}^T q_t + (q_t . (u k_t)) v_t

B batch  T time  H heads  K key width  V value width  I either of them, where the decay is
"""

from functools import partial
from typing import Literal, NamedTuple

from torch import Tensor

from exlstm.ops.common import upcast
from exlstm.ops.steps import run_steps

Axis = Literal["key", "value"]


class GatedLinearAttentionState(NamedTuple):
    """The memory S after a step, batch first, float32 or wider."""

    s_BHKV: Tensor


def gated_linear_attention_step(
    q_BHK: Tensor,
    k_BHK: Tensor,
    v_BHV: Tensor,
    g_BHI: Tensor,
    state: GatedLinearAttentionState,
    /,
    *,
    bonus_HK: Tensor | None = None,
    axis: Axis = "key",
) -> tuple[Tensor, GatedLinearAttentionState]:
    """One time step, computed wide."""
    q_BHK, k_BHK, v_BHV, g_BHI = map(upcast, (q_BHK, k_BHK, v_BHV, g_BHI))
    decay = g_BHI.exp()[..., None] if axis == "key" else g_BHI.exp()[..., None, :]
    s_BHKV = decay * state.s_BHKV + k_BHK[..., None] * v_BHV[..., None, :]
    if bonus_HK is None:
        return read(q_BHK, s_BHKV), GatedLinearAttentionState(s_BHKV)
    own_BHV = (q_BHK * upcast(bonus_HK) * k_BHK).sum(-1, keepdim=True) * v_BHV
    return read(q_BHK, state.s_BHKV) + own_BHV, GatedLinearAttentionState(s_BHKV)


def read(q_BHK: Tensor, s_BHKV: Tensor) -> Tensor:
    """S^T q"""
    o_BHV: Tensor = (q_BHK[..., None, :] @ s_BHKV)[..., 0, :]
    return o_BHV


def gated_linear_attention_recurrent(
    q_BTHK: Tensor,
    k_BTHK: Tensor,
    v_BTHV: Tensor,
    g_BTHI: Tensor,
    s_BHKV: Tensor,
    /,
    *,
    bonus_HK: Tensor | None,
    axis: Axis,
    reset_BT: Tensor | None,
    valid_BT: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The definition, one step after another. Where valid_BT is False nothing happens and the output is 0."""
    step = partial(gated_linear_attention_step, bonus_HK=bonus_HK, axis=axis)
    inputs, before = [q_BTHK, k_BTHK, v_BTHV, g_BTHI], GatedLinearAttentionState(s_BHKV)
    o_BTHV, state = run_steps(step, inputs, before, reset_BT=reset_BT, valid_BT=valid_BT)
    return o_BTHV, state.s_BHKV
