"""Mamba-2: a state space with one decay per head and step (Dao & Gu 2024, arXiv:2405.21060, section 6, listing 1).

    z, [u, b, c], dl = W_up x             [u, b, c] = silu(conv([u, b, c]))
    dt = softplus(dl + dt_bias)           a = exp(-exp(log_a) dt)                     per head
    S_t = a_t S_{t-1} + dt_t b_t u_t^T    o_t = S_t^T c_t + skip u_t
    y = W_down (RMSNorm(o * silu(z)))     the gate is inside the norm, which is over the heads of a group

It is linear attention with queries c, keys b and values dt u. Heads of a group share b and c.

B batch  T time  D model width  E inner width  M channels of the convolution (E + 2 G K)  G groups  H heads
K states per channel  V head width  I group width (E / G)
"""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from exlstm.mixers.contract import BlockStyle, FixedStateMixer, check_heads, check_width, checked, mask_tail, wide_zeros
from exlstm.nn import init
from exlstm.nn.fields import Factor, Positive, Size, check_fields
from exlstm.nn.layers import CausalConv, HeadNorm, round_up
from exlstm.nn.linear import Linear
from exlstm.ops.common import upcast
from exlstm.ops.conv import ConvState
from exlstm.ops.gated_norm import gated_norm
from exlstm.ops.linear_attention import LinearAttentionState, linear_attention


class Mamba2State(NamedTuple):
    """State of the layer: the convolution's window and the cell's memory."""

    conv: ConvState
    cell: LinearAttentionState


@dataclass(frozen=True, kw_only=True)
class Mamba2Config:
    """Mamba-2. The inner width is up_factor * width, rounded up to a multiple of up_multiple.

    heads: published models have heads of 64 channels. state: states per channel. groups: of heads that share b and c.
    """

    style: ClassVar[BlockStyle] = BlockStyle(activation=None)

    heads: Size = 4
    up_factor: Factor = 2.0
    state: Size = 128
    groups: Size = 1
    conv_width: Size = 4
    norm_eps: Positive = 1e-5
    up_multiple: Size = 64

    def __post_init__(self) -> None:
        check_fields(self)

    def build(self, width: int, *, depth: int = 1, index: int = 0) -> nn.Module:
        """The mixer. ValueError where the inner width cannot be divided into heads, or heads into groups."""
        return Mamba2(width, self, depth)


class Mamba2(FixedStateMixer):
    """Mamba-2 as a mixer: see `mixers.contract`, and `Mamba2Config` for its options."""

    def __init__(self, width: int, config: Mamba2Config, depth: int) -> None:
        super().__init__()
        check_width(width)
        inner, H = round_up(config.up_factor * width, config.up_multiple), config.heads
        check_heads(inner, H, "inner width {}")
        if H % config.groups:
            raise ValueError(f"groups is {config.groups}; it must divide heads, which is {H}.")
        self.config, self.width, self.inner, self.backend = config, width, inner, "auto"
        channels = inner + 2 * config.groups * config.state
        self.sizes = [inner, channels, H]
        self.up = Linear(width, sum(self.sizes), bias=False)
        self.conv = CausalConv(channels, config.conv_width)
        self.dt_bias_H, self.log_a_H, self.skip_H = (nn.Parameter(torch.empty(H)) for _ in range(3))
        self.norm = HeadNorm(config.groups, inner // config.groups, config.norm_eps, kind="rms")
        self.down = Linear(inner, width, bias=False)
        conv_bound = config.conv_width**-0.5
        init.fill(
            self,
            {
                "up.weight": init.uniform(width**-0.5),
                "conv.weight_DW": init.uniform(conv_bound),
                "conv.bias_D": init.uniform(conv_bound),
                "dt_bias_H": init.inverse_softplus(init.log_uniform(1e-3, 1e-1)),
                "log_a_H": init.logs(init.between(1, 16)),
                "skip_H": init.ones,
                "norm.weight": init.ones,
                "down.weight": init.uniform((depth * inner) ** -0.5),
            },
        )

    def forward(
        self,
        x_BTD: Tensor,
        state: Mamba2State | None = None,
        *,
        reset_BT: Tensor | None = None,
        lengths_B: Tensor | None = None,
    ) -> tuple[Tensor, Mamba2State]:
        """[B, T, width] -> [B, T, width] and the state after the last step; see `mixers.contract`."""
        x_BTD, reset_BT, lengths_B = checked(x_BTD, self.width, reset_BT, lengths_B)
        G, H, K = self.config.groups, self.config.heads, self.config.state
        state = self.zero_state(x_BTD.shape[0]) if state is None else state
        rows = {"reset_BT": reset_BT, "lengths_B": lengths_B}
        z_BTE, x_BTM, dt_BTH = self.up(x_BTD).split(self.sizes, dim=-1)
        x_BTM, conv = self.conv(x_BTM, state.conv, activation="silu", **rows)
        u_BTE, *bc = x_BTM.split([self.inner, G * K, G * K], dim=-1)
        b_BTGK, c_BTGK = (x_BTP.unflatten(-1, (G, K)) for x_BTP in bc)
        dt_BTH = softplus(upcast(dt_BTH) + upcast(self.dt_bias_H))
        g_BTH = dt_BTH * -torch.exp(upcast(self.log_a_H))
        u_BTHV = u_BTE.unflatten(-1, (H, -1))
        o_BTHV, cell = linear_attention(
            c_BTGK, b_BTGK, u_BTHV, g_BTH, state.cell, write_BTH=dt_BTH, backend=self.backend, **rows
        )
        skip_E = self.skip_H.to(u_BTE.dtype)[:, None].expand(u_BTHV.shape[2:]).flatten()
        o_BTGI = (o_BTHV.flatten(2) + u_BTE * skip_E).unflatten(-1, (G, -1))
        y_BTE = gated_norm(o_BTGI, self.norm.weight, z_BTE, norm="rms", gate_first=True, eps=self.norm.eps)
        return mask_tail(self.down(y_BTE), lengths_B), Mamba2State(conv, cell)

    def zero_state(self, batch: int, /, device: torch.device | None = None) -> Mamba2State:
        """State before the first step, on the device of the weights or on another."""
        H, zeros = self.config.heads, wide_zeros(self.skip_H, device)
        past_BSD = zeros(batch, self.config.conv_width - 1, self.sizes[1])
        s_BHKV = zeros(batch, H, self.config.state, self.inner // H)
        return Mamba2State(ConvState(past_BSD), LinearAttentionState(s_BHKV))

    def cell_flops(self, mode: str, length: int, /) -> float:
        """FLOPs of products with the memory and, in prefill, within chunks of 64 steps."""
        H, K, V = self.config.heads, self.config.state, self.inner // self.config.heads
        return H * (6 * K * V if mode == "decode" else 4 * K * V + 2 * min(64, length) * (K + V))
