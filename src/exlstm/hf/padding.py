"""Padding anywhere in a row: the tokens of each row move together to its front, and the results back to their places.

A model that reads from left to right then needs the length of each row and nothing else, so that a row gives what it
gives alone, wherever its padding is.

B batch  T columns of input  L columns when packed  D model width
"""

from typing import NamedTuple

import torch
from torch import Tensor

from exlstm.data.packing import IGNORE


class Packing(NamedTuple):
    """source_BL: the column that each packed step comes from. place_BT: the packed step whose result a column shows.
    lengths_B: tokens per row."""  # fmt: skip

    source_BL: Tensor
    place_BT: Tensor
    lengths_B: Tensor

    def pack(self, x: Tensor) -> Tensor:
        """[B, T, ...] -> [B, L, ...]; what is beyond a row's length is anything."""
        return _take(x, self.source_BL)

    def unpack(self, x: Tensor) -> Tensor:
        """[B, L, ...] -> [B, T, ...]; padding shows the result of the last token before it."""
        return _take(x, self.place_BT)


def packing(mask: Tensor | None, tokens: Tensor) -> Packing | None:
    """How to pack rows of `tokens` ([B, T, ...]) by an attention mask, 0 for padding; None where there is no padding.

    The mask is [B, T], or longer: with a cache it covers what was read before too, and its end counts.
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
    """What each packed step should predict, of targets that stand in its column; IGNORE for padding."""
    if packed is None:
        return targets_BT
    targets_BL = packed.pack(targets_BT)
    step_L = torch.arange(targets_BL.shape[1], device=targets_BL.device)
    return targets_BL.masked_fill(step_L >= packed.lengths_B[:, None], IGNORE)


def next_tokens(labels_BT: Tensor, packed: Packing | None) -> Tensor:
    """What each packed step should predict: the label of the row's next token; IGNORE behind the last one."""
    labels_BL = own_targets(labels_BT, packed)
    return torch.cat([labels_BL[:, 1:], torch.full_like(labels_BL[:, :1], IGNORE)], dim=1)


def _take(x: Tensor, index: Tensor) -> Tensor:
    return x[torch.arange(len(x), device=x.device)[:, None], index]
