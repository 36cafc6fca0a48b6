"""Padding anywhere in a row: tokens are packed at the front of each row, and results unpacked to their columns.

A causal model then needs only the length of each row, and the result of a row does not depend on its padding.

B batch  T columns of input  L columns when packed  D model width
"""

from typing import NamedTuple

import torch
from torch import Tensor

from exlstm.data.packing import IGNORE


class Packing(NamedTuple):
    """Index maps between columns and packed steps.

    source_BL: the column of each packed step. place_BT: the packed step whose result each column gets.
    lengths_B: tokens per row.
    """

    source_BL: Tensor
    place_BT: Tensor
    lengths_B: Tensor

    def pack(self, x: Tensor) -> Tensor:
        """[B, T, ...] -> [B, L, ...]; steps beyond the length of a row are arbitrary."""
        return _take(x, self.source_BL)

    def unpack(self, x: Tensor) -> Tensor:
        """[B, L, ...] -> [B, T, ...]; padding gets the result of the last token before it."""
        return _take(x, self.place_BT)


def packing(mask: Tensor | None, tokens: Tensor) -> Packing | None:
    """The packing of `tokens` ([B, T, ...]) by an attention mask, 0 for padding; None without padding.

    The mask is [B, T], or longer: with a cache it also covers earlier tokens, and its last T columns count.
    Raises ValueError for a mask of another shape.
    """
    if mask is None:
        return None
    B, T = tokens.shape[:2]
    if mask.ndim != 2 or len(mask) != B or mask.shape[1] < T:
        raise ValueError(
            f"attention_mask has shape {tuple(mask.shape)}; with these tokens it must be ({B}, {T}), "
            "or longer by what was read before."
        )
    here_BT = mask[:, -T:] != 0
    if here_BT.all():
        return None
    lengths_B = here_BT.sum(1)
    L = max(1, int(lengths_B.max()))
    source_BL = torch.argsort(here_BT.logical_not().int(), dim=1, stable=True)[:, :L]
    return Packing(source_BL, (here_BT.cumsum(1) - 1).clamp(min=0), lengths_B)


def own_targets(targets_BT: Tensor, packed: Packing | None) -> Tensor:
    """The target of each packed step, from targets in the column of the step; IGNORE for padding."""
    if packed is None:
        return targets_BT
    targets_BL = packed.pack(targets_BT)
    step_L = torch.arange(targets_BL.shape[1], device=targets_BL.device)
    return targets_BL.masked_fill(step_L >= packed.lengths_B[:, None], IGNORE)


def next_tokens(labels_BT: Tensor, packed: Packing | None) -> Tensor:
    """The target of each packed step, from labels in the column of the next token; IGNORE behind the last one."""
    labels_BL = own_targets(labels_BT, packed)
    return torch.cat([labels_BL[:, 1:], torch.full_like(labels_BL[:, :1], IGNORE)], dim=1)


def _take(x: Tensor, index: Tensor) -> Tensor:
    return x[torch.arange(len(x), device=x.device)[:, None], index]
