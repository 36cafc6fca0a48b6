"""Performer: linear attention whose random features average to softmax's (Choromanski et al. 2020, arXiv:2009.14794).

    q, k, v = W x        o_t = S_t^T phi(q_t) / (n_t . phi(q_t) + eps)        y = W_out o
    S, n the sums of phi(k) v^T and of phi(k), phi the M positive random features of `ops.features.favor`

The random rows are no parameters: they are a function of `seed` and of the block's place, are not saved, and are never
drawn again, since a state has a meaning only with the rows that made it. By default M = K ln K.

B batch  T time  D model width  H heads  K head width  M random features
"""

from dataclasses import dataclass
from math import log
from typing import ClassVar

import torch
from torch import Tensor, nn

from exlstm.mixers.contract import BlockStyle, FixedStateMixer, check_width, checked, mask_tail, wide_zeros
from exlstm.nn import init
from exlstm.nn.fields import Positive, Seed, Size, check_fields
from exlstm.nn.fixed import FixedNumbers
from exlstm.nn.linear import Linear, linears
from exlstm.ops.features import favor, random_rows
from exlstm.ops.linear_attention import NormalizedState, normalized_linear_attention


@dataclass(frozen=True, kw_only=True)
class PerformerConfig:
    """Performer. features: random features of a head, None for K ln K. eps: in the denominator.

    The largest feature of a key is about e^(K / 2): heads wider than 128 would leave float32.
    """

    style: ClassVar[BlockStyle] = BlockStyle(norm="layer", activation="gelu", factor=4.0, gated=False, bias=True)

    heads: Size = 4
    features: Size | None = None
    seed: Seed = 0
    eps: Positive = 1e-6
    bias: bool = False

    def __post_init__(self) -> None:
        check_fields(self)

    def build(self, width: int, *, depth: int = 1, index: int = 0) -> nn.Module:
        """The mixer. ValueError where the width cannot be divided into heads, and for heads that are too wide."""
        return Performer(width, self, depth, index)


class Performer(FixedStateMixer):
    """Performer as a mixer: see `mixers.contract`, and `PerformerConfig` for its options."""

    def __init__(self, width: int, config: PerformerConfig, depth: int, index: int) -> None:
        super().__init__()
        check_width(width, config.heads)
        K = width // config.heads
        if K > 128:
            raise ValueError(f"heads is {config.heads}; with width {width} use {-(-width // 128)} or more.")
        self.config, self.width, self.head_width, self.backend = config, width, K, "auto"
        self.features = config.features or max(1, int(K * log(K)))
        self.rows = FixedNumbers(random_rows(self.features, K, (config.seed + 1_000_003 * index) % 2**63))
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
        rows_MK = self.rows.like(q_BTHK)
        o_BTHK, state = normalized_linear_attention(
            favor(q_BTHK, rows_MK, is_query=True),
            favor(k_BTHK, rows_MK, is_query=False),
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
        H, zeros = self.config.heads, wide_zeros(self.q.like, device)
        return NormalizedState(zeros(batch, H, self.features, self.head_width), zeros(batch, H, self.features))

    def cell_flops(self, mode: str, length: int, /) -> float:
        """FLOPs of features and of products with the memory and, in prefill, within chunks of 64 steps."""
        H, K, M = self.config.heads, self.head_width, self.features
        cell = 6 * M * K if mode == "decode" else 4 * M * K + 2 * min(64, length) * (M + K)
        return H * (4 * M * K + cell)
