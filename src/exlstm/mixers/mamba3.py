"""Mamba-3: Mamba-2 with the trapezoidal rule, gated decays, and rotations for the convolution (Lahoti et al. 2026).

The form of one input and one output:

    z, u, b, c, dd, a, l, r = W_up x      dt = softplus(dd + dt_bias)        g = -ht(a) dt      lam = sigmoid(l)
    ht(a) = 1 + a for a >= 0, else 1 / (1 - a), at least 1e-4
    k, q = rotated(RMSNorm(b) + b_bias, RMSNorm(c) + c_bias)    by angles phi_t = phi_{t-1} + pi tanh(r_t) dt_t
    S_t = e^g S_{t-1} + e^g (1 - lam_t) dt_t k_{t-1} u_{t-1}^T + lam_t dt_t k_t u_t^T
    o_t = S_t^T q_t + skip u_t            y = W_down (o * silu(z))

A step's key is written twice, when it comes and when the next one does. The memory here waits for the second time and
writes both at once: M_t = e^g (M_{t-1} + (p_{t-1} + (1 - lam_t) dt_t) k_{t-1} u_{t-1}^T) with p = lam dt, and then
S_t = M_t + p_t k_t u_t^T. So a sequence is one linear attention over keys and values of the step before.

B batch  T time  D model width  E inner width  G groups  H heads  K states per channel  V head width  J rotated pairs
M all of b and c  P gates of all heads, and turns
"""

from dataclasses import dataclass
from math import pi
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import relu, silu, softplus

from exlstm.mixers.contract import BlockStyle, FixedStateMixer, check_heads, check_width, checked, mask_tail, wide_zeros
from exlstm.nn import init
from exlstm.nn.fields import Factor, Positive, Size, check_fields
from exlstm.nn.layers import WidthNorm, round_up
from exlstm.nn.linear import Linear
from exlstm.ops.common import upcast
from exlstm.ops.linear_attention import LinearAttentionState, expanded, linear_attention
from exlstm.ops.rotary import AngleState, turned
from exlstm.ops.token_shift import TokenShiftState, token_shift

LEAST_DECAY = 1e-4  # per unit of dt


class Mamba3State(NamedTuple):
    """State of the layer: angles, the last step's key, value and p, and the memory without that step."""

    angle: AngleState
    key: TokenShiftState
    value: TokenShiftState
    strength: TokenShiftState
    cell: LinearAttentionState


@dataclass(frozen=True, kw_only=True)
class Mamba3Config:
    """Mamba-3. The inner width is up_factor * width, rounded up to a multiple of up_multiple.

    heads: published models have heads of 64 channels. state: states per channel, a multiple of 4: half of them are
    rotated, in pairs. groups: of heads that share b and c.
    """

    style: ClassVar[BlockStyle] = BlockStyle(activation=None)

    heads: Size = 4
    up_factor: Factor = 2.0
    state: Size = 128
    groups: Size = 1
    norm_eps: Positive = 1e-5
    up_multiple: Size = 64

    def __post_init__(self) -> None:
        check_fields(self)

    def build(self, width: int, *, depth: int = 1, index: int = 0) -> nn.Module:
        """The mixer. ValueError where a width cannot be divided into heads or pairs, or heads into groups."""
        return Mamba3(width, self, depth)


