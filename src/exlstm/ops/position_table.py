"""Learned positions: a vector for each of the first N steps of a sequence, added to its embedding.

    y_t = x_t + P[t] ,   t counted from the row's beginning, or from its last reset

(Gehring et al. 2017, arXiv:1705.03122; GPT of Radford et al. 2018.)

B batch  T time  D width  N positions of the table
"""

import torch
from torch import Tensor
from torch.nn import functional

from exlstm.ops.arguments import checked_rows, misfit
from exlstm.ops.common import length_mask
from exlstm.ops.positions import PositionState, counted, positions


def add_positions(
    x_BTD: Tensor,
    table_ND: Tensor,
    state: PositionState,
    *,
    reset_BT: Tensor | None = None,
    lengths_B: Tensor | None = None,
) -> tuple[Tensor, PositionState]:
    """x + P[position], [B, T, D], and the state after the last step.

    reset_BT: positions restart at that step. lengths_B: steps at or beyond a row's length do not count.
    Raises ValueError for a state that does not fit x, and an error of torch for a position beyond the table: see
    `last_position`.
    """
    reset_BT, lengths_B = checked_rows(x_BTD, reset_BT, lengths_B)
    if state.next_B.shape != x_BTD.shape[:1] or state.next_B.device != x_BTD.device:
        raise misfit("next_B of the state", state.next_B, torch.int64, x_BTD.shape[:1], x_BTD.device)
    position_BT, after = counted(state, x_BTD.shape[1], reset_BT, lengths_B)
    if lengths_B is not None:
        position_BT = position_BT.masked_fill(~length_mask(lengths_B, x_BTD.shape[1]), 0)
    return x_BTD + functional.embedding(position_BT, table_ND), after


def last_position(next_B: Tensor, steps: int, reset_BT: Tensor | None, lengths_B: Tensor | None) -> int:
    """The largest position of these steps, padding left out; -1 without any step. Waits for a GPU."""
    position_BT, _ = positions(next_B, steps, reset_BT)
    if lengths_B is not None:
        position_BT = position_BT.masked_fill(~length_mask(lengths_B, steps), -1)
    return int(position_BT.max()) if position_BT.numel() else -1
