"""Options of attention against transformers' layers that have them: RecurrentGemma's and GPT-2's."""

import pytest
import torch
from transformers import GPT2Config, RecurrentGemmaConfig
from transformers.models.gpt2.modeling_gpt2 import GPT2Attention
from transformers.models.recurrent_gemma.modeling_recurrent_gemma import RecurrentGemmaAttention

from exlstm.mixers.attention import AttentionConfig

WIDTH, HEADS, T = 48, 4, 14


def seen(window):
    """The additive mask: what a step may look at."""
    distance = torch.arange(T)[:, None] - torch.arange(T)
    allowed = (distance >= 0) & (distance < (window or T))
    return torch.zeros(1, 1, T, T).masked_fill(~allowed, -torch.inf)


def shaken(layer):
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return layer.eval()


@pytest.mark.parametrize("kv_heads", [1, 4])
@pytest.mark.parametrize("bias", [False, True])
def test_recurrent_gemma(kv_heads, bias):
    """One head of keys, a window, half of a head rotated, a bias of the output in any case."""
    config = RecurrentGemmaConfig(
        hidden_size=WIDTH,
        num_attention_heads=HEADS,
        num_key_value_heads=kv_heads,
        attention_window_size=5,
        attention_bias=bias,
    )
    config._attn_implementation = "eager"
    theirs = shaken(RecurrentGemmaAttention(config, layer_idx=2))
    mixer = AttentionConfig(
        heads=HEADS, kv_heads=kv_heads, window=5, rope_share=0.5, head_width=12, bias=bias, out_bias=True
    ).build(WIDTH)
    names = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "out": "o_proj"}
    tensors = theirs.state_dict()
    mixer.load_state_dict(
        {name: tensors[f"{names[part]}.{kind}"] for name in mixer.state_dict() for part, kind in [name.split(".")]}
    )
    x = torch.randn(2, T, WIDTH)
    want, _ = theirs(x, torch.arange(T).expand(2, T), seen(5))
    torch.testing.assert_close(mixer(x)[0], want, rtol=1e-4, atol=1e-5)


def test_gpt2():
    """No rotary positions, biases everywhere."""
    config = GPT2Config(n_embd=WIDTH, n_head=HEADS)
    config._attn_implementation = "eager"
    theirs = shaken(GPT2Attention(config, layer_idx=0))
    mixer = AttentionConfig(heads=HEADS, rope_base=None, bias=True).build(WIDTH)
    weights, biases = theirs.c_attn.weight.t().chunk(3), theirs.c_attn.bias.chunk(3)
    tensors = {f"{name}.weight": w for name, w in zip("qkv", weights, strict=True)}
    tensors |= {f"{name}.bias": b for name, b in zip("qkv", biases, strict=True)}
    mixer.load_state_dict({**tensors, "out.weight": theirs.c_proj.weight.t(), "out.bias": theirs.c_proj.bias})
    x = torch.randn(2, T, WIDTH)
    want, _ = theirs(x, attention_mask=seen(None))
    torch.testing.assert_close(mixer(x)[0], want, rtol=1e-4, atol=1e-5)


def test_heads_wider_than_the_model():
    """12 heads' worth of channels in a width of 8; every weight matters."""
    mixer = AttentionConfig(heads=3, kv_heads=1, head_width=32, rope_share=0.25).build(8).double()
    assert [tuple(p.shape) for p in mixer.parameters()] == [(96, 8), (32, 8), (32, 8), (8, 96)]
    y, state = mixer(torch.randn(2, T, 8, dtype=torch.float64))
    y.square().sum().backward()
    assert all(p.grad.abs().max() > 0 for p in mixer.parameters())
    assert state.k_BSGK.shape == (2, T, 1, 32)