class Mamba3(FixedStateMixer):
    """Mamba-3 as a mixer: see `mixers.contract`, and `Mamba3Config` for its options."""

    def __init__(self, width: int, config: Mamba3Config, depth: int) -> None:
        super().__init__()
        check_width(width)
        inner, H, K = round_up(config.up_factor * width, config.up_multiple), config.heads, config.state
        check_heads(inner, H, "inner width {}")
        if H % config.groups:
            raise ValueError(f"groups is {config.groups}; it must divide heads, which is {H}.")
        if K % 4:
            raise ValueError(f"state is {K}; it must be a multiple of 4.")
        self.config, self.width, self.inner, self.backend = config, width, inner, "auto"
        self.sizes = [inner, inner, 2 * config.groups * K, 3 * H + K // 4]
        self.up = Linear(width, sum(self.sizes), bias=False)
        self.dt_bias_H, self.skip_H = (nn.Parameter(torch.empty(H)) for _ in range(2))
        self.b_bias_HK, self.c_bias_HK = (nn.Parameter(torch.empty(H, K)) for _ in range(2))
        self.b_norm, self.c_norm = (WidthNorm(K, "rms", config.norm_eps) for _ in range(2))
        self.down = Linear(inner, width, bias=False)
        ones = ("skip_H", "b_bias_HK", "c_bias_HK", "b_norm.weight", "c_norm.weight")
        init.fill(
            self,
            {
                "up.weight": init.uniform(width**-0.5),
                "dt_bias_H": init.inverse_softplus(init.log_uniform(1e-3, 1e-1)),
                **dict.fromkeys(ones, init.ones),
                "down.weight": init.uniform((depth * inner) ** -0.5),
            },
        )

    def forward(
        self,
        x_BTD: Tensor,
        state: Mamba3State | None = None,
        *,
        reset_BT: Tensor | None = None,
        lengths_B: Tensor | None = None,
    ) -> tuple[Tensor, Mamba3State]:
        """[B, T, width] -> [B, T, width] and the state after the last step; see `mixers.contract`."""
        x_BTD, reset_BT, lengths_B = checked(x_BTD, self.width, reset_BT, lengths_B)
        H, rows = self.config.heads, {"reset_BT": reset_BT, "lengths_B": lengths_B}
        state = self.zero_state(x_BTD.shape[0]) if state is None else state
        z_BTE, u_BTE, bc_BTM, gates_BTP = self.up(x_BTD).split(self.sizes, dim=-1)
        dt_BTH, a_BTH, trap_BTH, turn_BTJ = torch.split(upcast(gates_BTP), [H, H, H, self.config.state // 4], dim=-1)
        dt_BTH = softplus(dt_BTH + upcast(self.dt_bias_H))
        g_BTH = -dt_BTH * decay_rate(a_BTH)
        now_BTH, later_BTH = torch.sigmoid(trap_BTH) * dt_BTH, torch.sigmoid(-trap_BTH) * dt_BTH
        k_BTHK, q_BTHK = self.keys_and_queries(bc_BTM)
        sizes = *dt_BTH.shape, turn_BTJ.shape[-1]
        turn_BTHJ = torch.tanh(turn_BTJ)[:, :, None].expand(sizes).contiguous()
        turn_BTHJ = turn_BTHJ * (pi * dt_BTH)[..., None].expand(sizes).contiguous()
        q_BTHK, k_BTHK, angle = turned(q_BTHK, k_BTHK, turn_BTHJ, state.angle, reset_BT=reset_BT, lengths_B=lengths_B)
        u_BTHV = u_BTE.unflatten(-1, (H, -1))
        old_k, key = token_shift(k_BTHK.flatten(2), state.key, **rows)
        old_u, value = token_shift(u_BTE, state.value, **rows)
        old_BTH, strength = token_shift(now_BTH, state.strength, **rows)
        write_BTH = torch.exp(g_BTH) * (old_BTH + later_BTH)
        old_k_BTHK, old_u_BTHV = old_k.view(k_BTHK.shape), old_u.view(u_BTHV.shape)
        o_BTHV, cell = linear_attention(
            q_BTHK, old_k_BTHK, old_u_BTHV, g_BTH, state.cell, write_BTH=write_BTH, backend=self.backend, **rows
        )
        if x_BTD.shape[1] == 1:
            o_BTHV, _ = linear_attention(
                q_BTHK, k_BTHK, u_BTHV, None, cell, write_BTH=now_BTH, lengths_B=lengths_B, backend=self.backend
            )
        else:
            own_BTH = (upcast(q_BTHK) * upcast(k_BTHK)).sum(-1) * now_BTH
            o_BTHV = (o_BTHV + own_BTH[..., None] * u_BTHV).to(u_BTHV.dtype)
        skip_E = self.skip_H.to(u_BTE.dtype)[:, None].expand(u_BTHV.shape[2:]).flatten()
        y_BTE = (o_BTHV.flatten(2) + u_BTE * skip_E) * silu(z_BTE)
        return mask_tail(self.down(y_BTE), lengths_B), Mamba3State(angle, key, value, strength, cell)

    def keys_and_queries(self, bc_BTM: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and queries of every head, [B, T, H, K], before they are rotated."""
        G, H, K, dtype = self.config.groups, self.config.heads, self.config.state, bc_BTM.dtype
        b_BTGK, c_BTGK = bc_BTM.view(*bc_BTM.shape[:2], 2, G, K).unbind(2)
        b_BTGK, c_BTGK = self.b_norm(b_BTGK.contiguous()), self.c_norm(c_BTGK.contiguous())
        k_BTHK = expanded(b_BTGK, H).contiguous() + self.b_bias_HK.to(dtype)
        return k_BTHK, expanded(c_BTGK, H).contiguous() + self.c_bias_HK.to(dtype)

    def zero_state(self, batch: int, /, device: torch.device | None = None) -> Mamba3State:
        """State before the first step, on the device of the weights or on another."""
        H, K, zeros = self.config.heads, self.config.state, wide_zeros(self.skip_H, device)
        key, value, strength = (TokenShiftState(zeros(batch, size)) for size in (H * K, self.inner, H))
        cell = LinearAttentionState(zeros(batch, H, K, self.inner // H))
        return Mamba3State(AngleState(zeros(batch, H, K // 4)), key, value, strength, cell)

    def cell_flops(self, mode: str, length: int, /) -> float:
        """FLOPs of products with the memory and, in prefill, within chunks of 64 steps."""
        H, K, V = self.config.heads, self.config.state, self.inner // self.config.heads
        return H * (10 * K * V if mode == "decode" else 4 * K * V + 2 * min(64, length) * (K + V))


def decay_rate(a_BTH: Tensor) -> Tensor:
    """1 + a for a >= 0, else 1 / (1 - a), at least LEAST_DECAY: positive, and of slope 1 at 0."""
    rate_BTH = relu(a_BTH) + torch.reciprocal(1 + relu(-a_BTH))
    return relu(rate_BTH - LEAST_DECAY) + LEAST_DECAY
