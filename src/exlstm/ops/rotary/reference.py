"""Rotary embedding by the positions of a stream, and by angles that add up, in plain torch.

B batch  T time  H heads  K head width  J pairs that are rotated
"""

from math import pi
from typing import NamedTuple

import torch
from torch import Tensor

from exlstm.ops.common import exact_dtype, upcast
from exlstm.ops.positions import PositionState, counted
from exlstm.ops.rope import rope
from exlstm.ops.scan import ScanState, scan


class AngleState(NamedTuple):
    """The angle of every pair of channels, from 0 to 2 pi, batch first, float32 or wider."""

    angle_BHJ: Tensor


def rotary_torch(
    q_BTHK: Tensor,
    k_BTHK: Tensor,
    next_B: Tensor,
    /,
    *,
    base: float,
    reset_BT: Tensor | None,
    lengths_B: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """q and k rotated, and the positions of the next steps."""
    position_BT, state = counted(PositionState(next_B), q_BTHK.shape[1], reset_BT, lengths_B)
    q_BTHK, k_BTHK = (rope(upcast(x), position_BT, base=base).to(x.dtype) for x in (q_BTHK, k_BTHK))
    return q_BTHK, k_BTHK, state.next_B


def turned_torch(
    q_BTHK: Tensor,
    k_BTHK: Tensor,
    turn_BTHJ: Tensor,
    angle_BHJ: Tensor,
    /,
    *,
    reset_BT: Tensor | None,
    lengths_B: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """q and k rotated, and the angles after the last step. Angles are summed in `exact_dtype`."""
    exact = exact_dtype(q_BTHK)
    turn_BTE = turn_BTHJ.flatten(2).to(exact)
    one = torch.ones((), dtype=exact, device=q_BTHK.device)
    angle_BTE, state = scan(
        one.expand_as(turn_BTE),
        turn_BTE,
        ScanState(angle_BHJ.flatten(1).to(exact)),
        reset_BT=reset_BT,
        lengths_B=lengths_B,
    )
    angle_BTHJ = angle_BTE.view(turn_BTHJ.shape)
    cos_BTHJ, sin_BTHJ = (x.to(angle_BHJ.dtype) for x in (angle_BTHJ.cos(), angle_BTHJ.sin()))
    q_BTHK, k_BTHK = (pairs_rotated(x, cos_BTHJ, sin_BTHJ) for x in (q_BTHK, k_BTHK))
    return q_BTHK, k_BTHK, torch.remainder(state.h_BE, 2 * pi).view(angle_BHJ.shape).to(angle_BHJ.dtype)


def pairs_rotated(x_BTHK: Tensor, cos_BTHJ: Tensor, sin_BTHJ: Tensor) -> Tensor:
    """x with its first J pairs of neighbors rotated."""
    J = cos_BTHJ.shape[-1]
    left_BTHJ, right_BTHJ = (upcast(x_BTHK[..., first : 2 * J : 2]) for first in (0, 1))
    pair = left_BTHJ * cos_BTHJ - right_BTHJ * sin_BTHJ, right_BTHJ * cos_BTHJ + left_BTHJ * sin_BTHJ
    return torch.cat([torch.stack(pair, dim=-1).flatten(-2).to(x_BTHK.dtype), x_BTHK[..., 2 * J :]], dim=-1)
