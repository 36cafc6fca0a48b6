"""S4D: a diagonal state space per channel, and a gated linear unit (Gu et al. 2022, arXiv:2206.11893).

    A = -exp(log_re) + i im ,  dt = exp(log_dt) ,  a = e^{dt A} ,  b = (a - 1) / A          zero-order hold
    h_t = a h_{t-1} + x_t ,  s_t = 2 Re(sum_z c_z b_z h_t[z]) + skip x_t
    y = u sigmoid(g)   with [u, g] = W gelu(s) + bias

It stands for S4 (Gu et al. 2021, arXiv:2111.00396), whose A has a term of rank one besides, and which its authors found
no better. States are complex, one of each conjugate pair. Poles start at -1/2 + i pi z (S4D-Lin), or at the imaginary
parts of S4D-Inv.

B batch  T time  D model width  Z states
"""

from dataclasses import dataclass
from math import log, pi
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu

from exlstm.mixers.contract import BlockStyle, FixedStateMixer, check_width, checked, mask_tail, wide_zeros
from exlstm.nn import init
from exlstm.nn.fields import Positive, Size, check_fields
from exlstm.nn.linear import Linear
from exlstm.ops.common import upcast
from exlstm.ops.lti import LTIParameters, LTIState, lti, lti_flops


@dataclass(frozen=True, kw_only=True)
class S4DConfig:
    """S4D with `states` complex states per channel. dt_min, dt_max: the range that step sizes start in."""

    style: ClassVar[BlockStyle] = BlockStyle(norm="layer", activation="gelu", factor=4.0, gated=False, bias=True)

    states: Size = 32
    poles: Literal["lin", "inv"] = "lin"
    dt_min: Positive = 1e-3
    dt_max: Positive = 1e-1

    def __post_init__(self) -> None:
        check_fields(self)
        if self.dt_min > self.dt_max:
            raise ValueError(f"dt_min is {self.dt_min}; it must be at most dt_max, which is {self.dt_max}.")

    def build(self, width: int, *, depth: int = 1, index: int = 0) -> nn.Module:
        """The mixer."""
        return S4D(width, self)


def inverse_law(x: Tensor) -> None:
    """S4D-Inv: (N / pi) (N / (2 z + 1) - 1) along the last axis, with N twice as many as there are."""
    N = 2 * x.shape[-1]
    x.copy_(N / pi * (N / torch.arange(1, N, 2, device=x.device, dtype=x.dtype) - 1))


class S4D(FixedStateMixer):
    """S4D as a mixer: see `mixers.contract`, and `S4DConfig` for its options."""

    def __init__(self, width: int, config: S4DConfig) -> None:
        super().__init__()
        check_width(width)
        self.config, self.width, self.backend = config, width, "auto"
        self.log_re_DZ, self.im_DZ, self.c_re_DZ, self.c_im_DZ = (
            nn.Parameter(torch.empty(width, config.states)) for _ in range(4)
        )
        self.log_dt_D, self.skip_D = (nn.Parameter(torch.empty(width)) for _ in range(2))
        self.glu = Linear(width, 2 * width)
        init.fill(
            self,
            {
                "log_re_DZ": init.constant(log(0.5)),
                "im_DZ": init.multiples(pi) if config.poles == "lin" else inverse_law,
                "c_re_DZ": init.normal(0.5**0.5),
                "c_im_DZ": init.normal(0.5**0.5),
                "log_dt_D": init.logs(init.log_uniform(config.dt_min, config.dt_max)),
                "skip_D": init.normal(1.0),
                "glu.weight": init.uniform(width**-0.5),
                "glu.bias": init.uniform(width**-0.5),
            },
        )

    def forward(
        self,
        x_BTD: Tensor,
        state: LTIState | None = None,
        *,
        reset_BT: Tensor | None = None,
        lengths_B: Tensor | None = None,
    ) -> tuple[Tensor, LTIState]:
        """[B, T, width] -> [B, T, width] and the state after the last step; see `mixers.contract`."""
        x_BTD, reset_BT, lengths_B = checked(x_BTD, self.width, reset_BT, lengths_B)
        # conjugate pairs count twice
        c_re_DZ, c_im_DZ = 2 * upcast(self.c_re_DZ), 2 * upcast(self.c_im_DZ)
        parameters = LTIParameters(self.log_re_DZ, self.im_DZ, self.log_dt_D, c_re_DZ, c_im_DZ, self.skip_D)
        s_BTD, state = lti(
            upcast(x_BTD), parameters, state, reset_BT=reset_BT, lengths_B=lengths_B, backend=self.backend
        )
        u_BTD, g_BTD = self.glu(gelu(s_BTD).to(x_BTD.dtype)).chunk(2, dim=-1)
        return mask_tail(u_BTD * torch.sigmoid(g_BTD), lengths_B), state

    def zero_state(self, batch: int, /, device: torch.device | None = None) -> LTIState:
        """State before the first step, on the device of the weights or on another."""
        zeros, shape = wide_zeros(self.skip_D, device), (batch, self.width, self.config.states)
        return LTIState(zeros(*shape), zeros(*shape))

    def cell_flops(self, mode: str, length: int, /) -> float:
        """FLOPs of the state space."""
        return self.width * lti_flops(mode, length, self.config.states)
