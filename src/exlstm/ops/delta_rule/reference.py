"""The delta rule, the definition. A matrix S of [K, V] per head is a memory of values by their keys.

    S~ = diag(e^g) S_{t-1}                                   decay, one for the head or one per key channel
    S_t = S~ + k_t (beta_t (v_t - S~^T k_t))^T               what is stored under k moves towards v
    o_t = S_t^T q_t

and its general form, where what is read, a, and what is written for it, b, are any two vectors (diagonal plus low
rank):

    S_t = diag(e^g) S_{t-1} + b_t (S_{t-1}^T a_t)^T + k_t v_t^T

The first is the second with a = e^g k, b = -beta k, and beta k as its key.

B batch  T time  H heads  K key width  V value width
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from exlstm.ops.common import upcast
from exlstm.ops.steps import run_steps


class DeltaState(NamedTuple):
    """The memory after a step, batch first, float32 or wider."""

    s_BHKV: Tensor


class RuleInputs(NamedTuple):
    """Inputs of a rule. The delta rule has beta; the general one has a and b.

    g: logarithms of the decays, from -inf to 0, [B, T, H, 1] or [B, T, H, K]; None: nothing decays.
    """

    q_BTHK: Tensor
    k_BTHK: Tensor
    v_BTHV: Tensor
    beta_BTH: Tensor | None
    a_BTHK: Tensor | None
    b_BTHK: Tensor | None
    g_BTHG: Tensor | None

    @property
    def tensors(self) -> list[Tensor]:
        """Those that are there, in order."""
        return [x for x in self if x is not None]

    def rebuilt(self, tensors: list[Tensor]) -> "RuleInputs":
        """The same rule of other tensors, as many as `tensors` has."""
        each = iter(tensors)
        made: list[Any] = [None if x is None else next(each) for x in self]
        return RuleInputs(*made)


def read(s_BHKV: Tensor, k_BHK: Tensor) -> Tensor:
    """S^T k, [B, H, V]."""
    return (k_BHK[:, :, None] @ s_BHKV)[:, :, 0]


def delta_step(
    q_BHK: Tensor, k_BHK: Tensor, v_BHV: Tensor, beta_BH: Tensor, g_BHK: Tensor, state: DeltaState, /
) -> tuple[Tensor, DeltaState]:
    """One time step of the delta rule, computed wide."""
    q_BHK, k_BHK, v_BHV, beta_BH, g_BHK = map(upcast, (q_BHK, k_BHK, v_BHV, beta_BH, g_BHK))
    s_BHKV = torch.exp(g_BHK)[..., None] * state.s_BHKV
    u_BHV = beta_BH[..., None] * (v_BHV - read(s_BHKV, k_BHK))
    s_BHKV = s_BHKV + k_BHK[..., None] * u_BHV[:, :, None]
    return read(s_BHKV, q_BHK), DeltaState(s_BHKV)


def dplr_step(
    q_BHK: Tensor, k_BHK: Tensor, v_BHV: Tensor, a_BHK: Tensor, b_BHK: Tensor, g_BHK: Tensor, state: DeltaState, /
) -> tuple[Tensor, DeltaState]:
    """One time step of the general form, computed wide."""
    q_BHK, k_BHK, v_BHV, a_BHK, b_BHK, g_BHK = map(upcast, (q_BHK, k_BHK, v_BHV, a_BHK, b_BHK, g_BHK))
    z_BHV = read(state.s_BHKV, a_BHK)
    s_BHKV = torch.exp(g_BHK)[..., None] * state.s_BHKV + b_BHK[..., None] * z_BHV[:, :, None]
    s_BHKV = s_BHKV + k_BHK[..., None] * v_BHV[:, :, None]
    return read(s_BHKV, q_BHK), DeltaState(s_BHKV)


def rule_recurrent(
    x: RuleInputs, s_BHKV: Tensor, /, *, reset_BT: Tensor | None, valid_BT: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The definition of both rules, one step after another. Where valid_BT is False nothing happens, and o is 0."""
    decay = x.k_BTHK.new_zeros(()) if x.g_BTHG is None else x.g_BTHG
    inputs = [*(t for t in x[:6] if t is not None), decay.expand(x.k_BTHK.shape)]
    step = delta_step if x.a_BTHK is None else dplr_step
    o_BTHV, state = run_steps(step, inputs, DeltaState(s_BHKV), reset_BT=reset_BT, valid_BT=valid_BT)
    return o_BTHV, state.s_BHKV
