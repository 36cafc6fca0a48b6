"""Learned positions as a module with a state, like a mixer.

B batch  T time  D width  N positions
"""

import torch
from torch import Tensor, nn

from exlstm.nn import init
from exlstm.ops.position_table import add_positions, last_position
from exlstm.ops.positions import PositionState
from exlstm.runtime.tracing import tracer


class PositionTable(nn.Module):
    """A vector for each of the first `count` steps of a sequence, added to its embedding. There are no more steps."""

    def __init__(self, count: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(count, width))
        init.fill(self, {"weight": init.small(width)})

    def forward(
        self,
        x_BTD: Tensor,
        state: PositionState | None = None,
        *,
        reset_BT: Tensor | None = None,
        lengths_B: Tensor | None = None,
    ) -> tuple[Tensor, PositionState]:
        """[B, T, D] -> [B, T, D] and the state after the last step; see `add_positions`."""
        state = self.zero_state(x_BTD.shape[0]) if state is None else state
        return add_positions(x_BTD, self.weight, state, reset_BT=reset_BT, lengths_B=lengths_B)

    def check(
        self, tokens_BT: Tensor, state: PositionState | None, reset_BT: Tensor | None, lengths_B: Tensor | None
    ) -> None:
        """ValueError for a step beyond the table. Reads values only where there can be one, and never of a tracer."""
        (batch, steps), count = tokens_BT.shape, len(self.weight)
        if (state is None and steps <= count) or tokens_BT.is_meta or tracer() is not None:
            return
        next_B = torch.zeros(batch, dtype=torch.long, device=tokens_BT.device) if state is None else state.next_B
        if (last := last_position(next_B, steps, reset_BT, lengths_B)) >= count:
            raise ValueError(
                f"a row has {last + 1:,} steps since its beginning, and this model has positions for {count:,}; "
                "cut texts to that length, or reset at the beginning of each."
            )

    def zero_state(self, batch: int, /, device: torch.device | None = None) -> PositionState:
        """State before the first step, on the device of the weights or on another."""
        return PositionState(torch.zeros(batch, dtype=torch.long, device=device or self.weight.device))

    def state_bytes(self, _length: int = 0, /) -> int:
        """Bytes of one sequence's state: a position."""
        return torch.long.itemsize
