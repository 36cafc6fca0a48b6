"""The recurrent block of Hawk and Griffin, with the RG-LRU (De et al. 2024, arXiv:2402.19427, eqs 1-4).

    g = gelu(W_y x) ,  u = conv(W_x x)
    r, i = sigmoid(A_r u), sigmoid(A_i u)           block-diagonal, one block per head
    log a = -8 r softplus(lambda)
    h_t = a_t h_{t-1} + sqrt(1 - a_t^2) i_t u_t     without the root at the first step of a sequence
    y = W_o (h g)

All maps have a bias. The gates are in `ops.rglru`, the recurrence is the diagonal scan. The state says whether a row
has had a step. Griffin is a pattern of such blocks and blocks with windowed attention.

B batch  T time  D model width  E inner width  H heads  S past steps of the convolution
"""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu

from exlstm.mixers.contract import BlockStyle, FixedStateMixer, check_heads, check_width, checked, mask_tail, wide_zeros
from exlstm.nn import init
from exlstm.nn.fields import Factor, Size, check_fields
from exlstm.nn.layers import BlockLinear, CausalConv, round_up
from exlstm.nn.linear import Linear, linears
from exlstm.ops.common import upcast
from exlstm.ops.conv import ConvState
from exlstm.ops.rglru import rglru_gates
from exlstm.ops.scan import ScanState, scan


class RGLRUState(NamedTuple):
    """State of the layer: the convolution's window, the channels, and whether a row has had a step."""

    conv: ConvState
    cell: ScanState
    seen_B: Tensor


@dataclass(frozen=True, kw_only=True)
class RGLRUConfig:
    """RG-LRU with inner width up_factor * width, rounded up to a multiple of `up_multiple`.

    heads: blocks of its gates.
    """

    style: ClassVar[BlockStyle] = BlockStyle(activation="gelu_tanh", factor=3.0, bias=True)

    heads: Size = 4
    up_factor: Factor = 1.0
    up_multiple: Size = 1
    conv_width: Size = 4

    def __post_init__(self) -> None:
        check_fields(self)

    def build(self, width: int, *, depth: int = 1, index: int = 0) -> nn.Module:
        """The mixer. ValueError where the inner width cannot be divided into heads."""
        return RGLRU(width, self, depth)


def half_log(low: float, high: float) -> init.Fill:
    """-1/2 log U(low^2, high^2): with the inverse of softplus, a^(1/8) is from low to high where r is 1."""
    return lambda x: x.uniform_(low**2 + 1e-8, high**2 + 1e-8).log_().mul_(-0.5)


class RGLRU(FixedStateMixer):
    """The recurrent block of Hawk as a mixer: see `mixers.contract`, and `RGLRUConfig` for its options."""

    def __init__(self, width: int, config: RGLRUConfig, depth: int) -> None:
        super().__init__()
        check_width(width)
        inner = round_up(config.up_factor * width, config.up_multiple)
        check_heads(inner, config.heads, "inner width {}")
        self.config, self.width, self.inner, self.backend = config, width, inner, "auto"
        self.y, self.x = Linear(width, inner), Linear(width, inner)
        self.conv = CausalConv(inner, config.conv_width)
        self.r, self.i = (BlockLinear(inner, config.heads, bias=True) for _ in range(2))
        self.lam_E = nn.Parameter(torch.empty(inner))
        self.out = Linear(inner, width)
        biases = ("y.bias", "x.bias", "conv.bias_D", "r.bias_D", "i.bias_D", "out.bias")
        block = init.normal((inner // config.heads) ** -0.5)
        init.fill(
            self,
            {
                **dict.fromkeys(biases, init.zeros),
                **dict.fromkeys(("y.weight", "x.weight"), init.normal(width**-0.5)),
                **dict.fromkeys(("r.weight_HVK", "i.weight_HVK"), block),
                "conv.weight_DW": init.normal((0.01 / config.conv_width) ** 0.5),
                "lam_E": init.inverse_softplus(half_log(0.9, 0.999)),
                "out.weight": init.normal((2 / depth / inner) ** 0.5),
            },
        )

    def forward(
        self,
        x_BTD: Tensor,
        state: RGLRUState | None = None,
        *,
        reset_BT: Tensor | None = None,
        lengths_B: Tensor | None = None,
    ) -> tuple[Tensor, RGLRUState]:
        """[B, T, width] -> [B, T, width] and the state after the last step; see `mixers.contract`."""
        x_BTD, reset_BT, lengths_B = checked(x_BTD, self.width, reset_BT, lengths_B)
        state = self.zero_state(x_BTD.shape[0]) if state is None else state
        g_BTE, u_BTE = linears(x_BTD, (self.y, self.x))
        u_BTE, conv = self.conv(u_BTE, state.conv, reset_BT=reset_BT, lengths_B=lengths_B)
        a_BTE, b_BTE, seen_B = rglru_gates(
            upcast(u_BTE),
            upcast(self.r(u_BTE)),
            upcast(self.i(u_BTE)),
            self.lam_E,
            state.seen_B,
            reset_BT=reset_BT,
            lengths_B=lengths_B,
        )
        h_BTE, cell = scan(a_BTE, b_BTE, state.cell, reset_BT=reset_BT, lengths_B=lengths_B, backend=self.backend)
        y_BTD = self.out(h_BTE.to(x_BTD.dtype) * gelu(g_BTE, approximate="tanh"))
        return mask_tail(y_BTD, lengths_B), RGLRUState(conv, cell, seen_B)

    def zero_state(self, batch: int, /, device: torch.device | None = None) -> RGLRUState:
        """State before the first step, on the device of the weights or on another."""
        zeros = wide_zeros(self.lam_E, device)
        past_BSD, h_BE = zeros(batch, self.config.conv_width - 1, self.inner), zeros(batch, self.inner)
        return RGLRUState(ConvState(past_BSD), ScanState(h_BE), torch.zeros_like(h_BE[:, 0], dtype=torch.bool))

    def cell_flops(self, mode: str, length: int, /) -> float:
        """FLOPs of about 25 pointwise operations per channel, the gates included."""
        return 25.0 * self.inner
