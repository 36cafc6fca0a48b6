"""A state space in steps: what a pole does to its state and to its input over a step dt, the input held constant.

    lambda = -e^a + i b ,  dt = e^d
    h_t = e^(lambda dt) h_{t-1} + (e^(lambda dt) - 1) / lambda B x_t

Computed in float64 (`exact_dtype`): |lambda dt| goes down to 1e-3, where e^x - 1 would lose digits, and angles need
all of theirs.

P poles
"""

from typing import NamedTuple

import torch
from torch import Tensor

from exlstm.ops.common import exact_dtype
from exlstm.runtime import capture
from exlstm.runtime.internals import is_compiling


class HeldInput(NamedTuple):
    """Of every pole: absolute value and angle of e^(lambda dt), and the parts of (e^(lambda dt) - 1) / lambda."""

    r_P: Tensor
    theta_P: Tensor
    re_P: Tensor
    im_P: Tensor


def held_input(a_P: Tensor, b_P: Tensor, d_P: Tensor, /) -> HeldInput:
    """The factors of poles -e^a + i b with steps e^d, in their dtype."""
    if not is_compiling() and capture.active() is not None and a_P.dtype is torch.float32:
        from exlstm.ops.scan.numba.hold import held_input_numba

        return HeldInput(*held_input_numba(a_P, b_P, d_P))
    return held_input_torch(a_P, b_P, d_P)


def held_input_torch(a_P: Tensor, b_P: Tensor, d_P: Tensor, /) -> HeldInput:
    """`held_input` in plain torch."""
    exact = exact_dtype(a_P)
    rate_P, turn_P, dt_P = torch.exp(a_P.to(exact)), b_P.to(exact), torch.exp(d_P.to(exact))
    x_P, theta_P = -rate_P * dt_P, turn_P * dt_P
    r_P = torch.exp(x_P)
    # e^(lambda dt) - 1, which is small
    less_re_P = torch.expm1(x_P) * torch.cos(theta_P) - 2 * torch.sin(theta_P / 2).square()
    less_im_P = r_P * torch.sin(theta_P)
    square_P = rate_P.square() + turn_P.square()
    re_P = (less_im_P * turn_P - less_re_P * rate_P) / square_P
    im_P = -(less_im_P * rate_P + less_re_P * turn_P) / square_P
    return HeldInput(*(x.to(a_P.dtype) for x in (r_P, theta_P, re_P, im_P)))
