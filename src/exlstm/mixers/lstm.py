"""The vanilla LSTM as a mixer, the baseline of xLSTM.

B batch  T time  D model width (that of the hidden state too)  V width of a head  G the four gates' rows (4 D)
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from exlstm.mixers.contract import BlockStyle, FixedStateMixer, check_width, checked, mask_tail, wide_zeros
from exlstm.nn import init
from exlstm.nn.fields import Finite, Size, check_fields
from exlstm.nn.recurrence import block_diagonal
from exlstm.ops.lstm import LSTMState, lstm


@dataclass(frozen=True, kw_only=True)
class LSTMConfig:
    """One LSTM layer at the model width.

    forget_bias: initial bias of the forget gate; "power_law" is that of the sLSTM (5 down to -7 within a head, by
      depth), which gives units all time scales.
    heads: blocks of the block-diagonal recurrent weights (the paper's "LSTM (Block)"); 1: dense.
    """

    style: ClassVar[BlockStyle] = BlockStyle(norm="layer", activation="gelu", factor=1.3)
    heads: Size = 1
    forget_bias: Finite | Literal["power_law"] = 1.0

    def __post_init__(self) -> None:
        check_fields(self)

    def build(self, width: int, *, depth: int = 1, index: int = 0) -> nn.Module:
        """The mixer. ValueError where the width cannot be divided into heads."""
        return LSTM(width, self, depth, index)


class LSTM(FixedStateMixer):
    """LSTM as a mixer: see `mixers.contract`, and `LSTMConfig` for its options."""

    def __init__(self, width: int, config: LSTMConfig, depth: int, index: int) -> None:
        super().__init__()
        check_width(width, config.heads)
        H = config.heads
        self.config, self.width, self.backend = config, width, "auto"
        self.w_GD = nn.Parameter(torch.empty(4 * width, width))
        # rows in torch's order (gate, head, unit); columns are those of the row's own head, all others are zero
        self.u_GV = nn.Parameter(torch.empty(4 * width, width // H))
        self.b_G = nn.Parameter(torch.empty(4 * width))
        bound = width**-0.5  # as torch's LSTM
        power_law = config.forget_bias == "power_law"
        forget = init.power_law(index, depth) if power_law else init.constant(float(config.forget_bias))
        init.fill(
            self,
            {
                "w_GD": init.uniform(bound),
                "u_GV": init.uniform(bound),
                "b_G": lambda b_G: (b_G.zero_(), forget(b_G[width : 2 * width].view(H, -1))),
            },
        )

    def forward(
        self, x_BTD: Tensor, state: LSTMState | None = None, *,
        reset_BT: Tensor | None = None, lengths_B: Tensor | None = None,
    ) -> tuple[Tensor, LSTMState]:  # fmt: skip
        """[B, T, width] -> [B, T, width] and the state after the last step; see `mixers.contract`."""
        x_BTD, reset_BT, lengths_B = checked(x_BTD, self.width, reset_BT, lengths_B)
        state = self.zero_state(x_BTD.shape[0]) if state is None else state
        y_BTD, state = lstm(
            x_BTD, self.w_GD, self.u_GV, self.b_G, state,
            reset_BT=reset_BT, lengths_B=lengths_B, backend=self.backend,
        )  # fmt: skip
        return mask_tail(y_BTD, lengths_B), state

    def adjacency(self) -> Tensor:
        """Connectivity, bool [D, D] on the CPU: True where U has weights from the first unit to the second."""
        H, V = self.config.heads, self.width // self.config.heads
        return block_diagonal(torch.ones(H, V, V, dtype=torch.bool))

    def num_recurrent_weights(self) -> int:
        """How many weights of U are not zero by its structure: four per connection."""
        return self.u_GV.numel()

    def zero_state(self, batch: int, /, device: torch.device | None = None) -> LSTMState:
        """State before the first step, on the device of the weights or on another."""
        zeros = wide_zeros(self.b_G, device)
        return LSTMState(zeros(batch, self.width), zeros(batch, self.width))

    def cell_flops(self, mode: str, length: int, /) -> float:
        """FLOPs of 20 pointwise operations per channel."""
        return 20.0 * self.width
