"""Segments between resets, as rows or as blocks of columns; and the cache after a call.

A convolution cannot be gated: what a reset separates must lie in different rows of a product. With resets the number of
rows is read from the device.

B batch  T time  S cached steps  A cached and new steps  E channels  M columns  J those with new steps  L their length
V cached steps afterwards
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from exlstm.ops.long_conv.reference import LongConvState, cache_size

BLOCK = 32  # steps of a column


class InputBlocks(NamedTuple):
    """How cached and new steps lie in columns of L steps, of which the first new step begins one.

    front: zeros before the cached steps. N: columns of a row; old: those with cached steps alone. M: of all rows.
    deepest: the most columns of its own segment that come before one.
    With resets, place_BA: places of all steps; new_J: columns with new steps; place_BT: places of new steps in these;
    depth_J: how many columns of its own segment come before each.
    """

    front: int
    N: int
    old: int
    M: int
    deepest: int
    place_BA: Tensor | None = None
    place_BT: Tensor | None = None
    new_J: Tensor | None = None
    depth_J: Tensor | None = None

    def pairs(self, B: int, lag: int) -> tuple[slice | Tensor, slice | Tensor]:
        """Columns with new steps that have a column `lag` before them, among the new ones, and that column of each."""
        if self.new_J is None or self.depth_J is None:
            first = max(lag, self.old)
            return slice((first - self.old) * B, None), slice((first - lag) * B, (self.N - lag) * B)
        reached = (self.depth_J >= lag).nonzero()[:, 0]
        return reached, self.new_J[reached] - lag


def blocks_of(B: int, A: int, S: int, reset_BT: Tensor | None) -> InputBlocks:
    """The columns of S cached and A - S new steps of B rows."""
    L, front = BLOCK, -S % BLOCK
    N, old = -(-(front + A) // L), (front + S) // L
    if reset_BT is None:
        return InputBlocks(front, N, old, N * B, N - 1)
    position_BA = positions(pad(reset_BT, (S, 0)), front)
    step_A = torch.arange(A, device=reset_BT.device)
    begins_BA = (position_BA % L == 0) | (step_A == 0)
    column_BA = begins_BA.flatten().cumsum(0).view(B, A) - 1
    M = int(begins_BA.sum())
    depth_M = column_BA.new_zeros(M)
    depth_M[column_BA.flatten()] = torch.div(position_BA, L, rounding_mode="floor").flatten()
    is_new_M = torch.zeros(M, dtype=torch.bool, device=reset_BT.device)
    is_new_M[column_BA[:, S:].flatten()] = True
    new_J, order_M = is_new_M.nonzero()[:, 0], is_new_M.long().cumsum(0) - 1
    depth_J = depth_M[new_J]
    place_BT = order_M[column_BA[:, S:]] * L + position_BA[:, S:] % L
    deepest = int(depth_J.max()) if len(depth_J) else 0
    return InputBlocks(front, N, old, M, deepest, column_BA * L + position_BA % L, place_BT, new_J, depth_J)


def positions(reset_BA: Tensor, front: int) -> Tensor:
    """position_BA: steps since the row's last reset; without one, since `front` steps before the row's first."""
    step_A = torch.arange(reset_BA.shape[1], device=reset_BA.device)
    return step_A - torch.where(reset_BA, step_A, -front).cummax(1).values


class SegmentRows(NamedTuple):
    """Segments as rows of the same width. place_BA: of every step; None: segments are the rows themselves."""

    rows: int
    width: int
    place_BA: Tensor | None = None

    def spread(self, x_BAE: Tensor) -> Tensor:
        """[segments, width, E], zeros behind the end of each."""
        if self.place_BA is None:
            return x_BAE
        steps = x_BAE.new_zeros(self.rows * self.width, x_BAE.shape[2])
        steps[self.place_BA.flatten()] = x_BAE.reshape(-1, x_BAE.shape[2])
        return steps.view(self.rows, self.width, -1)

    def joined(self, y: Tensor) -> Tensor:
        """The inverse: y_BAE of [segments, width, E]."""
        return y if self.place_BA is None else y.reshape(self.rows * self.width, -1)[self.place_BA]


def segment_rows(B: int, A: int, S: int, reset_BT: Tensor | None) -> SegmentRows:
    """The segments of S cached and A - S new steps of B rows."""
    if reset_BT is None or B == 0:
        return SegmentRows(B, A)
    reset_BA = pad(reset_BT, (S, 0))
    position_BA = positions(reset_BA, 0)
    begins_BA = position_BA == 0
    row_BA = begins_BA.flatten().cumsum(0).view(B, A) - 1
    width = int(position_BA.max()) + 1
    return SegmentRows(int(begins_BA.sum()), width, row_BA * width + position_BA)


def cache_after(
    x_BAE: Tensor, S: int, seen_B: Tensor, taps: int, reset_BT: Tensor | None, lengths_B: Tensor | None
) -> LongConvState:
    """The state after a call. x: S cached and then new steps, zeros where nothing has been seen."""
    (B, A, _), T = x_BAE.shape, x_BAE.shape[1] - S
    size = cache_size(S, T, taps)
    if reset_BT is None and lengths_B is None:
        last_BVE = x_BAE[:, A - size :]
        # a slice would hold the memory of a long sequence
        return LongConvState(last_BVE.clone() if 2 * size < A else last_BVE, (seen_B + T).clamp(max=size))
    end_B = torch.full_like(seen_B, T) if lengths_B is None else lengths_B
    count_B = seen_B + end_B
    if reset_BT is not None:
        step_T = torch.arange(T, device=x_BAE.device)
        since_B = torch.where(reset_BT & (step_T < end_B[:, None]), step_T, -1).amax(1)
        count_B = torch.where(since_B >= 0, end_B - since_B, count_B)
    count_B, entry_V = count_B.clamp(max=size), torch.arange(-size, 0, device=x_BAE.device)
    index_BV = (S + end_B[:, None] + entry_V).clamp(min=0)
    last_BVE = x_BAE[torch.arange(B, device=x_BAE.device)[:, None], index_BV]
    return LongConvState(last_BVE.masked_fill((entry_V < -count_B[:, None])[..., None], 0), count_B)
