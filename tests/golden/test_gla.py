"""GLA against its equations in float64, head by head and step by step."""

import pytest
import torch
from perturbation import perturbed

from exlstm.mixers.gla import GLAConfig


def by_equations(p, x, heads, temperature=16.0, eps=1e-5):
    """One row [T, D]: every head with its own S."""
    sigmoid, out = torch.sigmoid, []
    K, V = p["q.weight"].shape[0] // heads, p["v.weight"].shape[0] // heads
    memories = [torch.zeros(K, V, dtype=x.dtype) for _ in range(heads)]
    for x_t in x:
        q, k, v, r = (p[f"{name}.weight"] @ x_t for name in "qkvr")
        alpha = sigmoid(p["g2.weight"] @ (p["g1.weight"] @ x_t) + p["g2.bias"]) ** (1 / temperature)
        read = []
        for h in range(heads):
            keys, values = slice(h * K, (h + 1) * K), slice(h * V, (h + 1) * V)
            memories[h] = torch.diag(alpha[keys]) @ memories[h] + torch.outer(k[keys], v[values])
            o = memories[h].T @ q[keys] / K**0.5
            read.append(o / (o.square().mean() + eps).sqrt() * p["gain_V"])
        out.append(p["out.weight"] @ (torch.cat(read) * r * sigmoid(r)))
    return torch.stack(out)


@pytest.mark.parametrize("T", [1, 5, 67])
@pytest.mark.parametrize(("heads", "key_factor"), [(4, 0.5), (2, 1.0)])
def test_equations(T, heads, key_factor):
    mixer = perturbed(GLAConfig(heads=heads, key_factor=key_factor).build(32))
    x = torch.randn(2, T, 32, dtype=torch.float64)
    parameters = {name: p.detach() for name, p in mixer.named_parameters()}
    want = torch.stack([by_equations(parameters, row, heads) for row in x])
    torch.testing.assert_close(mixer(x)[0], want, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(mixer.float()(x.float())[0].double(), want, rtol=1e-3, atol=1e-4)


def test_the_paper_s_comparison_has_so_many_parameters():
    """24 layers of width 1024, SwiGLU MLPs of 2816, 50304 classes, no tying: the 412M of Table 1 in the xLSTM paper."""
    with torch.device("meta"):
        mixer = GLAConfig().build(1024)
    count = sum(p.numel() for p in mixer.parameters())
    assert count == 4 * 1024**2 + 24 * 1024 + 512 + 256
    assert 24 * (count + 2 * 1024 + 3 * 1024 * 2816) + 2 * 50304 * 1024 + 1024 == 411_962_368


def test_initial_values():
    p = dict(GLAConfig().build(256).named_parameters())
    for name in ("q", "k", "v", "r", "g1", "g2", "out"):
        assert abs(p[f"{name}.weight"].std() / 0.02 - 1) < 0.1
    assert not p["g2.bias"].any()
    assert (p["gain_V"] == 1).all()


def test_heads_that_do_not_divide():
    with pytest.raises(ValueError, match="heads is 3; it must divide the width 16 of the keys"):
        GLAConfig(heads=3).build(32)
