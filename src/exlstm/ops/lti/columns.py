"""Steps of all rows as columns of equal length, for products over chunks; and where each row ends.

A row is cut into N chunks of L steps. A chunk without resets is one column. Each reset inside a chunk begins a segment,
and each segment has a column, with its steps in their places and zeros elsewhere: a column then never mixes what a
reset separates. Columns of the chunks' last segments come first, in the order (n, b), the earlier segments behind them.

B batch  T time  E channels  N chunks  L steps of a chunk  M columns
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

CHUNK = 64  # steps, at most


class Columns(NamedTuple):
    """How steps lie in columns. Without resets there is one column per chunk, and the tensors are None.

    place_BT: of every step, its place among all steps of all columns. entry_NB: the column that the state before the
    chunk enters. carries_NB: whether that state goes on behind the chunk.
    """

    T: int
    N: int
    L: int
    M: int
    place_BT: Tensor | None
    entry_NB: Tensor | None
    carries_NB: Tensor | None


class Ends(NamedTuple):
    """Where the rows end: the last L steps of each, and what the state before its last chunk contributes.

    time_BL: steps; own_BL: whether they belong to the row's last segment and last chunk. chunk_B: that chunk.
    steps_B: how many of its steps are the row's. carries_B: whether no reset is among these.
    """

    time_BL: Tensor
    own_BL: Tensor
    chunk_B: Tensor
    steps_B: Tensor
    carries_B: Tensor


def columns_of(B: int, T: int, reset_BT: Tensor | None) -> Columns:
    """The columns of B rows of T steps. With resets their number is read from the device."""
    N = -(-T // CHUNK)
    L = -(-T // N)
    if reset_BT is None:
        return Columns(T, N, L, N * B, None, None, None)
    segment_NBL = pad(reset_BT, (0, N * L - T)).view(B, N, L).transpose(0, 1).long().cumsum(2)
    resets_NB = segment_NBL[:, :, -1]
    last_NB = torch.arange(N * B, device=reset_BT.device).view(N, B)
    first_NB = N * B + (resets_NB.flatten().cumsum(0) - resets_NB.flatten()).view(N, B)
    column_NBL = torch.where(segment_NBL == resets_NB[..., None], last_NB[..., None], first_NB[..., None] + segment_NBL)
    place_NBL = column_NBL * L + torch.arange(L, device=reset_BT.device)
    carries_NB = resets_NB == 0
    return Columns(
        T,
        N,
        L,
        N * B + int(resets_NB.sum()),
        place_NBL.transpose(0, 1).flatten(1)[:, :T],
        torch.where(carries_NB, last_NB, first_NB),
        carries_NB,
    )


def ends_of(B: int, columns: Columns, reset_BT: Tensor | None, lengths_B: Tensor | None, device: torch.device) -> Ends:
    """Where rows of these lengths end; None: at T."""
    T, L = columns.T, columns.L
    end_B = torch.full((B,), T, device=device) if lengths_B is None else lengths_B
    chunk_B = torch.div((end_B - 1).clamp(min=0), L, rounding_mode="floor")
    start_B = chunk_B * L
    steps_B, carries_B = end_B - start_B, end_B >= 0
    if reset_BT is not None:
        step_T = torch.arange(T, device=device)
        since_B = torch.where(reset_BT & (step_T < end_B[:, None]), step_T, -1).amax(1)
        carries_B, start_B = since_B < start_B, torch.maximum(start_B, since_B)
    time_BL = end_B[:, None] + torch.arange(-L, 0, device=device)
    return Ends(time_BL.clamp(min=0), time_BL >= start_B[:, None], chunk_B, steps_B, carries_B)


def last_steps(x_BTE: Tensor, ends: Ends) -> Tensor:
    """x_EBL: of every row the last L steps, zeros where they are not of its last segment and chunk."""
    row_B1 = torch.arange(x_BTE.shape[0], device=x_BTE.device)[:, None]
    last_BLE = x_BTE[row_B1, ends.time_BL].masked_fill(~ends.own_BL[..., None], 0)
    return last_BLE.permute(2, 0, 1).contiguous()


def add_to_last_steps(x_BTE: Tensor, more_EBL: Tensor, ends: Ends) -> Tensor:
    """x with `more` added, the adjoint of `last_steps`."""
    B, T, E = x_BTE.shape
    row_B1 = torch.arange(B, device=x_BTE.device)[:, None]
    more_BLE = more_EBL.permute(1, 2, 0).masked_fill(~ends.own_BL[..., None], 0)
    # a step that is not the row's own adds zeros to step 0
    place_BL = row_B1 * T + ends.time_BL
    return x_BTE.reshape(B * T, E).index_add(0, place_BL.flatten(), more_BLE.reshape(-1, E)).view(B, T, E)
