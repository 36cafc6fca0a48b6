"""The forward half of BiGS: one state space for all channels, and gates (Wang et al. 2022, arXiv:2212.10544).

    v = gelu(W_v x) ,  u = gelu(W_u x)
    A = -exp(log_re) + i im ,  a = e^{dt A} ,  b = (a - 1) / A          one system: poles, dt, c and skip are shared
    h_t = a h_{t-1} + u_t ,  s_t = Re(sum_z c_z b_z h_t[z]) + skip u_t
    y = W_o (gelu(W_2 W_1 s) v)

The published layer is bidirectional: W_2 acts on (W_1 s) times the same of a system that runs backwards, which is not
causal. The real part of A is clipped there; here it is negative by construction. All linear maps have biases.

B batch  T time  D model width  F up-projection  Z states  P systems (1)
"""

from dataclasses import dataclass
from math import log, pi
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu

from exlstm.mixers.contract import BlockStyle, FixedStateMixer, check_width, checked, mask_tail, wide_zeros
from exlstm.nn import init
from exlstm.nn.fields import Factor, Size, check_fields
from exlstm.nn.layers import round_up
from exlstm.nn.linear import Linear, linears
from exlstm.ops.common import upcast
from exlstm.ops.lti import LTIParameters, LTIState, lti, lti_flops


@dataclass(frozen=True, kw_only=True)
class BiGSConfig:
    """BiGS's forward half with up_factor * width channels up, rounded up to a multiple of `up_multiple`."""

    style: ClassVar[BlockStyle] = BlockStyle(norm="layer", activation=None)

    up_factor: Factor = 3.0
    up_multiple: Size = 1
    states: Size = 64

    def __post_init__(self) -> None:
        check_fields(self)

    def build(self, width: int, *, depth: int = 1, index: int = 0) -> nn.Module:
        """The mixer."""
        return BiGS(width, self)


class BiGS(FixedStateMixer):
    """BiGS's forward half as a mixer: see `mixers.contract`, and `BiGSConfig` for its options."""

    def __init__(self, width: int, config: BiGSConfig) -> None:
        super().__init__()
        check_width(width)
        up = round_up(config.up_factor * width, config.up_multiple)
        self.config, self.width, self.backend = config, width, "auto"
        self.v, self.u = Linear(width, up), Linear(width, width)
        self.log_re_PZ, self.im_PZ, self.c_re_PZ, self.c_im_PZ = (
            nn.Parameter(torch.empty(1, config.states)) for _ in range(4)
        )
        self.log_dt_P, self.skip_P = (nn.Parameter(torch.empty(1)) for _ in range(2))
        self.mix1, self.mix2, self.out = Linear(width, width), Linear(width, up), Linear(up, width)
        layers = ("v", "u", "mix1", "mix2", "out")
        init.fill(
            self,
            {
                **{f"{name}.weight": init.normal(0.02) for name in layers},
                **{f"{name}.bias": init.zeros for name in layers},
                "log_re_PZ": init.constant(log(0.5)),
                "im_PZ": init.multiples(pi),
                "c_re_PZ": init.normal(0.5**0.5),
                "c_im_PZ": init.normal(0.5**0.5),
                "log_dt_P": init.logs(init.log_uniform(1e-2, 1.0)),
                "skip_P": init.normal(1.0),
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
        v_BTF, u_BTD = linears(x_BTD, (self.v, self.u))
        parameters = LTIParameters(self.log_re_PZ, self.im_PZ, self.log_dt_P, self.c_re_PZ, self.c_im_PZ, self.skip_P)
        s_BTD, state = lti(
            gelu(upcast(u_BTD)), parameters, state, reset_BT=reset_BT, lengths_B=lengths_B, backend=self.backend
        )
        y_BTF = gelu(self.mix2(self.mix1(s_BTD.to(x_BTD.dtype)))) * gelu(v_BTF)
        return mask_tail(self.out(y_BTF), lengths_B), state

    def zero_state(self, batch: int, /, device: torch.device | None = None) -> LTIState:
        """State before the first step, on the device of the weights or on another."""
        zeros, shape = wide_zeros(self.skip_P, device), (batch, self.width, self.config.states)
        return LTIState(zeros(*shape), zeros(*shape))

    def cell_flops(self, mode: str, length: int, /) -> float:
        """FLOPs of the state space."""
        return self.width * lti_flops(mode, length, self.config.states)
