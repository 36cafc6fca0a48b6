"""Sequences of different lengths, one after another in a single row, as rows of a batch.

cu_seqlens: integers [S + 1], where each sequence begins and the last one ends; 0 first, T last, none decreasing.

S sequences  T time of the packed row  L the longest sequence
"""

from typing import NamedTuple

import torch
from torch import Tensor

from exlstm.runtime.tracing import tracer


def check_borders(cu_seqlens: Tensor, rows: int, T: int) -> None:
    """ValueError for borders that do not cut one row of T steps."""
    if rows != 1:
        raise ValueError(f"with cu_seqlens there must be one row and there are {rows}; join them along the time.")
    if cu_seqlens.ndim != 1 or len(cu_seqlens) < 2 or cu_seqlens.dtype not in (torch.int32, torch.int64):
        raise ValueError(
            f"cu_seqlens is {cu_seqlens.dtype} of shape {tuple(cu_seqlens.shape)}; "
            "it must hold integers, [sequences + 1]."
        )
    # on other devices this look would wait for the device
    if cu_seqlens.is_cpu and tracer() is None:
        ends = cu_seqlens.tolist()
        if ends[0] != 0 or ends[-1] != T or sorted(ends) != ends:
            raise ValueError(f"cu_seqlens is {ends}; it must rise from 0 to the {T} steps of the row.")


class PackedIndex(NamedTuple):
    """The place of every sequence's steps in the packed row; beyond a sequence's length, of steps of others."""

    step_SL: Tensor
    lengths_S: Tensor

    def unpack(self, x: Tensor) -> Tensor:
        """Sequences as rows: [1, T, ...] -> [S, L, ...]. Steps beyond a length are padding."""
        return x[0][self.step_SL]

    def pack(self, x: Tensor) -> Tensor:
        """Sequences as one row, without padding: [S, L, ...] -> [1, T, ...]."""
        own_SL = torch.arange(x.shape[1], device=x.device) < self.lengths_S[:, None]
        return x[own_SL][None]


def packed_index(cu_seqlens: Tensor) -> PackedIndex:
    """The index of these borders. It waits for the device, whose longest sequence gives the shape."""
    lengths_S = cu_seqlens.diff().long()
    step_L = torch.arange(int(lengths_S.max()), device=cu_seqlens.device)
    return PackedIndex((cu_seqlens[:-1, None] + step_L).clamp(max=cu_seqlens[-1] - 1), lengths_S)
