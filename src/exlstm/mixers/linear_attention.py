"""Linear attention: softmax replaced by a product of features (Katharopoulos et al. 2020, arXiv:2006.16236, eqs 9-20).

    q, k, v = W x + b        phi(x) = elu(x) + 1
    S_t = S_{t-1} + phi(k_t) v_t^T        n_t = n_{t-1} + phi(k_t)        o_t = S_t^T phi(q_t) / (n_t . phi(q_t) + eps)
    y = W_out o + b

Nothing decays: S grows with every step, and only a reset forgets.

B batch  T time  D model width  H heads  K head width
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from exlstm.mixers.contract import BlockStyle, FixedStateMixer, check_width, checked, mask_tail, wide_zeros
from exlstm.nn import init
from exlstm.nn.fields import Positive, Size, check_fields
from exlstm.nn.linear import Linear, linears
from exlstm.ops.common import upcast
from exlstm.ops.features import elu1
from exlstm.ops.linear_attention import NormalizedState, normalized_linear_attention


@dataclass(frozen=True, kw_only=True)
class LinearAttentionConfig:
    """Linear attention. eps: in the denominator. bias: of all projections."""

    style: ClassVar[BlockStyle] = BlockStyle(norm="layer", activation="gelu", factor=4.0, gated=False, bias=True)

    heads: Size = 4
    eps: Positive = 1e-6
    bias: bool = True

    def __post_init__(self) -> None:
        check_fields(self)

    def build(self, width: int, *, depth: int = 1, index: int = 0) -> nn.Module:
        """The mixer. ValueError where the width cannot be divided into heads."""
        return LinearAttention(width, self, depth)


class LinearAttention(FixedStateMixer):
    """Linear attention as a mixer: see `mixers.contract`, and `LinearAttentionConfig` for its options."""

    def __init__(self, width: int, config: LinearAttentionConfig, depth: int) -> None:
        super().__init__()
        check_width(width, config.heads)
        self.config, self.width, self.head_width, self.backend = config, width, width // config.heads, "auto"
        self.q, self.k, self.v, self.out = (Linear(width, width, bias=config.bias) for _ in range(4))
        table = dict.fromkeys(("q.weight", "k.weight", "v.weight"), init.small(width))
        biases = ("q.bias", "k.bias", "v.bias", "out.bias") if config.bias else ()
        init.fill(self, {**table, "out.weight": init.wang(width, depth), **dict.fromkeys(biases, init.zeros)})

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
        q_BTHK, k_BTHK, v_BTHK = (torch.unflatten(x, -1, (H, -1)) for x in linears(x_BTD, (self.q, self.k, self.v)))
        o_BTHK, state = normalized_linear_attention(
            elu1(upcast(q_BTHK)),
            elu1(upcast(k_BTHK)),
            v_BTHK,
            state,
            eps=self.config.eps,
            reset_BT=reset_BT,
            lengths_B=lengths_B,
            backend=self.backend,
        )
        return mask_tail(self.out(o_BTHK.flatten(2)), lengths_B), state

    def zero_state(self, batch: int, /, device: torch.device | None = None) -> NormalizedState:
        """State before the first step, on the device of the weights or on another."""
        H, K, zeros = self.config.heads, self.head_width, wide_zeros(self.q.like, device)
        return NormalizedState(zeros(batch, H, K, K), zeros(batch, H, K))

    def cell_flops(self, mode: str, length: int, /) -> float:
        """FLOPs of products with the memory and, in prefill, within chunks of 64 steps."""
        H, K = self.config.heads, self.head_width
        return H * (6 * K * K if mode == "decode" else 4 * K * K + 4 * min(64, length) * K)
