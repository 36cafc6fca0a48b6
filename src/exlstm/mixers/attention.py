"""Causal attention as in Llama (Touvron et al. 2023, arXiv:2302.13971): rotary positions, no biases, a growing state.

B batch  T time  D model width  H heads  K head width
"""

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn

from exlstm.mixers.contract import BlockStyle, check_width, checked, mask_tail
from exlstm.nn import init
from exlstm.nn.fields import Positive, Size, check_fields
from exlstm.nn.linear import Linear, linears
from exlstm.ops.attention import AttentionState, attention


@dataclass(frozen=True, kw_only=True)
class AttentionConfig:
    """Causal attention with rotary positions.

    kv_heads: heads of keys and values, None: as many as of queries. window: steps that a step may see, None: all.
    """

    style: ClassVar[BlockStyle] = BlockStyle()
    heads: Size = 4
    kv_heads: Size | None = None
    window: Size | None = None
    rope_base: Positive = 10_000.0

    def __post_init__(self) -> None:
        check_fields(self)

    def build(self, width: int, *, depth: int = 1, index: int = 0) -> nn.Module:
        """The mixer. ValueError where the width cannot be divided into heads of even width."""
        return Attention(width, self, depth)


class Attention(nn.Module):
    """Causal attention as a mixer: see `mixers.contract`, and `AttentionConfig` for its options."""

    def __init__(self, width: int, config: AttentionConfig, depth: int) -> None:
        super().__init__()
        check_width(width)
        H, G = config.heads, config.kv_heads or config.heads
        if width % (2 * H):
            raise ValueError(f"heads is {H}; it must cut the width {width} into heads of even width.")
        if H % G:
            raise ValueError(f"kv_heads is {G}; it must divide heads, which is {H}.")
        self.config, self.width, self.head_width, self.kv_heads = config, width, width // H, G
        self.q = Linear(width, width, bias=False)
        self.k = Linear(width, G * self.head_width, bias=False)
        self.v = Linear(width, G * self.head_width, bias=False)
        self.out = Linear(width, width, bias=False)
        init.fill(
            self,
            {
                "q.weight": init.small(width),
                "k.weight": init.small(width),
                "v.weight": init.small(width),
                "out.weight": init.wang(width, depth),
            },
        )

    def forward(
        self, x_BTD: Tensor, state: AttentionState | None = None, *,
        reset_BT: Tensor | None = None, lengths_B: Tensor | None = None,
    ) -> tuple[Tensor, AttentionState]:  # fmt: skip
        """[B, T, width] -> [B, T, width] and the state after the last step; see `mixers.contract`."""
        x_BTD, reset_BT, lengths_B = checked(x_BTD, self.width, reset_BT, lengths_B)
        q_BTHK, k_BTGK, v_BTGK = (
            x_BTM.view(*x_BTM.shape[:2], x_BTM.shape[2] // self.head_width, self.head_width)
            for x_BTM in linears(x_BTD, (self.q, self.k, self.v))
        )
        h_BTHK, state = attention(
            q_BTHK, k_BTGK, v_BTGK, state,
            reset_BT=reset_BT, lengths_B=lengths_B, window=self.config.window, rope_base=self.config.rope_base,
        )  # fmt: skip
        return mask_tail(self.out(h_BTHK.flatten(2)), lengths_B), state

    def zero_state(self, batch: int, /, device: torch.device | None = None) -> AttentionState:
        """State before the first step, on the device of the weights or on another."""
        device = device or self.k.like.device
        empty_BSGK = torch.zeros(batch, 0, self.kv_heads, self.head_width, dtype=self.k.like.dtype, device=device)
        counts = partial(torch.zeros, dtype=torch.long, device=device)
        return AttentionState(empty_BSGK, empty_BSGK, counts(batch, 0), counts(batch))

    def state_bytes(self, length: int = 0, /) -> int:
        """Bytes of one sequence's state: a key, a value and a position per step within the window."""
        cached = length if self.config.window is None else min(length, self.config.window - 1)
        return cached * (2 * self.kv_heads * self.head_width * self.k.like.element_size() + 8) + 8

    def cell_flops(self, mode: str, length: int, /) -> float:
        """FLOPs of products with keys and values: of `length` steps in decoding, half as many on average in prefill."""
        seen = min(length if mode == "decode" else length / 2, self.config.window or length)
        return 4.0 * seen * self.config.heads * self.head_width
