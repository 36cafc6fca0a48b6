"""Learned positions: a vector for each of the first N steps of a sequence, added to its embedding.

    y_t = x_t + P[t] ,   t counted from the row's beginning, or from its last reset

(Gehring et al. 2017, arXiv:1705.03122; GPT of Radford et al. 2018.)

B batch  T time  D width  N positions of the table
"""

from torch import Tensor
from torch.nn import functional

from exlstm.ops.arguments import checked_rows
from exlstm.ops.common import length_mask
from exlstm.ops.positions import PositionState, check_position_state, counted, positions


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
    position_BT, after = checked_positions(x_BTD, state, reset_BT, lengths_B)
    return x_BTD + functional.embedding(position_BT, table_ND), after


def checked_positions(
    x_BTD: Tensor, state: PositionState, reset_BT: Tensor | None, lengths_B: Tensor | None
) -> tuple[Tensor, PositionState]:
    """The position of every step of x, [B, T], 0 in padding, and the state after the last step.

    Raises ValueError for a state that does not fit x.
    """
    reset_BT, lengths_B = checked_rows(x_BTD, reset_BT, lengths_B)
    check_position_state(state, x_BTD)
    position_BT, after = counted(state, x_BTD.shape[1], reset_BT, lengths_B)
    if lengths_B is not None:
        position_BT = position_BT.masked_fill(~length_mask(lengths_B, x_BTD.shape[1]), 0)
    return position_BT, after


def last_position(next_B: Tensor, steps: int, reset_BT: Tensor | None, lengths_B: Tensor | None) -> int:
    """The largest position of these steps, padding left out; -1 without any step. Waits for a GPU."""
    position_BT, _ = positions(next_B, steps, reset_BT)
    if lengths_B is not None:
        position_BT = position_BT.masked_fill(~length_mask(lengths_B, steps), -1)
    return int(position_BT.max()) if position_BT.numel() else -1
