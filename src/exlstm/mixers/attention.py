"""Causal attention, by default as in Llama (Touvron et al. 2023, arXiv:2302.13971). Without a window its state grows.

    q, k, v = W x (+ b)                       by heads; keys and values may be shared by groups of query heads
    y = W_out softmax(q k^T / sqrt(K)) v (+ b)

Llama has rotary positions and no biases, GPT-2 and GPT-3 have biases and no rotary positions. RecurrentGemma
(De et al. 2024, arXiv:2402.19427) has a window, one head of keys and values, and rotates half of each head.

B batch  T time  D model width  H heads  K head width
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from exlstm.mixers.contract import BlockStyle, check_width, checked, mask_tail, zero_state_bytes
from exlstm.nn import init
from exlstm.nn.fields import Portion, Positive, Size, check_fields
from exlstm.nn.linear import Linear, linears
from exlstm.ops.attention import AttentionState, WindowState, attention, empty_cache, empty_window
from exlstm.ops.rope import rotated_width


@dataclass(frozen=True, kw_only=True)
class AttentionConfig:
    """Causal attention with rotary positions.

    kv_heads: heads of keys and values, None: as many as of queries. window: steps that a step may see, None: all.
    rope_base: None for no rotary positions. rope_share: of a head's channels that are rotated, the first of them.
    head_width: None for heads that make up the width. bias: of q, k and v, and of the output where out_bias is None.
    """

    style: ClassVar[BlockStyle] = BlockStyle()
    heads: Size = 4
    kv_heads: Size | None = None
    window: Size | None = None
    rope_base: Positive | None = 10_000.0
    rope_share: Portion = 1.0
    head_width: Size | None = None
    bias: bool = False
    out_bias: bool | None = None

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
        K = checked_head_width(config, width)
        if H % G:
            raise ValueError(f"kv_heads is {G}; it must divide heads, which is {H}.")
        self.config, self.width, self.head_width, self.kv_heads = config, width, K, G
        out_bias = config.bias if config.out_bias is None else config.out_bias
        self.q = Linear(width, H * K, bias=config.bias)
        self.k = Linear(width, G * K, bias=config.bias)
        self.v = Linear(width, G * K, bias=config.bias)
        self.out = Linear(H * K, width, bias=out_bias)
        weights = {f"{name}.weight": init.small(width) for name in "qkv"}
        names = (*("qkv" if config.bias else ""), *(["out"] if out_bias else []))
        biases = {f"{name}.bias": init.zeros for name in names}
        init.fill(self, {**weights, "out.weight": init.wang(width, depth), **biases})

    def forward(
        self, x_BTD: Tensor, state: AttentionState | WindowState | None = None, *,
        reset_BT: Tensor | None = None, lengths_B: Tensor | None = None,
    ) -> tuple[Tensor, AttentionState | WindowState]:  # fmt: skip
        """[B, T, width] -> [B, T, width] and the state after the last step; see `mixers.contract`."""
        x_BTD, reset_BT, lengths_B = checked(x_BTD, self.width, reset_BT, lengths_B)
        q_BTHK, k_BTGK, v_BTGK = (
            torch.unflatten(x, -1, (-1, self.head_width)) for x in linears(x_BTD, (self.q, self.k, self.v))
        )
        h_BTHK, state = attention(
            q_BTHK, k_BTGK, v_BTGK, state,
            reset_BT=reset_BT, lengths_B=lengths_B, window=self.config.window, rope_base=self.config.rope_base,
            rope_share=self.config.rope_share,
        )  # fmt: skip
        return mask_tail(self.out(h_BTHK.flatten(2)), lengths_B), state

    def zero_state(self, batch: int, /, device: torch.device | None = None) -> AttentionState | WindowState:
        """State before the first step, on the device of the weights or on another."""
        dtype, device = self.k.like.dtype, device or self.k.like.device
        keys_BTGK = torch.empty(batch, 0, self.kv_heads, self.head_width, dtype=dtype, device=device)
        return empty_cache(keys_BTGK) if self.config.window is None else empty_window(keys_BTGK, self.config.window)

    def state_bytes(self, length: int = 0, /) -> int:
        """Bytes of one sequence's state: with a window the same at any length."""
        if self.config.window is not None:
            return zero_state_bytes(self)
        return length * (2 * self.kv_heads * self.head_width * self.k.like.element_size() + 8) + 8

    def cell_flops(self, mode: str, length: int, /) -> float:
        """FLOPs of products with keys and values: of `length` steps in decoding, half as many on average in prefill."""
        seen = min(length if mode == "decode" else length / 2, self.config.window or length)
        return 4.0 * seen * self.config.heads * self.head_width


def checked_head_width(config: AttentionConfig, width: int) -> int:
    """Channels of a head. ValueError where heads do not divide the width, or no even number of channels is rotated."""
    H, rotary = config.heads, config.rope_base is not None
    if config.head_width is None and width % (2 * H if rotary and config.rope_share == 1 else H):
        even = "heads of even width" if rotary else "heads"
        raise ValueError(f"heads is {H}; it must cut the width {width} into {even}.")
    K = config.head_width or width // H
    if rotary and (rotated_width(K, config.rope_share) % 2 or not rotated_width(K, config.rope_share)):
        raise ValueError(
            f"rope_share is {config.rope_share}; of heads of {K} channels it must rotate an even number, at least 2."
        )
    return K
