"""Token shift: the input of the step before, as RWKV mixes it into each step (Peng et al. 2023, arXiv:2305.13048).

B batch  T time  D width
"""

from typing import NamedTuple

import torch
from torch import Tensor

from exlstm.ops.arguments import checked_rows, checked_state
from exlstm.ops.common import length_mask, upcast, zero_padding


class TokenShiftState(NamedTuple):
    """The last input of every row, batch first, float32 or wider."""

    x_BD: Tensor


def token_shift(
    x_BTD: Tensor,
    state: TokenShiftState,
    /,
    *,
    reset_BT: Tensor | None = None,
    lengths_B: Tensor | None = None,
) -> tuple[Tensor, TokenShiftState]:
    """x_{t-1} for every step [B, T, D] in x's dtype, and the last input of every row; any T >= 1.

    At the first step it is the state. reset_BT (bool): 0 at that step. lengths_B (int): steps at or beyond a row's
    length leave its state alone and give 0, whatever is there. ValueError for shapes that do not fit.
    """
    B, T, D = x_BTD.shape
    reset_BT, lengths_B = checked_rows(x_BTD, reset_BT, lengths_B)
    state = checked_state(state, TokenShiftState, [(B, D)], x_BTD)
    every_BAD = torch.cat([state.x_BD[:, None], upcast(x_BTD)], dim=1)
    before_BTD = every_BAD[:, :-1].to(x_BTD.dtype)
    if reset_BT is not None:
        before_BTD = before_BTD.masked_fill(reset_BT[..., None], 0)
    if lengths_B is None:
        return before_BTD, TokenShiftState(every_BAD[:, -1].clone())
    before_BTD = zero_padding(before_BTD, length_mask(lengths_B, T))
    return before_BTD, TokenShiftState(every_BAD[torch.arange(B, device=x_BTD.device), lengths_B])
