"""Gated DeltaNet: the delta rule with a decay per head (Yang et al. 2024, arXiv:2412.06464, equation 10).

    q, k, v = silu(conv(W x))                       q and k divided by their length; q times K^-1/2
    beta = sigmoid(W_beta x) ,  g = -exp(log_a) softplus(W_a x + dt_bias)
    S~ = e^g S_{t-1} ,  S_t = S~ + k_t (beta_t (v_t - S~^T k_t))^T ,  o_t = S_t^T q_t
    y = W_o (RMSNorm(o) silu(W_g x))                of every head, one gain for all of them

B batch  T time  D model width  M q, k and v together  H heads  K key width  V value width  E values of all heads
"""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from exlstm.mixers.contract import BlockStyle, FixedStateMixer, check_heads, check_width, checked, mask_tail, wide_zeros
from exlstm.nn import init
from exlstm.nn.fields import Factor, Positive, Size, check_fields
from exlstm.nn.layers import CausalConv, WidthNorm
from exlstm.nn.linear import Linear, linears
from exlstm.ops.common import upcast
from exlstm.ops.conv import ConvState
from exlstm.ops.delta_rule import DeltaState, delta_rule
from exlstm.ops.gated_norm import gated_norm
from exlstm.ops.vector_norm import vector_norm


class GatedDeltaNetState(NamedTuple):
    """State of the layer: the convolution's window and the memory."""

    conv: ConvState
    memory: DeltaState


@dataclass(frozen=True, kw_only=True)
class GatedDeltaNetConfig:
    """Gated DeltaNet. Widths of keys and values are factors of the model width, over all heads.

    allow_neg_eigval: beta from 0 to 2, so that a correction may turn around what was stored.
    """

    style: ClassVar[BlockStyle] = BlockStyle()

    heads: Size = 4
    key_factor: Factor = 0.75
    value_factor: Factor = 1.5
    conv_width: Size = 4
    allow_neg_eigval: bool = False
    norm_eps: Positive = 1e-5

    def __post_init__(self) -> None:
        check_fields(self)

    def build(self, width: int, *, depth: int = 1, index: int = 0) -> nn.Module:
        """The mixer. ValueError where a width cannot be divided into heads."""
        return GatedDeltaNet(width, self)


class GatedDeltaNet(FixedStateMixer):
    """Gated DeltaNet as a mixer: see `mixers.contract`, and `GatedDeltaNetConfig` for its options."""

    def __init__(self, width: int, config: GatedDeltaNetConfig) -> None:
        super().__init__()
        check_width(width)
        keys, values = int(width * config.key_factor), int(width * config.value_factor)
        check_heads(keys, config.heads, "width {} of the keys")
        check_heads(values, config.heads, "width {} of the values")
        self.config, self.width, self.backend = config, width, "auto"
        self.key_width, self.value_width = keys // config.heads, values // config.heads
        self.q, self.k = Linear(width, keys, bias=False), Linear(width, keys, bias=False)
        self.v, self.g = Linear(width, values, bias=False), Linear(width, values, bias=False)
        self.conv = CausalConv(2 * keys + values, config.conv_width, bias=False)
        self.a, self.beta = (Linear(width, config.heads, bias=False) for _ in range(2))
        self.log_a_H = nn.Parameter(torch.empty(config.heads))
        self.dt_bias_H = nn.Parameter(torch.empty(config.heads))
        self.norm = WidthNorm(self.value_width, "rms", config.norm_eps)
        self.out = Linear(values, width, bias=False)
        names = ("q.weight", "k.weight", "v.weight", "g.weight", "a.weight", "beta.weight", "out.weight")
        init.fill(
            self,
            {
                **dict.fromkeys(names, init.normal(0.02)),
                "conv.weight_DW": init.uniform(config.conv_width**-0.5),
                "log_a_H": init.logs(init.between(0.01, 16)),
                "dt_bias_H": init.inverse_softplus(init.log_uniform(1e-3, 0.1)),
                "norm.weight": init.ones,
            },
        )

    def forward(
        self,
        x_BTD: Tensor,
        state: GatedDeltaNetState | None = None,
        *,
        reset_BT: Tensor | None = None,
        lengths_B: Tensor | None = None,
    ) -> tuple[Tensor, GatedDeltaNetState]:
        """[B, T, width] -> [B, T, width] and the state after the last step; see `mixers.contract`."""
        x_BTD, reset_BT, lengths_B = checked(x_BTD, self.width, reset_BT, lengths_B)
        H, K, V = self.config.heads, self.key_width, self.value_width
        state = self.zero_state(x_BTD.shape[0]) if state is None else state
        layers = self.q, self.k, self.v, self.g
        *qkv, z_BTE, a_BTH, beta_BTH = linears(x_BTD, layers, wide=(self.a, self.beta))
        qkv_BTM, conv = self.conv(
            torch.cat(qkv, dim=-1), state.conv, reset_BT=reset_BT, lengths_B=lengths_B, activation="silu"
        )
        q, k, v = qkv_BTM.split([H * K, H * K, H * V], dim=-1)
        q_BTHK = vector_norm(q.unflatten(-1, (H, K)), scale=K**-0.5)
        k_BTHK = vector_norm(k.unflatten(-1, (H, K)))
        beta_BTH = torch.sigmoid(beta_BTH)
        if self.config.allow_neg_eigval:
            beta_BTH = 2.0 * beta_BTH
        # -softplus(x) as log sigmoid(-x): compiled, the gradient of torch's softplus may get strides it did not expect
        g_BTH = torch.exp(upcast(self.log_a_H)) * logsigmoid(-(a_BTH + upcast(self.dt_bias_H)))
        o_BTHV, memory = delta_rule(
            q_BTHK,
            k_BTHK,
            v.unflatten(-1, (H, V)),
            beta_BTH,
            g_BTH,
            state.memory,
            reset_BT=reset_BT,
            lengths_B=lengths_B,
            backend=self.backend,
        )
        gain_E = self.norm.weight.expand(H, V).reshape(-1)
        y_BTE = gated_norm(o_BTHV, gain_E, z_BTE, norm="rms", eps=self.norm.eps)
        return mask_tail(self.out(y_BTE), lengths_B), GatedDeltaNetState(conv, memory)

    def zero_state(self, batch: int, /, device: torch.device | None = None) -> GatedDeltaNetState:
        """State before the first step, on the device of the weights or on another."""
        H, K, V = self.config.heads, self.key_width, self.value_width
        zeros = wide_zeros(self.norm.weight, device)
        conv = ConvState(zeros(batch, self.config.conv_width - 1, H * (2 * K + V)))
        return GatedDeltaNetState(conv, DeltaState(zeros(batch, H, K, V)))

    def cell_flops(self, mode: str, length: int, /) -> float:
        """FLOPs of decay, read, correction and read-out for every number of the memory."""
        return 8.0 * self.config.heads * self.key_width * self.value_width
