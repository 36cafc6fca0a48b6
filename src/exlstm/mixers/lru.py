"""LRU: a linear recurrence with complex poles, between two matrices (Orvieto et al. 2023, arXiv:2303.06349).

    lambda = exp(-exp(nu) + i exp(theta))
    h_t = lambda h_{t-1} + exp(gamma) B x_t
    s = gelu(Re(C h) + skip x) ,  y = W_1 s sigmoid(W_2 s)

B and C are complex, and each is one real matrix here: the rows of B are its real parts and its imaginary parts, the
columns of C its real parts and the negatives of its imaginary parts.

B batch  T time  D model width  P poles
"""

from dataclasses import dataclass
from math import pi
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu

from exlstm.mixers.contract import BlockStyle, FixedStateMixer, check_width, checked, mask_tail, wide_zeros
from exlstm.nn import init
from exlstm.nn.fields import Factor, Positive, Share, Size, check_fields
from exlstm.nn.layers import round_up
from exlstm.nn.linear import Linear, linears
from exlstm.ops.common import upcast
from exlstm.ops.scan import RotatingState, rotating_scan

EDGE = 1e-5  # of draws between 0 and 1, whose logarithms are taken


@dataclass(frozen=True, kw_only=True)
class LRUConfig:
    """LRU with up_factor * width poles, rounded up to a multiple of up_multiple.

    low, high: of the absolute values of poles at first. phase: of their angles, at most; for long memories the paper
    takes low 0.9 to 0.999 and a phase of pi / 10 to pi / 50.
    """

    style: ClassVar[BlockStyle] = BlockStyle(norm="layer", activation=None)

    up_factor: Factor = 1.0
    up_multiple: Size = 1
    low: Share = 0.0
    high: Positive = 1.0
    phase: Positive = 2 * pi

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.low < self.high <= 1:
            raise ValueError(f"high is {self.high}; it must be above low, which is {self.low}, and at most 1.")

    def build(self, width: int, *, depth: int = 1, index: int = 0) -> nn.Module:
        """The mixer."""
        return LRU(width, self)


class LRU(FixedStateMixer):
    """LRU as a mixer: see `mixers.contract`, and `LRUConfig` for its options."""

    def __init__(self, width: int, config: LRUConfig) -> None:
        super().__init__()
        check_width(width)
        poles = round_up(config.up_factor * width, config.up_multiple)
        self.config, self.width, self.poles, self.backend = config, width, poles, "auto"
        self.nu_P, self.theta_P, self.gamma_P = (nn.Parameter(torch.empty(poles)) for _ in range(3))
        self.skip_D = nn.Parameter(torch.empty(width))
        self.b, self.c = Linear(width, 2 * poles, bias=False), Linear(2 * poles, width, bias=False)
        self.out1, self.out2 = Linear(width, width), Linear(width, width)
        low, high = config.low**2, config.high**2
        outputs = ("out1.weight", "out1.bias", "out2.weight", "out2.bias")
        init.fill(
            self,
            {
                "nu_P": lambda x: x.uniform_(EDGE, 1 - EDGE).mul_(high - low).add_(low).log_().mul_(-0.5).log_(),
                "theta_P": init.logs(init.between(EDGE * config.phase, config.phase)),
                "gamma_P": lambda x: x.copy_(torch.log(-torch.expm1(-2 * torch.exp(self.nu_P))) / 2),
                "skip_D": init.normal(1.0),
                "b.weight": init.normal((2 * width) ** -0.5),
                "c.weight": init.normal(poles**-0.5),
                **dict.fromkeys(outputs, init.uniform(width**-0.5)),
            },
        )

    def forward(
        self,
        x_BTD: Tensor,
        state: RotatingState | None = None,
        *,
        reset_BT: Tensor | None = None,
        lengths_B: Tensor | None = None,
    ) -> tuple[Tensor, RotatingState]:
        """[B, T, width] -> [B, T, width] and the state after the last step; see `mixers.contract`."""
        x_BTD, reset_BT, lengths_B = checked(x_BTD, self.width, reset_BT, lengths_B)
        re_BTP, im_BTP = upcast(self.b(x_BTD)).chunk(2, dim=-1)
        scale_P, r_P = torch.exp(upcast(self.gamma_P)), torch.exp(-torch.exp(upcast(self.nu_P)))
        h_re_BTP, h_im_BTP, state = rotating_scan(
            r_P.expand_as(re_BTP),
            torch.exp(upcast(self.theta_P)),
            scale_P * re_BTP,
            scale_P * im_BTP,
            state,
            reset_BT=reset_BT,
            lengths_B=lengths_B,
            backend=self.backend,
        )
        y_BTD = self.c(torch.cat([h_re_BTP, h_im_BTP], dim=-1).to(x_BTD.dtype)) + self.skip_D.to(x_BTD.dtype) * x_BTD
        value_BTD, gate_BTD = linears(gelu(y_BTD, approximate="tanh"), (self.out1, self.out2))
        return mask_tail(value_BTD * torch.sigmoid(gate_BTD), lengths_B), state

    def zero_state(self, batch: int, /, device: torch.device | None = None) -> RotatingState:
        """State before the first step, on the device of the weights or on another."""
        zeros = wide_zeros(self.nu_P, device)
        return RotatingState(zeros(batch, self.poles), zeros(batch, self.poles))

    def cell_flops(self, mode: str, length: int, /) -> float:
        """FLOPs of about 10 operations per pole."""
        return 10.0 * self.poles
