"""The diagonal scan, the definition: h_t = a_t h_{t-1} + b_t for every channel.

In `rotating_step` a_t = r_t e^(i theta): h turns by the same angle at every step.

B batch  T time  E channels
"""

from typing import NamedTuple

import torch
from torch import Tensor

from exlstm.ops.common import upcast
from exlstm.ops.steps import run_steps


class ScanState(NamedTuple):
    """The channels after a step, batch first, float32 or wider."""

    h_BE: Tensor


def scan_step(a_BE: Tensor, b_BE: Tensor, state: ScanState, /) -> tuple[Tensor, ScanState]:
    """One time step, computed wide."""
    h_BE = upcast(a_BE) * state.h_BE + upcast(b_BE)
    return h_BE, ScanState(h_BE)


def scan_recurrent(
    a_BTE: Tensor, b_BTE: Tensor, h_BE: Tensor, /, *, reset_BT: Tensor | None, valid_BT: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The definition, one step after another. Where valid_BT is False nothing happens and the output is 0."""
    h_BTE, state = run_steps(scan_step, [a_BTE, b_BTE], ScanState(h_BE), reset_BT=reset_BT, valid_BT=valid_BT)
    return h_BTE, state.h_BE


class RotatingState(NamedTuple):
    """Real and imaginary parts of the channels after a step, batch first, float32 or wider."""

    re_BE: Tensor
    im_BE: Tensor


def rotating_step(
    r_BE: Tensor, theta_E: Tensor, re_BE: Tensor, im_BE: Tensor, state: RotatingState, /
) -> tuple[Tensor, RotatingState]:
    """One time step, computed wide: both parts side by side, and the state."""
    r_BE, angle_E = upcast(r_BE), upcast(theta_E)
    cos_E, sin_E = torch.cos(angle_E), torch.sin(angle_E)
    h_re_BE = r_BE * (cos_E * state.re_BE - sin_E * state.im_BE) + upcast(re_BE)
    h_im_BE = r_BE * (sin_E * state.re_BE + cos_E * state.im_BE) + upcast(im_BE)
    return torch.cat([h_re_BE, h_im_BE], dim=1), RotatingState(h_re_BE, h_im_BE)


def rotating_recurrent(
    r_BTE: Tensor,
    theta_E: Tensor,
    re_BTE: Tensor,
    im_BTE: Tensor,
    state: RotatingState,
    /,
    *,
    reset_BT: Tensor | None,
    valid_BT: Tensor | None,
) -> tuple[Tensor, Tensor, RotatingState]:
    """The definition, one step after another. Where valid_BT is False nothing happens and the output is 0."""
    both_BTM, state = run_steps(
        lambda r_BE, re_BE, im_BE, state: rotating_step(r_BE, theta_E, re_BE, im_BE, state),
        [r_BTE, re_BTE, im_BTE],
        state,
        reset_BT=reset_BT,
        valid_BT=valid_BT,
    )
    h_re_BTE, h_im_BTE = both_BTM.chunk(2, dim=2)
    return h_re_BTE, h_im_BTE, state
