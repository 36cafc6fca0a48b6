"""Retention, the mixer of RetNet: linear attention with a fixed decay per head (Sun et al. 2023, arXiv:2307.08621).

    q, k = rotary(W x)        v, g = W x        gamma_h = 1 - 2^(-5 - h),  h = 0 .. H - 1
    S_t = gamma S_{t-1} + k_t v_t^T / sqrt(K)        o_t = S_t^T q_t
    y = W_out (silu(g) * RMSNorm(o))

The norm is of each head, without a gain. The paper's code also divides o by sums of decays and of scores, positive
numbers that the norm takes out again. Halves are rotated, as in Llama, by frequencies 10000^(-2f/K).

B batch  T time  D model width  E values of all heads  H heads  K key width  V value width
"""

from dataclasses import dataclass
from math import log1p
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from exlstm.mixers.contract import BlockStyle, FixedStateMixer, check_heads, check_width, checked, mask_tail, wide_zeros
from exlstm.nn import init
from exlstm.nn.fields import Factor, Positive, Size, check_fields
from exlstm.nn.fixed import FixedNumbers
from exlstm.nn.linear import Linear, linears
from exlstm.ops.gated_norm import gated_norm
from exlstm.ops.linear_attention import LinearAttentionState, linear_attention
from exlstm.ops.rotary import PositionState, rotary


class RetentionState(NamedTuple):
    """State of the layer: the position of the next step, and the cell's memory."""

    next: PositionState
    cell: LinearAttentionState


@dataclass(frozen=True, kw_only=True)
class RetentionConfig:
    """Retention. The width of values is value_factor * width, over all heads."""

    style: ClassVar[BlockStyle] = BlockStyle(activation="gelu", factor=4 / 3)

    heads: Size = 4
    value_factor: Factor = 2.0
    rope_base: Positive = 10_000.0
    norm_eps: Positive = 1e-6

    def __post_init__(self) -> None:
        check_fields(self)

    def build(self, width: int, *, depth: int = 1, index: int = 0) -> nn.Module:
        """The mixer. ValueError where a width cannot be divided into heads, those of keys of even width."""
        return Retention(width, self)


class Retention(FixedStateMixer):
    """Retention as a mixer: see `mixers.contract`, and `RetentionConfig` for its options."""

    def __init__(self, width: int, config: RetentionConfig) -> None:
        super().__init__()
        check_width(width)
        H, values = config.heads, int(config.value_factor * width)
        if width % (2 * H):
            raise ValueError(f"heads is {H}; it must cut the width {width} into heads of even width.")
        check_heads(values, H, "width {} of the values")
        self.config, self.width, self.values, self.backend = config, width, values, "auto"
        self.q, self.k = Linear(width, width, bias=False), Linear(width, width, bias=False)
        self.v, self.g = Linear(width, values, bias=False), Linear(width, values, bias=False)
        self.out = Linear(values, width, bias=False)
        decays = [log1p(-(2.0 ** (-5 - h))) for h in range(H)]
        # a float buffer would be rounded with the model: in bfloat16 a decay of 1 - 2^-9 is 1
        self.log_decays = FixedNumbers(torch.tensor(decays, dtype=torch.float64, device="cpu"))
        self.gains = FixedNumbers(torch.ones(values, dtype=torch.float64, device="cpu"))
        table = dict.fromkeys(("q.weight", "k.weight", "v.weight", "g.weight"), init.xavier(2**-2.5))
        init.fill(self, {**table, "out.weight": init.xavier(0.5)})

    def forward(
        self,
        x_BTD: Tensor,
        state: RetentionState | None = None,
        *,
        reset_BT: Tensor | None = None,
        lengths_B: Tensor | None = None,
    ) -> tuple[Tensor, RetentionState]:
        """[B, T, width] -> [B, T, width] and the state after the last step; see `mixers.contract`."""
        x_BTD, reset_BT, lengths_B = checked(x_BTD, self.width, reset_BT, lengths_B)
        state = self.zero_state(x_BTD.shape[0]) if state is None else state
        H, rows = self.config.heads, {"reset_BT": reset_BT, "lengths_B": lengths_B}
        *qkv, g_BTE = linears(x_BTD, (self.q, self.k, self.v, self.g))
        q_BTHK, k_BTHK, v_BTHV = (torch.unflatten(x, -1, (H, -1)) for x in qkv)
        k_BTHK = k_BTHK * k_BTHK.shape[-1] ** -0.5
        q_BTHK, k_BTHK, after = rotary(
            q_BTHK, k_BTHK, state.next, base=self.config.rope_base, reset_BT=reset_BT, lengths_B=lengths_B
        )
        g_H = self.log_decays.like(q_BTHK)
        o_BTHV, cell = linear_attention(q_BTHK, k_BTHK, v_BTHV, g_H, state.cell, backend=self.backend, **rows)
        gain_E = self.gains.like(o_BTHV).to(o_BTHV.dtype)
        y_BTE = gated_norm(o_BTHV, gain_E, g_BTE, norm="rms", eps=self.config.norm_eps)
        return mask_tail(self.out(y_BTE), lengths_B), RetentionState(after, cell)

    def zero_state(self, batch: int, /, device: torch.device | None = None) -> RetentionState:
        """State before the first step, on the device of the weights or on another."""
        H, zeros = self.config.heads, wide_zeros(self.q.like, device)
        position_B = torch.zeros(batch, dtype=torch.int64, device=device or self.q.like.device)
        s_BHKV = zeros(batch, H, self.width // H, self.values // H)
        return RetentionState(PositionState(position_B), LinearAttentionState(s_BHKV))

    def cell_flops(self, mode: str, length: int, /) -> float:
        """FLOPs of products with the memory and, in prefill, within chunks of 64 steps."""
        H, K, V = self.config.heads, self.width // self.config.heads, self.values // self.config.heads
        return H * (6 * K * V if mode == "decode" else 4 * K * V + 2 * min(64, length) * (K + V))
