"""The vanilla LSTM as a mixer: what xLSTM renews, behind the same contract.

B batch  T time  D model width  V hidden width (equal to D)  G the four gates' rows (4 V)
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from exlstm.mixers.contract import constant_state_bytes, mask_tail, wide_zeros
from exlstm.nn import init
from exlstm.ops.lstm import LSTMState, lstm


@dataclass(frozen=True, kw_only=True)
class LSTMConfig:
    """One dense LSTM layer at the model width. forget_bias is added to the forget gate at the start."""

    forget_bias: float = 1.0

    def build(self, width: int, *, depth: int = 1, index: int = 0) -> nn.Module:
        """The mixer."""
        return LSTM(width, self)


class LSTM(nn.Module):
    """Built by `LSTMConfig.build`; keeps the contract of `mixers.contract`."""

    def __init__(self, width: int, config: LSTMConfig) -> None:
        super().__init__()
        self.config, self.width = config, width
        self.w_GD = nn.Parameter(torch.empty(4 * width, width))
        self.u_GV = nn.Parameter(torch.empty(4 * width, width))
        self.b_G = nn.Parameter(torch.empty(4 * width))
        bound = width**-0.5  # as torch's LSTM
        init.fill(
            self,
            {
                "w_GD": init.uniform(bound),
                "u_GV": init.uniform(bound),
                "b_G": lambda b_G: (b_G.zero_(), b_G[width : 2 * width].fill_(config.forget_bias)),
            },
        )

    def forward(
        self, x_BTD: Tensor, state: LSTMState | None = None, *,
        reset_BT: Tensor | None = None, lengths_B: Tensor | None = None,
    ) -> tuple[Tensor, LSTMState]:  # fmt: skip
        """[B, T, width] -> [B, T, width] and the state after; see `mixers.contract`."""
        state = self.zero_state(x_BTD.shape[0]) if state is None else state
        y_BTD, state = lstm(x_BTD, self.w_GD, self.u_GV, self.b_G, state, reset_BT=reset_BT, lengths_B=lengths_B)
        return mask_tail(y_BTD, lengths_B), state

    def zero_state(self, batch: int, /, device: torch.device | None = None) -> LSTMState:
        """Nothing seen yet, on the device of the weights or on another."""
        zeros = wide_zeros(self.b_G, device)
        return LSTMState(zeros(batch, self.width), zeros(batch, self.width))

    def state_bytes(self, length: int = 0, /) -> int:
        """Bytes of one sequence's state: the same at any length."""
        return constant_state_bytes(self)

    def cell_flops(self, mode: str, length: int, /) -> float:
        """About 20 pointwise operations per channel."""
        return 20.0 * self.width
