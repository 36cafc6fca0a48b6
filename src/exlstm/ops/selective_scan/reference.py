"""The selective scan, the definition: Z states of every channel, written and read by what a step brings.

    h[e, z] = exp(dt[e] a[e, z]) h'[e, z] + dt[e] x[e] b[z]        h' the state before the step
    y[e] = sum_z c[z] h[e, z] + skip[e] x[e]

B batch  T time  E channels  Z states of a channel
"""

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from exlstm.ops.common import upcast
from exlstm.ops.steps import run_steps


class SelectiveScanState(NamedTuple):
    """The states of every channel after a step, batch first, float32 or wider."""

    h_BEZ: Tensor


class SelectiveScanInputs(NamedTuple):
    """Inputs of every form, and the states before the first step."""

    x_BTE: Tensor
    dt_BTE: Tensor
    a_EZ: Tensor
    b_BTZ: Tensor
    c_BTZ: Tensor
    skip_E: Tensor
    h_BEZ: Tensor

    @property
    def steps(self) -> list[Tensor]:
        """Those of every step: x, dt, b and c."""
        return [self.x_BTE, self.dt_BTE, self.b_BTZ, self.c_BTZ]


def selective_scan_step(
    x_BE: Tensor,
    dt_BE: Tensor,
    b_BZ: Tensor,
    c_BZ: Tensor,
    state: SelectiveScanState,
    /,
    *,
    a_EZ: Tensor,
    skip_E: Tensor,
) -> tuple[Tensor, SelectiveScanState]:
    """One time step, computed wide."""
    x_BE, dt_BE, b_BZ, c_BZ = map(upcast, (x_BE, dt_BE, b_BZ, c_BZ))
    decay_BEZ = torch.exp(dt_BE[..., None] * upcast(a_EZ))
    h_BEZ = decay_BEZ * state.h_BEZ + (dt_BE * x_BE)[..., None] * b_BZ[:, None]
    y_BE = (h_BEZ * c_BZ[:, None]).sum(-1) + upcast(skip_E) * x_BE
    return y_BE, SelectiveScanState(h_BEZ)


def selective_scan_recurrent(
    given: SelectiveScanInputs, /, *, reset_BT: Tensor | None, valid_BT: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The definition, one step after another. Where valid_BT is False nothing happens and the output is 0."""
    step, before = partial(selective_scan_step, a_EZ=given.a_EZ, skip_E=given.skip_E), SelectiveScanState(given.h_BEZ)
    y_BTE, state = run_steps(step, given.steps, before, reset_BT=reset_BT, valid_BT=valid_BT)
    return y_BTE, state.h_BEZ
