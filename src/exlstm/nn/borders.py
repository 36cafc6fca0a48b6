"""Where rows end and where their memory is cleared, in both directions of time.

B batch  T time
"""

from typing import NamedTuple

import torch
from torch import Tensor

from exlstm.ops.common import broadcast_mask, length_mask


class Borders(NamedTuple):
    """Resets, bool: the memory is cleared before that step. Lengths: later steps are padding."""

    reset_BT: Tensor | None = None
    lengths_B: Tensor | None = None


class Reversal(NamedTuple):
    """The order of a row's own steps from its last to its first; padding stays where it is."""

    index_BT: Tensor | None

    @classmethod
    def of(cls, lengths_B: Tensor | None, T: int) -> "Reversal":
        """The reversal of rows of these lengths, of at most T steps; None: all have T."""
        if lengths_B is None:
            return cls(None)
        step_T = torch.arange(T, device=lengths_B.device)
        own_BT = length_mask(lengths_B, T)
        return cls(torch.where(own_BT, lengths_B[:, None] - 1 - step_T, step_T))

    def __call__(self, x: Tensor) -> Tensor:
        """Rows [B, T, ...] in the other direction. Its own inverse."""
        if self.index_BT is None:
            return x.flip(1)
        return x.take_along_dim(broadcast_mask(self.index_BT, x), 1)

    def borders(self, borders: Borders) -> Borders:
        """Borders as the reversed rows meet them: a reset lies between a step and the one before it."""
        reset_BT = borders.reset_BT
        if reset_BT is None:
            return borders
        after_BT = torch.cat([reset_BT[:, 1:], torch.zeros_like(reset_BT[:, :1])], dim=1)
        turned_BT = self(after_BT)
        # what follows a row's last step is padding, or nothing
        first_B1 = torch.zeros_like(turned_BT[:, :1])
        return borders._replace(reset_BT=torch.cat([first_B1, turned_BT[:, 1:]], dim=1))


def last_steps(y_BTD: Tensor, lengths_B: Tensor | None, given_BD: Tensor) -> Tensor:
    """The last step of every row, or what was given for a row of no steps."""
    if lengths_B is None:
        return y_BTD[:, -1]
    step_B = (lengths_B - 1).clamp(min=0)
    last_BD = y_BTD.take_along_dim(step_B[:, None, None], 1)[:, 0]
    return torch.where((lengths_B > 0)[:, None], last_BD, given_BD.to(last_BD.dtype))
