"""ABC, attention with bounded-memory control: softmax over slots of averages (Peng et al. 2021, arXiv:2110.02488).

The parameters are those of the layer in flash-linear-attention.

    q, k = rotary(W x)      v, r = W x      s = W_s x                   keys are key_factor times as wide as x
    K~_t = sum_{j <= t} k_j (e^s_j / n_t)^T ,  V~_t = sum_{j <= t} (e^s_j / n_t) v_j^T ,  n_t = sum_{j <= t} e^s_j
    o_t = V~_t^T softmax(K~_t^T q_t / sqrt K)                           Q slots per head; s is clamped to 32 nats
    y = W_o (RMSNorm(o) silu(r))                                        a norm per head, one gain for all heads

The state holds the sums, not the averages: n is never zero where it divides. Halves are rotated, as in Llama.

B batch  T time  D model width  E inner width  H heads  K key width  V value width  Q slots
"""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from exlstm.mixers.contract import BlockStyle, FixedStateMixer, check_heads, check_width, checked, mask_tail, wide_zeros
from exlstm.nn import init
from exlstm.nn.fields import Factor, Positive, Size, check_fields
from exlstm.nn.layers import round_up
from exlstm.nn.linear import Linear, linears, wide_linear
from exlstm.ops.bounded_memory import AveragedMemoryState, averaged_memory
from exlstm.ops.gated_norm import gated_norm
from exlstm.ops.rotary import PositionState, rotary


class ABCState(NamedTuple):
    """State of the layer: the position of the next step, and the slots."""

    next: PositionState
    cell: AveragedMemoryState


@dataclass(frozen=True, kw_only=True)
class ABCConfig:
    """ABC with keys key_factor * width and values value_factor * width wide, in all heads together.

    slots: of each head.
    """

    style: ClassVar[BlockStyle] = BlockStyle()

    heads: Size = 4
    slots: Size = 64
    key_factor: Factor = 0.5
    value_factor: Factor = 1.0
    rope_base: Positive = 10_000.0
    norm_eps: Positive = 1e-5

    def __post_init__(self) -> None:
        check_fields(self)

    def build(self, width: int, *, depth: int = 1, index: int = 0) -> nn.Module:
        """The mixer. ValueError where a width cannot be divided into heads, those of keys of even width."""
        return ABC(width, self)


class ABC(FixedStateMixer):
    """ABC as a mixer: see `mixers.contract`, and `ABCConfig` for its options."""

    def __init__(self, width: int, config: ABCConfig) -> None:
        super().__init__()
        check_width(width)
        keys, values = (round_up(factor * width, 1) for factor in (config.key_factor, config.value_factor))
        if keys % (2 * config.heads):
            raise ValueError(f"heads is {config.heads}; it must cut the width {keys} of the keys into even widths.")
        check_heads(values, config.heads, "width {} of the values")
        self.config, self.width, self.backend = config, width, "auto"
        self.keys, self.values = keys, values
        self.q, self.k = Linear(width, keys, bias=False), Linear(width, keys, bias=False)
        self.v, self.r = Linear(width, values, bias=False), Linear(width, values, bias=False)
        self.s = Linear(width, config.heads * config.slots, bias=False)
        self.gain_V = nn.Parameter(torch.empty(values // config.heads))
        self.out = Linear(values, width, bias=False)
        weights = dict.fromkeys((f"{name}.weight" for name in ("q", "k", "v", "r", "s", "out")), init.normal(0.02))
        init.fill(self, {**weights, "gain_V": init.ones})

    def forward(
        self,
        x_BTD: Tensor,
        state: ABCState | None = None,
        *,
        reset_BT: Tensor | None = None,
        lengths_B: Tensor | None = None,
    ) -> tuple[Tensor, ABCState]:
        """[B, T, width] -> [B, T, width] and the state after the last step; see `mixers.contract`."""
        x_BTD, reset_BT, lengths_B = checked(x_BTD, self.width, reset_BT, lengths_B)
        state = self.zero_state(x_BTD.shape[0]) if state is None else state
        H, rows = self.config.heads, {"reset_BT": reset_BT, "lengths_B": lengths_B}
        *qkv, r_BTE = linears(x_BTD, (self.q, self.k, self.v, self.r))
        q_BTHK, k_BTHK, v_BTHV, s_BTHQ = (torch.unflatten(x, -1, (H, -1)) for x in (*qkv, wide_linear(self.s, x_BTD)))
        q_BTHK = q_BTHK * q_BTHK.shape[-1] ** -0.5
        q_BTHK, k_BTHK, after = rotary(
            q_BTHK, k_BTHK, state.next, base=self.config.rope_base, reset_BT=reset_BT, lengths_B=lengths_B
        )
        o_BTHV, cell = averaged_memory(q_BTHK, k_BTHK, v_BTHV, s_BTHQ, state.cell, backend=self.backend, **rows)
        gain_E = self.gain_V.expand(H, -1).reshape(-1)
        y_BTE = gated_norm(o_BTHV, gain_E, r_BTE, norm="rms", eps=self.config.norm_eps)
        return mask_tail(self.out(y_BTE), lengths_B), ABCState(after, cell)

    def zero_state(self, batch: int, /, device: torch.device | None = None) -> ABCState:
        """State before the first step, on the device of the weights or on another."""
        H, Q, zeros = self.config.heads, self.config.slots, wide_zeros(self.gain_V, device)
        position_B = torch.zeros(batch, dtype=torch.int64, device=device or self.gain_V.device)
        sums = zeros(batch, H, self.keys // H, Q), zeros(batch, H, Q, self.values // H), zeros(batch, H, Q)
        return ABCState(PositionState(position_B), AveragedMemoryState(*sums))

    def cell_flops(self, mode: str, length: int, /) -> float:
        """FLOPs of a write and a read of keys and values of all slots, and of softmax over them."""
        return self.config.slots * (6.0 * (self.keys + self.values) + 3.0 * self.config.heads)
