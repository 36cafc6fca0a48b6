"""The holders of parameters against their formulas."""

import pytest
import torch
from torch.nn.functional import gelu, linear, silu

from exlstm.nn.layers import (
    BlockLinear,
    CausalConv,
    GatedMLP,
    HeadNorm,
    WidthNorm,
    round_up,
    soft_cap,
)
from exlstm.nn.linear import Linear, wide_linear
from exlstm.ops.conv import ConvState, causal_conv
from exlstm.ops.norm import head_norm, layer_norm, rms_norm


def random(module):
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_()
    return module


def test_block_linear_is_a_block_diagonal_matrix():
    layer, x = random(BlockLinear(12, 4)).double(), torch.randn(2, 5, 12, dtype=torch.float64)
    torch.testing.assert_close(layer(x), x @ torch.block_diag(*layer.weight_HVK).mT, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("activation", "act"), [("gelu", gelu), ("silu", silu)])
def test_gated_mlp(activation, act):
    """The first half of `up` is the gate, and gelu is the exact one."""
    mlp, x = random(GatedMLP(6, 10, activation)).double(), torch.randn(2, 5, 6, dtype=torch.float64)
    gate, value = mlp.up.weight[:10], mlp.up.weight[10:]
    want = (act(x @ gate.mT) * (x @ value.mT)) @ mlp.down.weight.mT
    torch.testing.assert_close(mlp(x), want, rtol=1e-12, atol=1e-12)
    assert {name: tuple(p.shape) for name, p in mlp.named_parameters()} == {
        "up.weight": (20, 6),
        "down.weight": (6, 10),
    }


def test_width_norm():
    x = torch.randn(2, 3, 8)
    for kind, function in (("layer", layer_norm), ("rms", rms_norm)):
        norm = WidthNorm(8, kind, 1e-3)
        assert (norm.weight == 1).all()
        random(norm)
        assert torch.equal(norm(x), function(x, norm.weight, 1e-3))


def test_head_norm_merges_the_heads():
    norm, x = random(HeadNorm(2, 4, 1e-3)), torch.randn(2, 3, 2, 4)
    assert torch.equal(norm(x), head_norm(x, norm.weight.view(2, 4), 1e-3).flatten(2))


def test_causal_conv_runs_in_the_dtype_of_its_input():
    conv, x = random(CausalConv(3, 4)), torch.randn(2, 5, 3).bfloat16()
    y, state = conv(x, ConvState(torch.zeros(2, 3, 3)), reset_BT=None, lengths_B=None)
    want, _ = causal_conv(x, conv.weight_DW.bfloat16(), conv.bias_D.bfloat16(), ConvState(torch.zeros(2, 3, 3)))
    assert y.dtype == torch.bfloat16
    assert state.past_BSD.dtype == torch.float32
    assert torch.equal(y, want)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("weights", "inputs", "result"),
    [
        (torch.float32, torch.float32, torch.float32),
        (torch.bfloat16, torch.bfloat16, torch.float32),
        (torch.float32, torch.bfloat16, torch.float32),
        (torch.float64, torch.float32, torch.float64),
    ],
)
def test_wide_linear(weights, inputs, result, bias):
    """Gates are computed in float32 or wider, also under autocast."""
    layer, x = random(Linear(64, 3, bias=bias)).to(weights), torch.randn(2, 64).to(inputs)
    want = linear(x.to(result), layer.weight.to(result), layer.bias.to(result) if bias else None)
    assert torch.equal(wide_linear(layer, x), want)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(wide_linear(layer, x), want)
    assert want.dtype == result


def test_soft_cap():
    x = torch.tensor([-1e6, -3.0, 0.0, 0.1, 1e6], dtype=torch.float64)
    torch.testing.assert_close(soft_cap(x, 15.0), 15 * torch.tanh(x / 15), rtol=1e-12, atol=0)
    assert soft_cap(x, 15.0).abs().max() <= 15
    assert soft_cap(x, None) is x


@pytest.mark.parametrize(
    ("x", "multiple", "want"),
    [
        (64, 64, 64), (64.1, 64, 128), (1.3 * 64, 64, 128), (1.3 * 768, 64, 1024), (2.667 * 768, 64, 2112),
        (2.667 * 4096, 64, 10944), (0.5, 8, 8),
    ],
)  # fmt: skip
def test_round_up(x, multiple, want):
    """Widths of MLPs as they were trained: never rounded down (2.667 * 768 = 2048.3 gives 2112)."""
    got = round_up(x, multiple)
    assert got == want
    assert type(got) is int
