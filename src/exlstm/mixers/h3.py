"""H3: a shift, a diagonal state space, and products with queries, keys and values (Fu et al. 2023, arXiv:2212.14052).

    q, k, v = W x + bias
    k'_t = sum_j taps_j k_{t-W+1+j} + skip_k k_t                   the shift, a filter of W taps
    p = k' v                                                       of every head, all products of its channels
    A = -exp(log_re) + i im ,  a, b bilinear in A and exp(log_dt)
    h_t = a h_{t-1} + p_t ,  s_t = 2 Re(sum_z c_z b_z h_t[z]) + skip p_t
    y = W_o (q s) + bias                                           of every head, summed over channels of k'

The authors' code also learns the input vectors of both state spaces. For a shift these reach no other filters, and for
a diagonal one only their product with c matters, so they are ones here. It clips the real part of A, which is negative
here by construction.

B batch  T time  D model width  H heads  K head width  V the same, of values  E products (D K)  W taps  Z states
"""

from dataclasses import dataclass
from math import log, pi
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from exlstm.mixers.contract import BlockStyle, FixedStateMixer, check_width, checked, mask_tail, wide_zeros
from exlstm.nn import init
from exlstm.nn.fields import Size, check_fields
from exlstm.nn.linear import Linear, linears
from exlstm.ops.common import upcast
from exlstm.ops.conv import ConvState, causal_conv
from exlstm.ops.lti import LTIParameters, LTIState, lti, lti_flops


class H3State(NamedTuple):
    """State of the layer: the shift's window and the states of the state space."""

    conv: ConvState
    cell: LTIState


@dataclass(frozen=True, kw_only=True)
class H3Config:
    """H3 with a shift of `conv_width` taps, and `states` complex states for each product of a key and a value.

    head_width: 1 for language models; the state grows with it.
    """

    style: ClassVar[BlockStyle] = BlockStyle(norm="layer", activation="gelu", factor=4.0, gated=False, bias=True)

    head_width: Size = 1
    conv_width: Size = 64
    states: Size = 32

    def __post_init__(self) -> None:
        check_fields(self)

    def build(self, width: int, *, depth: int = 1, index: int = 0) -> nn.Module:
        """The mixer. ValueError where the width cannot be divided into heads."""
        return H3(width, self, depth)


class H3(FixedStateMixer):
    """H3 as a mixer: see `mixers.contract`, and `H3Config` for its options."""

    def __init__(self, width: int, config: H3Config, depth: int) -> None:
        super().__init__()
        check_width(width)
        if width % config.head_width:
            raise ValueError(f"head_width is {config.head_width}; it must divide the width {width}.")
        products = width * config.head_width
        self.config, self.width, self.products, self.backend = config, width, products, "auto"
        self.q, self.k, self.v = (Linear(width, width) for _ in range(3))
        self.taps_DW = nn.Parameter(torch.empty(width, config.conv_width))
        self.skip_k_D = nn.Parameter(torch.empty(width))
        self.log_re_EZ, self.im_EZ, self.c_re_EZ, self.c_im_EZ = (
            nn.Parameter(torch.empty(products, config.states)) for _ in range(4)
        )
        self.log_dt_E, self.skip_E = (nn.Parameter(torch.empty(products)) for _ in range(2))
        self.out = Linear(width, width)
        init.fill(
            self,
            {
                **dict.fromkeys(("q.weight", "k.weight", "v.weight"), init.normal(0.02)),
                **dict.fromkeys(("q.bias", "k.bias", "v.bias", "out.bias"), init.zeros),
                "taps_DW": init.uniform(config.conv_width**-0.5),
                "skip_k_D": init.normal(1.0),
                "log_re_EZ": init.constant(log(0.5)),
                "im_EZ": init.multiples(pi),
                "c_re_EZ": init.normal(0.5**0.5),
                "c_im_EZ": init.normal(0.5**0.5),
                "log_dt_E": init.logs(init.log_uniform(1e-3, 1e-1)),
                "skip_E": init.normal(1.0),
                "out.weight": init.normal(0.02 / (2 * depth) ** 0.5),
            },
        )

    def forward(
        self,
        x_BTD: Tensor,
        state: H3State | None = None,
        *,
        reset_BT: Tensor | None = None,
        lengths_B: Tensor | None = None,
    ) -> tuple[Tensor, H3State]:
        """[B, T, width] -> [B, T, width] and the state after the last step; see `mixers.contract`."""
        x_BTD, reset_BT, lengths_B = checked(x_BTD, self.width, reset_BT, lengths_B)
        state = self.zero_state(x_BTD.shape[0]) if state is None else state
        q_BTD, k_BTD, v_BTD = map(upcast, linears(x_BTD, (self.q, self.k, self.v)))
        shifted_BTD, conv = causal_conv(
            k_BTD, upcast(self.taps_DW), None, state.conv, reset_BT=reset_BT, lengths_B=lengths_B
        )
        shifted_BTD = shifted_BTD + upcast(self.skip_k_D) * k_BTD
        # conjugate pairs count twice
        c_re_EZ, c_im_EZ = 2 * upcast(self.c_re_EZ), 2 * upcast(self.c_im_EZ)
        s_BTE, cell = lti(
            self.outer(shifted_BTD, v_BTD),
            LTIParameters(self.log_re_EZ, self.im_EZ, self.log_dt_E, c_re_EZ, c_im_EZ, self.skip_E),
            state.cell,
            method="bilinear",
            reset_BT=reset_BT,
            lengths_B=lengths_B,
            backend=self.backend,
        )
        y_BTD = self.out(self.inner(q_BTD, s_BTE).to(x_BTD.dtype))
        return mask_tail(y_BTD, lengths_B), H3State(conv, cell)

    def outer(self, k_BTD: Tensor, v_BTD: Tensor) -> Tensor:
        """[B, T, E]: all products of a key's and a value's channels of the same head."""
        (B, T, D), K = k_BTD.shape, self.config.head_width
        if K == 1:
            return k_BTD * v_BTD
        p_BTHKV = k_BTD.view(B, T, D // K, K, 1) * v_BTD.view(B, T, D // K, 1, K)
        return p_BTHKV.flatten(2)

    def inner(self, q_BTD: Tensor, s_BTE: Tensor) -> Tensor:
        """[B, T, D]: the products of a head times the query, summed over the key's channels."""
        (B, T, D), K = q_BTD.shape, self.config.head_width
        if K == 1:
            return q_BTD * s_BTE
        y_BTHV: Tensor = (q_BTD.view(B, T, D // K, K, 1) * s_BTE.view(B, T, D // K, K, K)).sum(-2)
        return y_BTHV.flatten(2)

    def zero_state(self, batch: int, /, device: torch.device | None = None) -> H3State:
        """State before the first step, on the device of the weights or on another."""
        zeros, shape = wide_zeros(self.skip_E, device), (batch, self.products, self.config.states)
        return H3State(
            ConvState(zeros(batch, self.config.conv_width - 1, self.width)), LTIState(zeros(*shape), zeros(*shape))
        )

    def cell_flops(self, mode: str, length: int, /) -> float:
        """FLOPs of the shift and of the state space."""
        cell = self.products * lti_flops(mode, length, self.config.states)
        return 2.0 * self.config.conv_width * self.width + cell
