"""The holders of parameters against their formulas."""

import math

import pytest
import torch
from torch.nn.functional import elu, gelu, linear, silu

from exlstm.nn.layers import (
    ACTIVATIONS,
    MLP,
    BlockLinear,
    CausalConv,
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
    assert layer.bias_D is None
    torch.testing.assert_close(layer(x), x @ torch.block_diag(*layer.weight_HVK).mT, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("blocks", [3, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_block_linear_adds_its_bias(blocks, dtype):
    """In the dtype of its result, also under autocast; blocks of 4 in float32 have a kernel."""
    layer, x = random(BlockLinear(12, blocks, bias=True)).to(dtype), torch.randn(2, 5, 12).to(dtype)
    exact = x.double() @ torch.block_diag(*layer.weight_HVK.double()).mT + layer.bias_D.double()
    room = {torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 0.03}[dtype]
    torch.testing.assert_close(layer(x), exact.to(dtype), rtol=room, atol=room)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(x)
    assert y.dtype == (torch.float64 if dtype == torch.float64 else torch.bfloat16)
    torch.testing.assert_close(y.double(), exact, rtol=0.05, atol=0.05)


def selu(x):
    """Klambauer et al. 2017, with their constants."""
    return 1.0507009873554805 * elu(x, 1.6732632423543772)


FORMULAS = {
    "gelu": gelu,
    "gelu_tanh": lambda x: x / 2 * (1 + torch.tanh((2 / math.pi) ** 0.5 * (x + 0.044715 * x**3))),
    "silu": silu,
    "relu": lambda x: x.clamp(min=0),
    "relu2": lambda x: x.clamp(min=0) ** 2,
    "sigmoid": lambda x: 1 / (1 + torch.exp(-x)),
    "selu": selu,
}


def test_every_activation_has_a_formula():
    assert FORMULAS.keys() == ACTIVATIONS.keys()


@pytest.mark.parametrize(("activation", "act"), FORMULAS.items(), ids=FORMULAS)
def test_gated_mlp(activation, act):
    """The first half of `up` is the gate, and gelu is the exact one."""
    mlp, x = random(MLP(6, 10, activation)).double(), torch.randn(2, 5, 6, dtype=torch.float64)
    gate, value = mlp.up.weight[:10], mlp.up.weight[10:]
    want = (act(x @ gate.mT) * (x @ value.mT)) @ mlp.down.weight.mT
    torch.testing.assert_close(mlp(x), want, rtol=1e-12, atol=1e-12)
    assert {name: tuple(p.shape) for name, p in mlp.named_parameters()} == {
        "up.weight": (20, 6),
        "down.weight": (6, 10),
    }


def test_gated_mlp_with_biases():
    mlp, x = random(MLP(6, 10, "relu2", bias=True)).double(), torch.randn(2, 5, 6, dtype=torch.float64)
    inner = x @ mlp.up.weight.mT + mlp.up.bias
    want = (inner[..., :10].clamp(min=0) ** 2 * inner[..., 10:]) @ mlp.down.weight.mT + mlp.down.bias
    torch.testing.assert_close(mlp(x), want, rtol=1e-12, atol=1e-12)
    assert mlp.up.bias.shape == (20,)


def test_plain_mlp():
    """One matrix up, with no gate in it."""
    mlp, x = random(MLP(6, 10, "gelu", bias=True, gated=False)).double(), torch.randn(2, 5, 6, dtype=torch.float64)
    want = gelu(x @ mlp.up.weight.mT + mlp.up.bias) @ mlp.down.weight.mT + mlp.down.bias
    torch.testing.assert_close(mlp(x), want, rtol=1e-12, atol=1e-12)
    assert mlp.up.weight.shape == (10, 6)


def test_an_activation_that_is_not_known():
    with pytest.raises(ValueError, match=r"^activation is 'swish'; it must be one of gelu, .*, selu\.$"):
        MLP(6, 10, "swish")


def test_width_norm():
    x = torch.randn(2, 3, 8)
    for kind, function in (("layer", layer_norm), ("rms", rms_norm)):
        norm = WidthNorm(8, kind, 1e-3)
        assert (norm.weight == 1).all()
        random(norm)
        assert torch.equal(norm(x), function(x, norm.weight, 1e-3))
        assert [name for name, _ in norm.named_parameters()] == ["weight"]
        norm = WidthNorm(8, kind, 1e-3, bias=True)
        assert (norm.weight == 1).all()
        assert not norm.bias.any()
        random(norm)
        torch.testing.assert_close(norm(x), function(x, norm.weight, 1e-3) + norm.bias, rtol=1e-6, atol=1e-6)


def test_head_norm_with_a_bias():
    norm, x = HeadNorm(2, 4, 1e-3, bias=True), torch.randn(2, 3, 2, 4)
    assert not norm.bias.any()
    random(norm)
    want = head_norm(x, norm.weight.view(2, 4), 1e-3).flatten(2) + norm.bias
    torch.testing.assert_close(norm(x), want, rtol=1e-6, atol=1e-6)
    assert [name for name, _ in HeadNorm(2, 4, 1e-3).named_parameters()] == ["weight"]


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
