"""Positions of steps, counted from a row's beginning or from its last reset.

B batch  T time
"""

from typing import NamedTuple

import torch
from torch import Tensor

from exlstm.ops.arguments import misfit


class PositionState(NamedTuple):
    """The position of each row's next step, int64."""

    next_B: Tensor


def check_position_state(state: PositionState, x: Tensor) -> None:
    """ValueError for a state that is none of positions, and for one that does not fit the rows of x."""
    if not isinstance(state, PositionState):
        raise ValueError(f"the state is a {type(state).__name__}; it must be the PositionState of an earlier call.")
    next_B = state.next_B
    if next_B.shape != x.shape[:1] or next_B.dtype is not torch.int64 or next_B.device != x.device:
        raise misfit("next_B of the state", next_B, torch.int64, tuple(x.shape[:1]), x.device)


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
