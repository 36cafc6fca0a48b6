"""Hyena against a plain loop, written from the paper's equations, and against its published size."""

import math

import numpy as np
import pytest
import torch

from exlstm.mixers.hyena import HyenaConfig
from exlstm.models.block import BlockConfig, MLPConfig
from exlstm.models.lm import LM, LMConfig
from exlstm.ops.long_conv import LONG

WIDTH, T = 8, 67


def filter_taps(p, length, features):
    """One place after another."""
    bands, taps = (features - 1) // 2, []
    frequencies = np.linspace(1e-4, bands - 1, bands)
    rates = np.abs(np.linspace(math.log(0.01) / 1.5, math.log(0.01) / 0.3, WIDTH))
    for place in range(length):
        t = place / (length - 1)
        turns = np.exp(-1j * frequencies * 2 * math.pi * place / length)
        h = np.concatenate([[t], turns.real, turns.imag])
        for layer in ("first", "second", "third"):
            h = p[f"filter.{layer}.weight"] @ h + p[f"filter.{layer}.bias"]
            h = np.sin(p["filter.frequency_F"] * h)
        taps.append((p["filter.last.weight"] @ h) * np.exp(-t * rates))
    return np.array(taps)


@pytest.mark.parametrize("length", [20, 400])
@pytest.mark.parametrize("features", [3, 9])
def test_outputs(length, features):
    torch.manual_seed(0)
    mixer = HyenaConfig(filter_len=length, features=features, frequency=2.0).build(WIDTH).double()
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    p = {name: x.detach().numpy() for name, x in mixer.named_parameters()}
    x = np.random.default_rng(0).normal(size=(T, WIDTH))
    z = x @ p["up.weight"].T + p["up.bias"]
    short = np.zeros_like(z)
    for t in range(T):
        short[t] = p["conv.bias_D"]
        for lag in range(min(t + 1, 3)):
            short[t] += p["conv.weight_DW"][:, 2 - lag] * z[t - lag]
    x0, x1, v = np.split(short, 3, axis=1)
    w, taps = v * x1, filter_taps(p, length, features)
    y = np.zeros((T, WIDTH))
    for t in range(T):
        for lag in range(min(t + 1, length)):
            y[t] += taps[lag] * w[t - lag]
        y[t] += p["skip_D"] * w[t]
    want = torch.from_numpy((y * x0) @ p["out.weight"].T + p["out.bias"])
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 2e-4)):
        got, _ = mixer.to(dtype)(torch.from_numpy(x).to(dtype)[None])
        torch.testing.assert_close(got[0].double(), want, rtol=tolerance, atol=tolerance)


def test_long_sequences():
    """Beyond the window that products are for, in one call and in several."""
    torch.manual_seed(0)
    mixer, x = HyenaConfig(filter_len=700).build(WIDTH).double(), torch.randn(2, 812, WIDTH, dtype=torch.float64)
    y, _ = mixer(x)
    assert LONG < 601
    mixer.backend = "chunkwise"
    torch.testing.assert_close(mixer(x)[0], y, rtol=1e-9, atol=1e-11)
    mixer.backend = "auto"
    state, parts = None, []
    for part in x.split([600, 1, 211], dim=1):
        out, state = mixer(part, state)
        parts.append(out)
    torch.testing.assert_close(torch.cat(parts, 1), y, rtol=1e-9, atol=1e-11)


def test_kept_taps_follow_the_parameters():
    """In inference the filter is computed once, and again when a parameter changes in place, or is another."""
    mixer, x = HyenaConfig(filter_len=50).build(WIDTH), torch.randn(1, 9, WIDTH)

    def agrees():
        want = mixer(x)[0].detach()
        with torch.no_grad():
            torch.testing.assert_close(mixer(x)[0], want)
        return want

    first = agrees()
    with torch.no_grad():
        mixer.filter.last.weight.mul_(2)
    second = agrees()
    mixer.filter.frequency_F = torch.nn.Parameter(3 * mixer.filter.frequency_F.detach())
    third = agrees()
    mixer.double().float()
    agrees()
    assert not torch.allclose(first, second)
    assert not torch.allclose(second, third)


def test_counts():
    """The 153M model of the published configuration, without its features, which are constants here."""
    d = 864
    mixer = HyenaConfig()
    with torch.device("meta"):
        own = sum(p.numel() for p in mixer.build(d).parameters())
    assert own == 4 * d * d + 17 * d + (64 * 33 + 64 + 2 * (64 * 64 + 64) + 64 * d + 64)
    block = BlockConfig(mixer=mixer, mlp=MLPConfig(hidden=2 * d, gated=False, bias=True))
    config = LMConfig(
        vocab_size=50264, width=d, blocks=(block,) * 18, norm="layer", norm_bias=True, tie_embeddings=True
    )
    with torch.device("meta"):
        assert sum(p.numel() for p in LM(config).parameters()) == 152_483_904 == 153_700_416 - 18 * 33 * 2048


def test_state():
    mixer = HyenaConfig(filter_len=100).build(64)
    for length, cached in ((0, 0), (1, 1), (99, 99), (5000, 99)):
        assert mixer.state_bytes(length) == 4 * 64 * (6 + cached) + 8


def test_errors():
    for features in (2, 4, 1):
        with pytest.raises(ValueError, match=f"features is {features}; it must be an odd number of at least 3"):
            HyenaConfig(features=features)
