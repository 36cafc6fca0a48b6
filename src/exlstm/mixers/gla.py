"""Gated linear attention: a decay per key channel that depends on the input (Yang et al. 2023, arXiv:2312.06635).

Equations 3 to 5 and section 4.4 of the paper:

    q, k = W x      v, r = W x                              keys are key_factor times as wide as x
    g = log sigmoid(W_2 W_1 x + b) / temperature            W_1 to `rank` channels
    S_t = diag(e^g_t) S_{t-1} + k_t v_t^T ,  o_t = S_t^T q_t / sqrt K
    y = W_o (RMSNorm(o) silu(r))                            a norm per head, with one gain for all heads

B batch  T time  D model width  E inner width  H heads  K key width  V value width
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from exlstm.mixers.contract import BlockStyle, FixedStateMixer, check_heads, check_width, checked, mask_tail, wide_zeros
from exlstm.nn import init
from exlstm.nn.fields import Factor, Positive, Size, check_fields
from exlstm.nn.layers import round_up
from exlstm.nn.linear import Linear, linears, wide_linear
from exlstm.ops.gated_linear_attention import GatedLinearAttentionState, gated_linear_attention
from exlstm.ops.gated_norm import gated_norm


@dataclass(frozen=True, kw_only=True)
class GLAConfig:
    """GLA with keys key_factor * width and values value_factor * width wide, in all heads together.

    rank: of the decay's projection. temperature: what the decay's logarithm is divided by.
    """

    style: ClassVar[BlockStyle] = BlockStyle()

    heads: Size = 4
    key_factor: Factor = 0.5
    value_factor: Factor = 1.0
    rank: Size = 16
    temperature: Positive = 16.0
    norm_eps: Positive = 1e-5

    def __post_init__(self) -> None:
        check_fields(self)

    def build(self, width: int, *, depth: int = 1, index: int = 0) -> nn.Module:
        """The mixer. ValueError where a width cannot be divided into heads."""
        return GLA(width, self)


class GLA(FixedStateMixer):
    """GLA as a mixer: see `mixers.contract`, and `GLAConfig` for its options."""

    def __init__(self, width: int, config: GLAConfig) -> None:
        super().__init__()
        check_width(width)
        keys, values = (round_up(factor * width, 1) for factor in (config.key_factor, config.value_factor))
        check_heads(keys, config.heads, "width {} of the keys")
        check_heads(values, config.heads, "width {} of the values")
        self.config, self.width, self.backend = config, width, "auto"
        self.keys, self.values = keys, values
        self.q, self.k = Linear(width, keys, bias=False), Linear(width, keys, bias=False)
        self.v, self.r = Linear(width, values, bias=False), Linear(width, values, bias=False)
        self.g1, self.g2 = Linear(width, config.rank, bias=False), Linear(config.rank, keys)
        self.gain_V = nn.Parameter(torch.empty(values // config.heads))
        self.out = Linear(values, width, bias=False)
        weights = (f"{name}.weight" for name in ("q", "k", "v", "r", "g1", "g2", "out"))
        init.fill(self, {**dict.fromkeys(weights, init.normal(0.02)), "g2.bias": init.zeros, "gain_V": init.ones})

    def forward(
        self,
        x_BTD: Tensor,
        state: GatedLinearAttentionState | None = None,
        *,
        reset_BT: Tensor | None = None,
        lengths_B: Tensor | None = None,
    ) -> tuple[Tensor, GatedLinearAttentionState]:
        """[B, T, width] -> [B, T, width] and the state after the last step; see `mixers.contract`."""
        x_BTD, reset_BT, lengths_B = checked(x_BTD, self.width, reset_BT, lengths_B)
        H = self.config.heads
        q, k, v, r_BTE, low = linears(x_BTD, (self.q, self.k, self.v, self.r, self.g1))
        g = logsigmoid(wide_linear(self.g2, low)) * (1 / self.config.temperature)
        q_BTHK, k_BTHK, v_BTHV, g_BTHK = (torch.unflatten(x, -1, (H, -1)) for x in (q, k, v, g))
        o_BTHV, state = gated_linear_attention(
            q_BTHK * (self.keys // H) ** -0.5,
            k_BTHK,
            v_BTHV,
            g_BTHK,
            state,
            reset_BT=reset_BT,
            lengths_B=lengths_B,
            backend=self.backend,
        )
        gain_E = self.gain_V.expand(H, -1).reshape(-1)
        y_BTE = gated_norm(o_BTHV, gain_E, r_BTE, norm="rms", eps=self.config.norm_eps)
        return mask_tail(self.out(y_BTE), lengths_B), state

    def zero_state(self, batch: int, /, device: torch.device | None = None) -> GatedLinearAttentionState:
        """State before the first step, on the device of the weights or on another."""
        H = self.config.heads
        s_BHKV = wide_zeros(self.gain_V, device)(batch, H, self.keys // H, self.values // H)
        return GatedLinearAttentionState(s_BHKV)

    def cell_flops(self, mode: str, length: int, /) -> float:
        """FLOPs of a decay, a write and a read of S."""
        return 6.0 * self.keys * self.values / self.config.heads
