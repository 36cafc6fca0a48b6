"""The diagonal scan, the definition: h_t = a_t h_{t-1} + b_t for every channel.

B batch  T time  E channels
"""

from typing import NamedTuple

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
