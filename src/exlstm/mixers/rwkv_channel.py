"""The channel mix of RWKV: an MLP that sees the step before (Peng et al. 2023, arXiv:2305.13048, eq 18).

    x_k = mu_k x_t + (1 - mu_k) x_{t-1} , x_r likewise
    y = sigmoid(W_r x_r) (W_v relu(W_k x_k)^2)

It is the second half of a layer, and has a state: the last input. Versions 4 and 5 are as above, the latter with 3.5
width channels inside. In version 6 (Peng et al. 2024, arXiv:2404.05892) mu is the share of the step before; version 7
(Peng et al. 2025, arXiv:2503.14456) also leaves out W_r.

    RWKVChannelConfig()                                                                          version 4
    RWKVChannelConfig(up_factor=3.5, up_multiple=32)                                             version 5
    RWKVChannelConfig(up_factor=3.5, up_multiple=32, share="past")                               version 6
    RWKVChannelConfig(share="past", bend=4.0, receptance=False)                                  version 7

B batch  T time  D model width  F hidden width
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from exlstm.mixers.contract import BlockStyle, FixedStateMixer, check_width, checked, mask_tail, wide_zeros
from exlstm.nn import init
from exlstm.nn.fields import Factor, Positive, Size, check_fields
from exlstm.nn.layers import round_up, squared_relu
from exlstm.nn.linear import Linear
from exlstm.ops.token_shift import TokenShiftState, token_shift


@dataclass(frozen=True, kw_only=True)
class RWKVChannelConfig:
    """Channel mix with up_factor * width channels inside, rounded up to a multiple of up_multiple.

    share: whether mu is the share of the "present" step or of the one in the "past". receptance: the gate W_r.
    bend: power of 1 - layer / layers in the initial mu, which are (channel / width)^that for the present.
    """

    style: ClassVar[BlockStyle] = BlockStyle(norm="layer", activation=None)

    up_factor: Factor = 4.0
    up_multiple: Size = 1
    share: Literal["present", "past"] = "present"
    receptance: bool = True
    bend: Positive = 1.0

    def __post_init__(self) -> None:
        check_fields(self)

    def build(self, width: int, *, depth: int = 1, index: int = 0) -> nn.Module:
        """The mixer."""
        return RWKVChannel(width, self, depth, index)


class RWKVChannel(FixedStateMixer):
    """RWKV's channel mix as a mixer: see `mixers.contract`, and `RWKVChannelConfig` for its options."""

    def __init__(self, width: int, config: RWKVChannelConfig, depth: int, index: int) -> None:
        super().__init__()
        check_width(width)
        hidden = round_up(config.up_factor * width, config.up_multiple)
        self.config, self.width = config, width
        self.mix_k_D = nn.Parameter(torch.empty(width))
        self.mix_r_D = nn.Parameter(torch.empty(width)) if config.receptance else None
        self.k, self.v = Linear(width, hidden, bias=False), Linear(hidden, width, bias=False)
        self.r = Linear(width, width, bias=False) if config.receptance else None
        power = (1 - index // 2 / ((depth + 1) // 2)) ** config.bend
        first, last = (0, 1) if config.share == "present" else (1, 0)
        mix = init.power_ramp(power, first, last, closed=False)
        table = {"k.weight": init.orthogonal(max(1, hidden / width) ** 0.5), "v.weight": init.zeros, "mix_k_D": mix}
        init.fill(self, table | ({"r.weight": init.zeros, "mix_r_D": mix} if config.receptance else {}))

    def forward(
        self,
        x_BTD: Tensor,
        state: TokenShiftState | None = None,
        *,
        reset_BT: Tensor | None = None,
        lengths_B: Tensor | None = None,
    ) -> tuple[Tensor, TokenShiftState]:
        """[B, T, width] -> [B, T, width] and the state after the last step; see `mixers.contract`."""
        x_BTD, reset_BT, lengths_B = checked(x_BTD, self.width, reset_BT, lengths_B)
        state = self.zero_state(x_BTD.shape[0]) if state is None else state
        before_BTD, state = token_shift(x_BTD, state, reset_BT=reset_BT, lengths_B=lengths_B)
        y_BTD: Tensor = self.v(squared_relu(self.k(self.mixed(x_BTD, before_BTD, self.mix_k_D))))
        if self.r is not None and self.mix_r_D is not None:
            y_BTD = torch.sigmoid(self.r(self.mixed(x_BTD, before_BTD, self.mix_r_D))) * y_BTD
        return mask_tail(y_BTD, lengths_B), state

    def mixed(self, x_BTD: Tensor, before_BTD: Tensor, mix_D: Tensor) -> Tensor:
        """Every step with a share of the one before."""
        present = self.config.share == "present"
        base_BTD, other_BTD = (before_BTD, x_BTD) if present else (x_BTD, before_BTD)
        return base_BTD + mix_D.to(x_BTD.dtype) * (other_BTD - base_BTD)

    def zero_state(self, batch: int, /, device: torch.device | None = None) -> TokenShiftState:
        """State before the first step, on the device of the weights or on another."""
        return TokenShiftState(wide_zeros(self.mix_k_D, device)(batch, self.width))

    def cell_flops(self, mode: str, length: int, /) -> float:
        """FLOPs of about 3 pointwise operations per channel for each mix."""
        return 6.0 * self.width if self.config.receptance else 3.0 * self.width
