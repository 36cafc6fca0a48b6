"""Mamba-2 against transformers' mixer, in plain torch and float32 from an empty state, and the published sizes."""

import pytest
import torch
from transformers import Mamba2Config as TheirConfig
from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer

from exlstm.mixers.mamba2 import Mamba2Config

WIDTH, HEADS, STATE = 64, 8, 24


def both(groups, heads=HEADS):
    """Their mixer and ours with the same weights, all of which matter."""
    config = TheirConfig(
        hidden_size=WIDTH, num_heads=heads, head_dim=2 * WIDTH // heads, state_size=STATE, n_groups=groups,
        expand=2, conv_kernel=4, chunk_size=16, use_bias=False, use_conv_bias=True, num_hidden_layers=1,
        layer_norm_epsilon=1e-5,
    )  # fmt: skip
    torch.manual_seed(0)
    theirs = Mamba2Mixer(config, layer_idx=0).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    ours = Mamba2Config(heads=heads, state=STATE, groups=groups).build(WIDTH)
    ours.load_state_dict(
        {"up.weight": theirs.in_proj.weight, "conv.weight_DW": theirs.conv1d.weight[:, 0],
         "conv.bias_D": theirs.conv1d.bias, "dt_bias_H": theirs.dt_bias, "log_a_H": theirs.A_log,
         "skip_H": theirs.D, "norm.weight": theirs.norm.weight, "down.weight": theirs.out_proj.weight}
    )  # fmt: skip
    return theirs, ours


@pytest.mark.parametrize("groups", [1, 2, 8])
@pytest.mark.parametrize("T", [1, 5, 64, 67])
def test_outputs(groups, T):
    theirs, ours = both(groups)
    x = torch.randn(2, T, WIDTH)
    with torch.no_grad():
        torch.testing.assert_close(ours(x)[0], theirs(x), rtol=1e-4, atol=1e-5)


def test_gradients():
    """Of the input and of every parameter, through one loss."""
    theirs, ours = both(2)
    x, weights = torch.randn(2, 40, WIDTH), torch.randn(2, 40, WIDTH)
    found = []
    for run, mixer in ((theirs, theirs), (lambda x: ours(x)[0], ours)):
        leaf = x.clone().requires_grad_()
        (run(leaf) * weights).sum().backward()
        found.append({"x": leaf.grad} | {name: p.grad for name, p in mixer.named_parameters()})
    want, got = found
    names = {
        "x": "x", "in_proj.weight": "up.weight", "conv1d.weight": "conv.weight_DW", "conv1d.bias": "conv.bias_D",
        "dt_bias": "dt_bias_H", "A_log": "log_a_H", "D": "skip_H", "norm.weight": "norm.weight",
        "out_proj.weight": "down.weight",
    }  # fmt: skip
    for name, exact in want.items():
        size = exact.abs().max().item()
        torch.testing.assert_close(got[names[name]].view_as(exact), exact, rtol=1e-3, atol=1e-4 * size)


def test_counts():
    """Of one layer, and of its state in floats, at width 1024."""
    with torch.device("meta"):
        mixer = Mamba2Config(heads=32).build(1024)
    assert sum(p.numel() for p in mixer.parameters()) == 6_600_032
    assert mixer.state_bytes() == 4 * (262 * 1024 + 768)


def test_initial_values():
    """Steps dt from 1e-3 to 1e-1, decays per unit of dt from 1 to 16, small outputs in deep models."""
    torch.manual_seed(0)
    mixer = Mamba2Config(heads=64).build(64, depth=4)
    dt, a = torch.nn.functional.softplus(mixer.dt_bias_H), mixer.log_a_H.exp()
    assert 1e-3 * 0.999 <= dt.min() < 3e-3 < 3e-2 < dt.max() <= 0.1 * 1.001
    assert 1 <= a.min() < 3 < 14 < a.max() <= 16
    assert mixer.up.weight.abs().max() <= 64**-0.5
    assert mixer.down.weight.abs().max() <= (4 * 128) ** -0.5
    assert (mixer.skip_H == 1).all()
    assert (mixer.norm.weight == 1).all()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (Mamba2Config(heads=5), "heads is 5; it must divide the inner width 128"),
        (Mamba2Config(groups=3), "groups is 3; it must divide heads, which is 4"),
    ],
)
def test_errors(config, message):
    with pytest.raises(ValueError, match=message):
        config.build(64)
