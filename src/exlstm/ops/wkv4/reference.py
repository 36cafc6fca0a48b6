"""wkv, the definition: the average of all values so far, weighted by keys (Peng et al. 2023, arXiv:2305.13048, eq 16).

    y_t = (num_{t-1} + e^(u + k_t) v_t) / (den_{t-1} + e^(u + k_t))
    num_t = e^w num_{t-1} + e^(k_t) v_t
    den_t = e^w den_{t-1} + e^(k_t)

Every channel is alone. num and den are kept in units of e^p, with p_t = max(p_{t-1} + w, k_t), or k_t for a channel
that has seen nothing yet (den = 0). After a channel's first step den is about 1 or more, so the division is safe.
p is a unit of measure, as the stabilizer of the sLSTM: no gradient passes through it, and none is missing for that.

B batch  T time  E channels
"""

from typing import NamedTuple

import torch
from torch import Tensor

from exlstm.ops.common import upcast
from exlstm.ops.steps import run_steps


class WKV4State(NamedTuple):
    """Sums after a step, in units of e^p; batch first, float32 or wider."""

    num_BE: Tensor
    den_BE: Tensor
    p_BE: Tensor


def wkv4_step(k_BE: Tensor, v_BE: Tensor, w_E: Tensor, u_E: Tensor, state: WKV4State, /) -> tuple[Tensor, WKV4State]:
    """One time step: the definition. Computed wide."""
    k_BE, v_BE, w_E, u_E = (upcast(x) for x in (k_BE, v_BE, w_E, u_E))
    p_BE, empty_BE = state.p_BE.detach(), state.den_BE == 0
    own_BE = (u_E + k_BE).detach()
    unit_BE = torch.where(empty_BE, own_BE, torch.maximum(p_BE, own_BE))
    # differences of k and p first: they are nearly exact, however large k and p are
    past_BE = torch.exp((p_BE - unit_BE).masked_fill(empty_BE, -torch.inf))
    now_BE = torch.exp(u_E + (k_BE - unit_BE))
    y_BE = (past_BE * state.num_BE + now_BE * v_BE) / (past_BE * state.den_BE + now_BE)
    after_BE = torch.where(empty_BE, k_BE, torch.maximum(p_BE + w_E, k_BE)).detach()
    decay_BE = torch.exp((w_E + (p_BE - after_BE)).masked_fill(empty_BE, -torch.inf))
    write_BE = torch.exp(k_BE - after_BE)
    num_BE = decay_BE * state.num_BE + write_BE * v_BE
    return y_BE, WKV4State(num_BE, decay_BE * state.den_BE + write_BE, after_BE)


def wkv4_recurrent(
    k_BTE: Tensor,
    v_BTE: Tensor,
    w_E: Tensor,
    u_E: Tensor,
    state: WKV4State,
    /,
    *,
    reset_BT: Tensor | None,
    valid_BT: Tensor | None,
) -> tuple[Tensor, WKV4State]:
    """The definition, one step after another. Where valid_BT is False nothing happens and the output is 0."""
    before = state._replace(p_BE=state.p_BE.detach())
    y_BTE, after = run_steps(
        lambda k_BE, v_BE, state: wkv4_step(k_BE, v_BE, w_E, u_E, state),
        [k_BTE, v_BTE],
        before,
        reset_BT=reset_BT,
        valid_BT=valid_BT,
    )
    return y_BTE, after
