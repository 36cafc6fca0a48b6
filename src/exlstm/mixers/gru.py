"""The GRU as a mixer (Cho et al. 2014, arXiv:1406.1078), in the form of cuDNN and torch.

    r = sigmoid(W_r x_t + U_r h_{t-1} + b_r) ,  z = sigmoid(W_z x_t + U_z h_{t-1} + b_z)
    n = tanh(W_n x_t + b_n + r (U_n h_{t-1} + c))
    h_t = (1 - z) n + z h_{t-1} ,  y = h

torch has two biases for each gate; of r and z they are one here, for only their sum counts.

B batch  T time  D model width (that of the hidden state too)  V width of a head  G the rows of r, z and n (3 D)
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from exlstm.mixers.contract import BlockStyle, FixedStateMixer, check_width, checked, mask_tail, wide_zeros
from exlstm.nn import init
from exlstm.nn.fields import Size, check_fields
from exlstm.ops.gru import GRUState, gru


@dataclass(frozen=True, kw_only=True)
class GRUConfig:
    """One GRU layer at the model width. heads: blocks of the block-diagonal recurrent weights; 1: dense."""

    style: ClassVar[BlockStyle] = BlockStyle(norm="layer", activation="gelu", factor=1.3)

    heads: Size = 1

    def __post_init__(self) -> None:
        check_fields(self)

    def build(self, width: int, *, depth: int = 1, index: int = 0) -> nn.Module:
        """The mixer. ValueError where the width cannot be divided into heads."""
        return GRU(width, self)


class GRU(FixedStateMixer):
    """GRU as a mixer: see `mixers.contract`, and `GRUConfig` for its options."""

    def __init__(self, width: int, config: GRUConfig) -> None:
        super().__init__()
        check_width(width, config.heads)
        self.config, self.width, self.backend = config, width, "auto"
        self.w_GD = nn.Parameter(torch.empty(3 * width, width))
        # rows in torch's order (gate, head, unit); columns are those of the row's own head, all others are zero
        self.u_GV = nn.Parameter(torch.empty(3 * width, width // config.heads))
        self.b_G, self.c_D = nn.Parameter(torch.empty(3 * width)), nn.Parameter(torch.empty(width))
        init.fill(self, dict.fromkeys(("w_GD", "u_GV", "b_G", "c_D"), init.uniform(width**-0.5)))  # as torch's GRU

    def forward(
        self,
        x_BTD: Tensor,
        state: GRUState | None = None,
        *,
        reset_BT: Tensor | None = None,
        lengths_B: Tensor | None = None,
    ) -> tuple[Tensor, GRUState]:
        """[B, T, width] -> [B, T, width] and the state after the last step; see `mixers.contract`."""
        x_BTD, reset_BT, lengths_B = checked(x_BTD, self.width, reset_BT, lengths_B)
        state = self.zero_state(x_BTD.shape[0]) if state is None else state
        weights, rows = (self.w_GD, self.u_GV, self.b_G, self.c_D), {"reset_BT": reset_BT, "lengths_B": lengths_B}
        y_BTD, state = gru(x_BTD, *weights, state, **rows, backend=self.backend)
        return mask_tail(y_BTD, lengths_B), state

    def zero_state(self, batch: int, /, device: torch.device | None = None) -> GRUState:
        """State before the first step, on the device of the weights or on another."""
        return GRUState(wide_zeros(self.b_G, device)(batch, self.width))

    def cell_flops(self, mode: str, length: int, /) -> float:
        """FLOPs of 15 pointwise operations per channel."""
        return 15.0 * self.width
