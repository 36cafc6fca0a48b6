"""Gated slot attention: slots of keys and values that decay, read by softmax (Zhang et al. 2024, arXiv:2409.07146).

    q, k, v = silu(W x)         g = log sigmoid(W_f x) / temperature    per head and slot
    K~_t = K~_{t-1} diag(e^g_t) + k_t (1 - e^g_t)^T                     each slot is a moving average
    V~_t = diag(e^g_t) V~_{t-1} + (1 - e^g_t) v_t^T
    o_t = V~_t^T softmax(K~_t^T q_t)                                    Q slots per head
    y = W_o RMSNorm(silu(o))                                            over all values

B batch  T time  D model width  H heads  K width of a head, of keys and values  Q slots
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid, silu

from exlstm.mixers.contract import BlockStyle, FixedStateMixer, check_width, checked, mask_tail, wide_zeros
from exlstm.nn import init
from exlstm.nn.fields import Positive, Size, check_fields
from exlstm.nn.layers import WidthNorm
from exlstm.nn.linear import Linear, linears, wide_linear
from exlstm.ops.bounded_memory import BoundedMemoryState, bounded_memory


@dataclass(frozen=True, kw_only=True)
class GSAConfig:
    """Gated slot attention. slots: of each head. temperature: what the decay's logarithm is divided by."""

    style: ClassVar[BlockStyle] = BlockStyle()

    heads: Size = 4
    slots: Size = 64
    temperature: Positive = 8.0
    norm_eps: Positive = 1e-5

    def __post_init__(self) -> None:
        check_fields(self)

    def build(self, width: int, *, depth: int = 1, index: int = 0) -> nn.Module:
        """The mixer. ValueError where the width cannot be divided into heads."""
        return GSA(width, self)


class GSA(FixedStateMixer):
    """Gated slot attention as a mixer: see `mixers.contract`, and `GSAConfig` for its options."""

    def __init__(self, width: int, config: GSAConfig) -> None:
        super().__init__()
        check_width(width, config.heads)
        self.config, self.width, self.backend = config, width, "auto"
        self.q, self.k, self.v = (Linear(width, width, bias=False) for _ in range(3))
        self.f = Linear(width, config.heads * config.slots, bias=False)
        self.norm = WidthNorm(width, "rms", config.norm_eps)
        self.out = Linear(width, width, bias=False)
        weights = dict.fromkeys((f"{name}.weight" for name in ("q", "k", "v", "f", "out")), init.normal(0.02))
        init.fill(self, {**weights, "norm.weight": init.ones})

    def forward(
        self,
        x_BTD: Tensor,
        state: BoundedMemoryState | None = None,
        *,
        reset_BT: Tensor | None = None,
        lengths_B: Tensor | None = None,
    ) -> tuple[Tensor, BoundedMemoryState]:
        """[B, T, width] -> [B, T, width] and the state after the last step; see `mixers.contract`."""
        x_BTD, reset_BT, lengths_B = checked(x_BTD, self.width, reset_BT, lengths_B)
        H = self.config.heads
        qkv = (silu(x) for x in linears(x_BTD, (self.q, self.k, self.v)))
        g = logsigmoid(wide_linear(self.f, x_BTD)) * (1 / self.config.temperature)
        q_BTHK, k_BTHK, v_BTHK, g_BTHQ = (torch.unflatten(x, -1, (H, -1)) for x in (*qkv, g))
        o_BTHK, state = bounded_memory(
            q_BTHK, k_BTHK, v_BTHK, g_BTHQ, state, reset_BT=reset_BT, lengths_B=lengths_B, backend=self.backend
        )
        return mask_tail(self.out(self.norm(silu(o_BTHK.flatten(2)))), lengths_B), state

    def zero_state(self, batch: int, /, device: torch.device | None = None) -> BoundedMemoryState:
        """State before the first step, on the device of the weights or on another."""
        H, Q, K = self.config.heads, self.config.slots, self.width // self.config.heads
        zeros = wide_zeros(self.norm.weight, device)
        return BoundedMemoryState(zeros(batch, H, K, Q), zeros(batch, H, Q, K))

    def cell_flops(self, mode: str, length: int, /) -> float:
        """FLOPs of a decay, a write and a read of keys and values of all slots, and of softmax over them."""
        return self.config.slots * (12.0 * self.width + 3.0 * self.config.heads)
