"""HGRN2 against its equations in float64, head by head and step by step."""

import pytest
import torch
from perturbation import perturbed

from exlstm.mixers.hgrn2 import HGRN2Config


def by_equations(p, x, heads, eps=1e-5):
    """One row [T, D]: every head with its own S."""
    sigmoid, out = torch.sigmoid, []
    K = x.shape[1] // heads
    gamma = sigmoid(p["bound_D"]) if "bound_D" in p else torch.zeros(x.shape[1], dtype=x.dtype)
    memories = [torch.zeros(K, K, dtype=x.dtype) for _ in range(heads)]
    for x_t in x:
        raw = p["q.weight"] @ x_t
        q, v = raw * sigmoid(raw), p["i.weight"] @ x_t
        lam = gamma + (1 - gamma) * sigmoid(p["f.weight"] @ x_t)
        read = []
        for h in range(heads):
            own = slice(h * K, (h + 1) * K)
            memories[h] = torch.diag(lam[own]) @ memories[h] + torch.outer(1 - lam[own], v[own])
            read.append(memories[h].T @ q[own] / K**0.5)
        o = torch.cat(read)
        out.append(p["out.weight"] @ (o / (o.square().mean() + eps).sqrt() * p["norm.weight"]))
    return torch.stack(out)


@pytest.mark.parametrize("T", [1, 5, 67])
@pytest.mark.parametrize(("heads", "index"), [(4, 0), (2, 1), (1, 2)])
def test_equations(T, heads, index):
    mixer = perturbed(HGRN2Config(heads=heads).build(32, depth=3, index=index))
    x = torch.randn(2, T, 32, dtype=torch.float64)
    parameters = {name: p.detach() for name, p in mixer.named_parameters()}
    want = torch.stack([by_equations(parameters, row, heads) for row in x])
    torch.testing.assert_close(mixer(x)[0], want, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(mixer.float()(x.float())[0].double(), want, rtol=1e-3, atol=1e-4)


def test_open_gates_stay_exact():
    """Where lambda is nearly 1 or 0, and where the bound is, neither its logarithm nor 1 - lambda loses its sense."""
    mixer = HGRN2Config().build(32, depth=3, index=1)
    for raw in (-200.0, -20.0, 0.0, 20.0, 200.0):
        for bound in (-30.0, 0.0, 30.0):
            mixer.bound_D.data.fill_(bound)
            log_lam, write = mixer.gates(torch.full((1, 1, 32), raw))
            f, gamma = torch.sigmoid(torch.tensor([raw, bound], dtype=torch.float64))
            lam = gamma + (1 - gamma) * f
            torch.testing.assert_close(log_lam.exp().double(), lam.expand(1, 1, 32), rtol=1e-5, atol=1e-30)
            exact = torch.sigmoid(torch.tensor([-raw, -bound], dtype=torch.float64)).prod()
            torch.testing.assert_close(write.double(), exact.expand(1, 1, 32), rtol=1e-5, atol=1e-30)


def test_the_paper_s_comparison_has_so_many_parameters():
    """24 layers of width 1024, SwiGLU MLPs of 2816, 50304 classes, no tying, without bounds: 411M in Table 1."""
    with torch.device("meta"):
        first, later = (HGRN2Config(heads=8).build(1024, depth=24, index=index) for index in (0, 1))
    count, more = (sum(p.numel() for p in mixer.parameters()) for mixer in (first, later))
    assert count == 4 * 1024**2 + 1024
    assert more == count + 1024
    assert 24 * (count + 2 * 1024 + 3 * 1024 * 2816) + 2 * 50304 * 1024 + 1024 == 411_378_688


def test_initial_values():
    p = dict(HGRN2Config().build(256, depth=4, index=1).named_parameters())
    for name in ("q", "f", "i", "out"):
        assert abs(p[f"{name}.weight"].std() / 0.02 - 1) < 0.1
    torch.testing.assert_close(p["bound_D"].sigmoid(), torch.full((256,), 0.25))
    assert (p["norm.weight"] == 1).all()


def test_heads_that_do_not_divide():
    with pytest.raises(ValueError, match="heads is 3; it must divide the width 32"):
        HGRN2Config(heads=3).build(32)
