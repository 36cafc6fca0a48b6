"""Positions of steps, counted from a row's beginning or from its last reset.

B batch  T time
"""

from typing import NamedTuple

import torch
from torch import Tensor


class PositionState(NamedTuple):
    """The position of each row's next step, int64."""

    next_B: Tensor


def positions(next_B: Tensor, T: int, reset_BT: Tensor | None) -> tuple[Tensor, Tensor]:
    """(position_BT, segment_BT): steps since the row's last reset, and how many resets came before."""
    step_T = torch.arange(T, device=next_B.device)
    position_BT = next_B[:, None] + step_T
    if reset_BT is None:
        return position_BT, torch.zeros_like(position_BT)
    since_BT = torch.where(reset_BT, step_T, -1).cummax(dim=1).values
    return torch.where(since_BT >= 0, step_T - since_BT, position_BT), reset_BT.long().cumsum(1)


def counted(
    state: PositionState, T: int, reset_BT: Tensor | None, lengths_B: Tensor | None
) -> tuple[Tensor, PositionState]:
    """position_BT of T steps, and the state after the last one; steps beyond a row's length do not count."""
    position_BT, _ = positions(state.next_B, T, reset_BT)
    if lengths_B is None:
        return position_BT, PositionState(position_BT[:, -1] + 1)
    last_B1 = (lengths_B - 1).clamp(min=0)[:, None]
    after_B = torch.where(lengths_B > 0, position_BT.gather(1, last_B1)[:, 0] + 1, state.next_B)
    return position_BT, PositionState(after_B)
