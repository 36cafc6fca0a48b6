"""Damped moving averages, the definition.

    h_t = a h_{t-1} + u_t ,  y_t = sum_z c_z h_t[z] + skip u_t        a real and constant, of every channel and average

B batch  T time  E channels  Z averages of a channel
"""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from exlstm.ops.common import length_mask, upcast
from exlstm.ops.steps import run_steps


class EMAState(NamedTuple):
    """The averages of every channel after a step, batch first, float32 or wider."""

    h_BEZ: Tensor


class EMAWeights(NamedTuple):
    """What is constant: the factor of a step, and the weights of the averages and of u in y."""

    factor_EZ: Tensor
    weight_EZ: Tensor
    skip_E: Tensor


def ema_step(u_BE: Tensor, weights: EMAWeights, state: EMAState, /) -> tuple[Tensor, EMAState]:
    """One time step, computed wide."""
    u_BE, (factor_EZ, weight_EZ, skip_E) = upcast(u_BE), map(upcast, weights)
    h_BEZ = factor_EZ * state.h_BEZ + u_BE[..., None]
    return (weight_EZ * h_BEZ).sum(-1) + skip_E * u_BE, EMAState(h_BEZ)


def ema_recurrent(
    u_BTE: Tensor,
    weights: EMAWeights,
    state: Sequence[Tensor],
    /,
    *,
    reset_BT: Tensor | None,
    lengths_B: Tensor | None,
) -> tuple[Tensor, EMAState]:
    """The definition, one step after another. Beyond a row's length nothing happens and the output is 0."""
    return run_steps(
        lambda u_BE, before: ema_step(u_BE, weights, before),
        [u_BTE],
        EMAState(*state),
        reset_BT=reset_BT,
        valid_BT=None if lengths_B is None else length_mask(lengths_B, u_BTE.shape[1]),
    )
