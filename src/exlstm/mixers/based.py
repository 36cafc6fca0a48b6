"""Based: linear attention with the features of a Taylor series (Arora et al. 2024, arXiv:2402.18668).

    q, k, v = W x        o_t = S_t^T phi(q_t) / (n_t . phi(q_t) + eps)        y = W_out o
    phi(q) . phi(k) = 1 + s + s^2 / 2,  s = q . k / sqrt(K)        S, n the sums of phi(k) v^T and of phi(k)

Queries and keys are narrow, since there are 1 + K + K (K + 1) / 2 features: each product of two channels is there once,
where the paper's code has it twice. The paper has layers of this next to convolutions and attention to a short window.

B batch  T time  D model width  H heads  K key width  V value width  P features
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from exlstm.mixers.contract import BlockStyle, FixedStateMixer, check_width, checked, mask_tail, wide_zeros
from exlstm.nn import init
from exlstm.nn.fields import Positive, Size, check_fields
from exlstm.nn.linear import Linear, linears
from exlstm.ops.features import taylor
from exlstm.ops.linear_attention import NormalizedState, normalized_linear_attention


@dataclass(frozen=True, kw_only=True)
class BasedConfig:
    """Based. key_width: of queries and keys of a head. eps: in the denominator."""

    style: ClassVar[BlockStyle] = BlockStyle()

    heads: Size = 4
    key_width: Size = 16
    eps: Positive = 1e-12

    def __post_init__(self) -> None:
        check_fields(self)

    def build(self, width: int, *, depth: int = 1, index: int = 0) -> nn.Module:
        """The mixer. ValueError where the width cannot be divided into heads."""
        return Based(width, self)


class Based(FixedStateMixer):
    """Based as a mixer: see `mixers.contract`, and `BasedConfig` for its options."""

    def __init__(self, width: int, config: BasedConfig) -> None:
        super().__init__()
        check_width(width, config.heads)
        self.config, self.width, self.head_width, self.backend = config, width, width // config.heads, "auto"
        keys = config.heads * config.key_width
        self.features = 1 + config.key_width + config.key_width * (config.key_width + 1) // 2
        self.q, self.k = Linear(width, keys, bias=False), Linear(width, keys, bias=False)
        self.v, self.out = Linear(width, width, bias=False), Linear(width, width, bias=False)
        init.fill(self, dict.fromkeys(("q.weight", "k.weight", "v.weight", "out.weight"), init.normal(0.02)))

    def forward(
        self,
        x_BTD: Tensor,
        state: NormalizedState | None = None,
        *,
        reset_BT: Tensor | None = None,
        lengths_B: Tensor | None = None,
    ) -> tuple[Tensor, NormalizedState]:
        """[B, T, width] -> [B, T, width] and the state after the last step; see `mixers.contract`."""
        x_BTD, reset_BT, lengths_B = checked(x_BTD, self.width, reset_BT, lengths_B)
        H = self.config.heads
        q_BTHK, k_BTHK, v_BTHV = (torch.unflatten(x, -1, (H, -1)) for x in linears(x_BTD, (self.q, self.k, self.v)))
        o_BTHV, state = normalized_linear_attention(
            taylor(q_BTHK),
            taylor(k_BTHK),
            v_BTHV,
            state,
            eps=self.config.eps,
            reset_BT=reset_BT,
            lengths_B=lengths_B,
            backend=self.backend,
        )
        return mask_tail(self.out(o_BTHV.flatten(2)), lengths_B), state

    def zero_state(self, batch: int, /, device: torch.device | None = None) -> NormalizedState:
        """State before the first step, on the device of the weights or on another."""
        H, zeros = self.config.heads, wide_zeros(self.q.like, device)
        return NormalizedState(zeros(batch, H, self.features, self.head_width), zeros(batch, H, self.features))

    def cell_flops(self, mode: str, length: int, /) -> float:
        """FLOPs of products with the memory and, in prefill, within chunks of 64 steps."""
        H, P, V = self.config.heads, self.features, self.head_width
        return H * (6 * P * V if mode == "decode" else 4 * P * V + 2 * min(64, length) * (P + V))
