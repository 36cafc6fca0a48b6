"""The diagonal state space, the definition: continuous poles, a step size, and one complex recurrence per state.

    A = -exp(log_re) + i im            poles that are stable whatever the parameters are
    x = A exp(log_dt)                  without log_dt the step size is 1
    zero-order hold    a = e^x                      b = (e^x - 1) / A
    bilinear           a = (1 + x/2) / (1 - x/2)    b = exp(log_dt) / (1 - x/2)
    h_t = a h_{t-1} + u_t ,  y_t = Re(sum_z c_z b_z h_t[z]) + skip u_t

Poles may be one set for all channels, and so may c and skip. Complex numbers are two planes, re and im.

B batch  T time  E channels  Z states  P channels that poles are given for (E or 1)  R the same of c  Q the larger one
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from exlstm.ops.common import length_mask, upcast
from exlstm.ops.steps import run_steps

Discretization = Literal["zoh", "bilinear"]


class LTIState(NamedTuple):
    """The states of every channel after a step, batch first, float32 or wider."""

    re_BEZ: Tensor
    im_BEZ: Tensor


class LTIParameters(NamedTuple):
    """Continuous parameters: poles, the logarithm of the step size, and the weights of the states and of u in y."""

    log_re_PZ: Tensor
    im_PZ: Tensor
    log_dt_P: Tensor | None
    c_re_RZ: Tensor
    c_im_RZ: Tensor
    skip_R: Tensor


class LTISystem(NamedTuple):
    """The recurrence in discrete time: the factor a of a step, c b, and skip."""

    a_re_PZ: Tensor
    a_im_PZ: Tensor
    c_re_QZ: Tensor
    c_im_QZ: Tensor
    skip_R: Tensor


def discretized(p: LTIParameters, method: Discretization) -> LTISystem:
    """The system, computed wide. Where a step changes little, e^x - 1 keeps its digits."""
    log_re_PZ, im_PZ, c_re_RZ, c_im_RZ = (upcast(t) for t in (p.log_re_PZ, p.im_PZ, p.c_re_RZ, p.c_im_RZ))
    re_PZ, dt_P1 = -log_re_PZ.exp(), 1.0 if p.log_dt_P is None else upcast(p.log_dt_P).exp()[:, None]
    x_PZ, y_PZ = re_PZ * dt_P1, im_PZ * dt_P1
    if method == "zoh":
        size_PZ, sine_PZ = x_PZ.exp(), torch.sin(0.5 * y_PZ)
        a_re_PZ, a_im_PZ = size_PZ * torch.cos(y_PZ), size_PZ * torch.sin(y_PZ)
        less_PZ = torch.expm1(x_PZ) * torch.cos(y_PZ) - 2 * sine_PZ * sine_PZ
        scale_PZ = 1 / (re_PZ * re_PZ + im_PZ * im_PZ)
        b_re_PZ = (less_PZ * re_PZ + a_im_PZ * im_PZ) * scale_PZ
        b_im_PZ = (a_im_PZ * re_PZ - less_PZ * im_PZ) * scale_PZ
    else:
        u_PZ, v_PZ = 0.5 * x_PZ, 0.5 * y_PZ
        scale_PZ = 1 / ((1 - u_PZ) * (1 - u_PZ) + v_PZ * v_PZ)
        a_re_PZ, a_im_PZ = ((1 + u_PZ) * (1 - u_PZ) - v_PZ * v_PZ) * scale_PZ, y_PZ * scale_PZ
        b_re_PZ, b_im_PZ = (1 - u_PZ) * scale_PZ * dt_P1, v_PZ * scale_PZ * dt_P1
    c_re_QZ = c_re_RZ * b_re_PZ - c_im_RZ * b_im_PZ
    c_im_QZ = c_re_RZ * b_im_PZ + c_im_RZ * b_re_PZ
    return LTISystem(a_re_PZ, a_im_PZ, c_re_QZ, c_im_QZ, upcast(p.skip_R))


def lti_step(u_BE: Tensor, system: LTISystem, state: LTIState, /) -> tuple[Tensor, LTIState]:
    """One time step, computed wide."""
    a_re_PZ, a_im_PZ, c_re_QZ, c_im_QZ, skip_R = system
    u_BE = upcast(u_BE)
    re_BEZ = a_re_PZ * state.re_BEZ - a_im_PZ * state.im_BEZ + u_BE[..., None]
    im_BEZ = a_re_PZ * state.im_BEZ + a_im_PZ * state.re_BEZ
    y_BE = (c_re_QZ * re_BEZ - c_im_QZ * im_BEZ).sum(-1) + skip_R * u_BE
    return y_BE, LTIState(re_BEZ, im_BEZ)


def lti_recurrent(
    u_BTE: Tensor,
    system: LTISystem,
    state: Sequence[Tensor],
    /,
    *,
    reset_BT: Tensor | None,
    lengths_B: Tensor | None,
) -> tuple[Tensor, LTIState]:
    """The definition, one step after another. Beyond a row's length nothing happens and the output is 0."""
    return run_steps(
        lambda u_BE, before: lti_step(u_BE, system, before),
        [u_BTE],
        LTIState(*state),
        reset_BT=reset_BT,
        valid_BT=None if lengths_B is None else length_mask(lengths_B, u_BTE.shape[1]),
    )
