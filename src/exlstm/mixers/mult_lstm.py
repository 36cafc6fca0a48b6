"""The multiplicative LSTM as a mixer (Krause et al. 2016, arXiv:1609.07959, section 3).

    m_t = (W_p x_t) * (M h_{t-1})
    (i, f, z, o)_t = W x_t + R m_t + b
    c_t = sigmoid(f) c_{t-1} + sigmoid(i) tanh(z) ,  h_t = sigmoid(o) tanh(c_t) ,  y = h

This is the LSTM with m in the place of h in its gates, the form of most ports; the paper also writes one whose output
gate acts inside the tanh. It is not the mLSTM of xLSTM, whose memory is a matrix.

B batch  T time  D model width (that of the hidden state too)  H heads  V head width  G gates: i, f, z, o
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from exlstm.mixers.contract import BlockStyle, FixedStateMixer, check_width, checked, mask_tail, wide_zeros
from exlstm.nn import init
from exlstm.nn.fields import Finite, Size, check_fields
from exlstm.nn.linear import Linear, linears
from exlstm.ops.mult_lstm import MultLSTMState, mult_lstm


@dataclass(frozen=True, kw_only=True)
class MultLSTMConfig:
    """One multiplicative LSTM layer at the model width.

    heads: blocks of the block-diagonal recurrent weights; 1: dense, as published. forget_bias: initial bias of the
    forget gate; "power_law" is that of the sLSTM (5 down to -7 within a head, by depth).
    """

    style: ClassVar[BlockStyle] = BlockStyle(norm="layer", activation="gelu", factor=1.3)

    heads: Size = 1
    forget_bias: Finite | Literal["power_law"] = 1.0

    def __post_init__(self) -> None:
        check_fields(self)

    def build(self, width: int, *, depth: int = 1, index: int = 0) -> nn.Module:
        """The mixer. ValueError where the width cannot be divided into heads."""
        return MultLSTM(width, self, depth, index)


class MultLSTM(FixedStateMixer):
    """Multiplicative LSTM as a mixer: see `mixers.contract`, and `MultLSTMConfig` for its options."""

    def __init__(self, width: int, config: MultLSTMConfig, depth: int, index: int) -> None:
        super().__init__()
        check_width(width, config.heads)
        H, V = config.heads, width // config.heads
        self.config, self.width, self.backend = config, width, "auto"
        self.p, self.x = Linear(width, width, bias=False), Linear(width, 4 * width, bias=True)
        self.m_HVK, self.r_GHVK = nn.Parameter(torch.empty(H, V, V)), nn.Parameter(torch.empty(4, H, V, V))
        power_law = config.forget_bias == "power_law"
        forget = init.power_law(index, depth) if power_law else init.constant(float(config.forget_bias))
        init.fill(
            self,
            {
                "p.weight": init.normal(width**-0.5),  # W_p x is of order 1, so that m is of the order of h
                "x.weight": init.uniform(width**-0.5),
                "x.bias": lambda b_G: (b_G.zero_(), forget(b_G[width : 2 * width].view(H, V))),
                "m_HVK": init.orthogonal(),
                "r_GHVK": init.orthogonal(),
            },
        )

    def forward(
        self,
        x_BTD: Tensor,
        state: MultLSTMState | None = None,
        *,
        reset_BT: Tensor | None = None,
        lengths_B: Tensor | None = None,
    ) -> tuple[Tensor, MultLSTMState]:
        """[B, T, width] -> [B, T, width] and the state after the last step; see `mixers.contract`."""
        x_BTD, reset_BT, lengths_B = checked(x_BTD, self.width, reset_BT, lengths_B)
        (B, T, _), (H, V, _) = x_BTD.shape, self.m_HVK.shape
        state = self.zero_state(B) if state is None else state
        p_BTD, x_BTM = linears(x_BTD, (), wide=(self.p, self.x))
        h_BTHV, state = mult_lstm(
            p_BTD.view(B, T, H, V),
            x_BTM.view(B, T, 4, H, V),
            self.m_HVK,
            self.r_GHVK,
            state,
            reset_BT=reset_BT,
            lengths_B=lengths_B,
            backend=self.backend,
        )
        return mask_tail(h_BTHV.flatten(2).to(x_BTD.dtype), lengths_B), state

    def zero_state(self, batch: int, /, device: torch.device | None = None) -> MultLSTMState:
        """State before the first step, on the device of the weights or on another."""
        zeros, (H, V, _) = wide_zeros(self.m_HVK, device), self.m_HVK.shape
        return MultLSTMState(zeros(batch, H, V), zeros(batch, H, V))

    def cell_flops(self, mode: str, length: int, /) -> float:
        """FLOPs of about 21 pointwise operations per channel."""
        return 21.0 * self.width
