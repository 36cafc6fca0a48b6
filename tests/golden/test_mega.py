"""Mega against a plain loop over time, written from the paper's equations, and against its published size."""

import math

import numpy as np
import pytest
import torch

from exlstm.mixers.mega import MegaConfig

WIDTH, T = 8, 37


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def silu(x):
    return x * sigmoid(x)


def laplace(x):
    mean, deviation = math.sqrt(0.5), math.sqrt(1 / (4 * math.pi))
    return 0.5 * (1 + math.erf((x - mean) / (deviation * math.sqrt(2))))


def by_the_paper(p, x, config, chunk):
    """One sequence, with the normed input in the place of the residual."""
    (steps, D), K, V = x.shape, config.key_width, p["v.bias"].size
    alpha, delta = sigmoid(p["alpha_DZ"]), sigmoid(p["delta_DZ"])
    h, keys, values, out = np.zeros((D, config.states)), [], [], []
    for t in range(steps):
        h = alpha * (p["beta_DZ"] * x[t][:, None]) + (1 - alpha * delta) * h
        averaged = silu((p["gamma_DZ"] * h).sum(1) / math.sqrt(config.states) + p["omega_D"] * x[t])
        base = p["mx.weight"] @ averaged + p["mx.bias"]
        update, shared = sigmoid(base[:D]), silu(base[D : D + K])
        reset, candidate = silu(base[D + K : D + K + V]), base[D + K + V :]
        if t % chunk == 0:
            keys, values = [], []
        query = p["scale_q_K"] * shared + p["shift_q_K"]
        # softmax is the same with any shift, and the mixer then has none
        keys.append(p["scale_k_K"] * shared + p.get("shift_k_K", 0.7))
        values.append(silu(p["v.weight"] @ x[t] + p["v.bias"]))
        count = len(keys)
        biases = [p["distance_R"][min(count - 1 - s, p["distance_R"].size - 1)] for s in range(count)]
        if config.function == "softmax":
            scores = np.array([query @ key / math.sqrt(K) + bias for key, bias in zip(keys, biases, strict=True)])
            weights = np.exp(scores) / np.exp(scores).sum()
        else:
            weights = [laplace(query @ key / count + bias) for key, bias in zip(keys, biases, strict=True)]
        attended = sum(weight * value for weight, value in zip(weights, values, strict=True))
        hidden = silu(candidate + p["h.weight"] @ (attended * reset) + p["h.bias"])
        out.append(update * hidden + (1 - update) * x[t] - x[t])
    return np.array(out)


@pytest.mark.parametrize("function", ["softmax", "laplace"])
@pytest.mark.parametrize(("chunk", "distances"), [(5, None), (64, 9), (None, 20)])
def test_outputs(function, chunk, distances):
    torch.manual_seed(0)
    config = MegaConfig(states=3, key_width=6, chunk=chunk, distances=distances, function=function)
    mixer = config.build(WIDTH).double()
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    p = {name: x.detach().numpy() for name, x in mixer.named_parameters()}
    x = np.random.default_rng(0).normal(size=(2, T, WIDTH))
    want = torch.from_numpy(np.stack([by_the_paper(p, row, config, chunk or T) for row in x]))
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 2e-4)):
        got, _ = mixer.to(dtype)(torch.from_numpy(x).to(dtype))
        torch.testing.assert_close(got.double(), want, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("d", "chunk", "function", "left_out"), [(32, 128, "laplace", 0), (512, 2048, "softmax", 64)])
def test_counts(d, chunk, function, left_out):
    """A bias for each distance within a chunk; the published table has others, of steps that are not seen."""
    Z, K, V = 16, 64, 2 * d
    with torch.device("meta"):
        mixer = MegaConfig(chunk=chunk, function=function).build(d)
    averages, attention = 4 * d * Z + d, 4 * K - left_out + chunk
    linears = (d * V + V) + (d * (2 * d + K + V) + 2 * d + K + V) + (V * d + d)
    assert sum(p.numel() for p in mixer.parameters()) == averages + attention + linears


def test_initial_values():
    """Factors around 3/4, and averages whose inputs have alternating signs."""
    torch.manual_seed(0)
    p = dict(MegaConfig(function="laplace").build(256).named_parameters())
    signs = torch.tensor([1.0, -1.0]).repeat(8)
    assert abs((p["beta_DZ"] * signs).mean() - 1) < 0.002
    assert abs(p["beta_DZ"].mul(signs).std() - 0.02) < 0.002
    for name, deviation in {
        "alpha_DZ": 0.2,
        "delta_DZ": 0.2,
        "gamma_DZ": 1,
        "mx.weight": 0.02,
        "h.weight": 0.02,
    }.items():
        assert abs(p[name].std() / deviation - 1) < 0.05, name
    for name in ("v.bias", "mx.bias", "h.bias", "shift_q_K", "shift_k_K"):
        assert not p[name].any()


def test_state():
    """The same at any length with chunks; without them a key and a value for every step."""
    assert {MegaConfig().build(64).state_bytes(n) for n in (0, 1, 5000)} == {4 * (64 * 16 + 127 * (64 + 128)) + 8}
    whole = MegaConfig(chunk=None, distances=5).build(64)
    assert whole.state_bytes(1000) == 4 * (64 * 16 + 1000 * (64 + 128)) + 8


def test_errors():
    with pytest.raises(ValueError, match="chunk and distances are None; without chunks give distances"):
        MegaConfig(chunk=None)
    with pytest.raises(ValueError, match="function is 'relu2'; it must be one of softmax, laplace"):
        MegaConfig(function="relu2")
