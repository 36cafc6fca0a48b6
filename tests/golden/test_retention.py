"""Retention against a loop in float64 that is written from the paper's equations, and its counts."""

import pytest
import torch

from exlstm.mixers.retention import RetentionConfig

WIDTH, HEADS = 48, 4


def rotated(x_TK, base=10_000.0):
    """Pairs (f, f + K/2) as complex numbers, turned by position * base^(-2f/K)."""
    T, K = x_TK.shape
    pairs = torch.complex(x_TK[:, : K // 2], x_TK[:, K // 2 :])
    frequency = base ** (-2 * torch.arange(K // 2, dtype=torch.float64) / K)
    angle = torch.arange(T, dtype=torch.float64)[:, None] * frequency
    turned = pairs * torch.polar(torch.ones_like(angle), angle)
    return torch.cat([turned.real, turned.imag], dim=1)


def definition(x_TD, p, values):
    """One row, one head after another, scores of all pairs of steps."""
    T, K, V = len(x_TD), WIDTH // HEADS, values // HEADS
    q, k, v, g = (x_TD @ p[f"{name}.weight"].T for name in "qkvg")
    heads = []
    for h in range(HEADS):
        gamma = 1 - 2.0 ** (-5 - h)
        q_TK, k_TK = (rotated(x[:, h * K : (h + 1) * K]) for x in (q, k))
        distance = torch.arange(T)[:, None] - torch.arange(T)
        decay = torch.where(distance >= 0, gamma ** distance.clamp(min=0).double(), 0.0)
        o_TV = (q_TK @ k_TK.T / K**0.5 * decay) @ v[:, h * V : (h + 1) * V]
        heads.append(o_TV / (o_TV.square().mean(1, keepdim=True) + 1e-6).sqrt())
    gated = torch.cat(heads, dim=1) * g * torch.sigmoid(g)
    return gated @ p["out.weight"].T


@pytest.mark.parametrize("T", [1, 5, 64, 67])
@pytest.mark.parametrize("factor", [1.0, 2.0])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_outputs(T, factor, dtype):
    mixer = RetentionConfig(value_factor=factor).build(WIDTH).double()
    exact = {name: 5 * x.detach() for name, x in mixer.named_parameters()}
    mixer.load_state_dict(exact)
    x = torch.randn(2, T, WIDTH, dtype=torch.float64)
    want = torch.stack([definition(row, exact, int(factor * WIDTH)) for row in x])
    room = 1e-9 if dtype is torch.float64 else 1e-4
    got = mixer.to(dtype)(x.to(dtype))[0].double()
    torch.testing.assert_close(got, want, rtol=room, atol=room * float(want.abs().max()))


def test_the_decays_survive_bfloat16():
    """1 - 2^-9 and beyond are 1 in eight bits."""
    mixer = RetentionConfig(heads=8).build(64).bfloat16()
    found = mixer.log_decays.like(mixer.q.weight).exp()
    torch.testing.assert_close(1 - found.double(), 2.0 ** -torch.arange(5, 13).double(), rtol=1e-4, atol=0)


def test_counts():
    with torch.device("meta"):
        mixer = RetentionConfig().build(1024)
    assert sum(p.numel() for p in mixer.parameters()) == 8 * 1024**2
    assert mixer.state_bytes() == 2 * 2**20 + 8
    with torch.device("meta"):
        assert sum(p.numel() for p in RetentionConfig(value_factor=1.0).build(1024).parameters()) == 5 * 1024**2


def test_initial_values():
    """Xavier's with the gains of the paper's code."""
    torch.manual_seed(0)
    mixer = RetentionConfig().build(256)
    for name, gain, sizes in (("q", 2**-2.5, 512), ("v", 2**-2.5, 768), ("g", 2**-2.5, 768), ("out", 0.5, 768)):
        weight, bound = getattr(mixer, name).weight, gain * (6 / sizes) ** 0.5
        assert 0.99 * bound < weight.abs().max() <= bound


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (RetentionConfig(heads=5), "heads is 5; it must cut the width 48 into heads of even width"),
        (RetentionConfig(heads=16), "heads is 16; it must cut the width 48 into heads of even width"),
        (RetentionConfig(value_factor=0.7), "heads is 4; it must divide the width 33 of the values"),
    ],
)
def test_errors(config, message):
    with pytest.raises(ValueError, match=message):
        config.build(WIDTH)
