"""GSS: a narrow state space whose channels share their poles, and gates (Mehta et al. 2022, arXiv:2206.13947).

    u = gelu(W_u x) ,  v = gelu(W_v x)                                     wide and narrow
    A = -exp(log_re) + i exp(log_im) ,  a = e^A ,  b = (a - 1) / A         DSS, with steps of size 1
    h_t = a h_{t-1} + v_t ,  s_t = Re(sum_z c_z b_z h_t[z]) + skip v_t
    y = W_o ((W_m s) u) + bias

The layer has its own up-projection and stands without an MLP; the attention of the paper's hybrid is another block.

B batch  T time  D model width  F up-projection  E narrow width  Z states  P sets of poles (1)
"""

from dataclasses import dataclass
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
class GSSConfig:
    """GSS with up_factor * width channels up, rounded up to a multiple of `up_multiple`.

    The state space has narrow_factor * width channels, rounded up, and `states` states in each; the paper has 512.
    """

    style: ClassVar[BlockStyle] = BlockStyle(norm="layer", activation=None)

    up_factor: Factor = 4.0
    up_multiple: Size = 1
    narrow_factor: Factor = 0.25
    states: Size = 64

    def __post_init__(self) -> None:
        check_fields(self)

    def build(self, width: int, *, depth: int = 1, index: int = 0) -> nn.Module:
        """The mixer."""
        return GSS(width, self)


class GSS(FixedStateMixer):
    """GSS as a mixer: see `mixers.contract`, and `GSSConfig` for its options."""

    def __init__(self, width: int, config: GSSConfig) -> None:
        super().__init__()
        check_width(width)
        up, narrow = round_up(config.up_factor * width, config.up_multiple), round_up(config.narrow_factor * width, 1)
        self.config, self.width, self.narrow, self.backend = config, width, narrow, "auto"
        self.u, self.v = Linear(width, up, bias=False), Linear(width, narrow, bias=False)
        self.log_re_PZ, self.log_im_PZ = (nn.Parameter(torch.empty(1, config.states)) for _ in range(2))
        self.c_re_EZ, self.c_im_EZ = (nn.Parameter(torch.empty(narrow, config.states)) for _ in range(2))
        self.skip_E = nn.Parameter(torch.empty(narrow))
        self.mix, self.out = Linear(narrow, up, bias=False), Linear(up, width)
        init.fill(
            self,
            {
                "u.weight": init.uniform(width**-0.5),
                "v.weight": init.uniform(width**-0.5),
                **dict.fromkeys(("log_re_PZ", "log_im_PZ", "c_re_EZ", "c_im_EZ", "skip_E"), init.normal(1.0)),
                "mix.weight": init.uniform(narrow**-0.5),
                "out.weight": init.uniform(up**-0.5),
                "out.bias": init.uniform(up**-0.5),
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
        u_BTF, v_BTE = linears(x_BTD, (self.u, self.v))
        im_PZ = torch.exp(upcast(self.log_im_PZ))
        parameters = LTIParameters(self.log_re_PZ, im_PZ, None, self.c_re_EZ, self.c_im_EZ, self.skip_E)
        s_BTE, state = lti(
            gelu(upcast(v_BTE)), parameters, state, reset_BT=reset_BT, lengths_B=lengths_B, backend=self.backend
        )
        y_BTD = self.out(self.mix(s_BTE.to(x_BTD.dtype)) * gelu(u_BTF))
        return mask_tail(y_BTD, lengths_B), state

    def zero_state(self, batch: int, /, device: torch.device | None = None) -> LTIState:
        """State before the first step, on the device of the weights or on another."""
        zeros, shape = wide_zeros(self.skip_E, device), (batch, self.narrow, self.config.states)
        return LTIState(zeros(*shape), zeros(*shape))

    def cell_flops(self, mode: str, length: int, /) -> float:
        """FLOPs of the state space."""
        return self.narrow * lti_flops(mode, length, self.config.states)
