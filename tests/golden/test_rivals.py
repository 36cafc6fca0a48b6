"""The rivals against their well-known implementations: Llama's attention in transformers, and torch.nn.LSTM."""

import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaRotaryEmbedding

from exlstm.mixers.attention import AttentionConfig
from exlstm.mixers.lstm import LSTMConfig
from exlstm.ops.rope import rope

WIDTH, HEADS, T = 64, 4, 12


def llama(kv_heads, base=10_000.0):
    config = LlamaConfig(
        hidden_size=WIDTH, num_attention_heads=HEADS, num_key_value_heads=kv_heads,
        rope_parameters={"rope_type": "default", "rope_theta": base},
    )  # fmt: skip
    config._attn_implementation = "eager"
    return LlamaAttention(config, layer_idx=0), LlamaRotaryEmbedding(config)


def seen(window):
    """Llama's additive mask: what a step may look at."""
    distance = torch.arange(T)[:, None] - torch.arange(T)
    allowed = (distance >= 0) & (distance < (window or T))
    return torch.zeros(1, 1, T, T).masked_fill(~allowed, -torch.inf)


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("base", [10_000.0, 500_000.0])
def test_attention(kv_heads, window, base):
    theirs, rotary = llama(kv_heads, base)
    mixer = AttentionConfig(heads=HEADS, kv_heads=kv_heads, window=window, rope_base=base).build(WIDTH)
    mixer.load_state_dict(
        {"q.weight": theirs.q_proj.weight, "k.weight": theirs.k_proj.weight, "v.weight": theirs.v_proj.weight,
         "out.weight": theirs.o_proj.weight}
    )  # fmt: skip
    x = torch.randn(2, T, WIDTH)
    position = torch.arange(T).expand(2, T)
    want, _ = theirs(x, rotary(x, position), seen(window))
    torch.testing.assert_close(mixer(x)[0], want, rtol=1e-4, atol=1e-5)


def test_rotary_angles():
    """At positions where float32 angles still have their digits."""
    _, rotary = llama(4)
    x, position = torch.randn(1, 6, 1, WIDTH // HEADS), torch.tensor([[0, 1, 2, 10, 63, 100]])
    cos, sin = rotary(x, position)
    half = WIDTH // HEADS // 2
    turned = torch.cat([-x[..., half:], x[..., :half]], dim=-1)
    want = x * cos[:, :, None] + turned * sin[:, :, None]
    torch.testing.assert_close(rope(x, position), want, rtol=1e-4, atol=1e-5)


def test_lstm():
    theirs, mixer = torch.nn.LSTM(8, 8, batch_first=True).double(), LSTMConfig().build(8).double()
    w, u, b, more_b = (p.detach() for p in theirs.parameters())
    mixer.load_state_dict({"w_GD": w, "u_GV": u, "b_G": b + more_b})
    x = torch.randn(3, 10, 8, dtype=torch.float64)
    (want, (h, c)), (y, state) = theirs(x), mixer(x)
    for got, expected in ((y, want), (state.h_BV, h[0]), (state.c_BV, c[0])):
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)
