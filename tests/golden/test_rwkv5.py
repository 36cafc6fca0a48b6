"""RWKV-5's time mix against its equations in float64, head by head and step by step."""

import pytest
import torch
from perturbation import perturbed

from exlstm.mixers.rwkv5 import RWKV5Config


def by_equations(p, x, heads, eps=1e-5):
    """One row [T, D]: every head with its own S."""
    D, out, before = x.shape[1], [], torch.zeros_like(x[0])
    K = D // heads
    memories = [torch.zeros(K, K, dtype=x.dtype) for _ in range(heads)]
    for x_t in x:
        mixed = {j: p[f"mix_{j}_D"] * x_t + (1 - p[f"mix_{j}_D"]) * before for j in "rkvg"}
        r, k, v, g = (p[f"{j}.weight"] @ mixed[j] for j in "rkvg")
        read = []
        for h in range(heads):
            own = slice(h * K, (h + 1) * K)
            new = torch.outer(k[own], v[own])
            o = (torch.diag(p["bonus_HK"][h]) @ new + memories[h]).T @ r[own] / K**0.5
            memories[h] = torch.diag(torch.exp(-torch.exp(p["decay_HK"][h]))) @ memories[h] + new
            read.append((o - o.mean()) / (o.var(correction=0) + eps).sqrt())
        o = torch.cat(read) * p["norm.weight"] + p["norm.bias"]
        out.append(p["out.weight"] @ (o * g * torch.sigmoid(g)))
        before = x_t
    return torch.stack(out)


@pytest.mark.parametrize("T", [1, 5, 67])
@pytest.mark.parametrize("heads", [4, 1])
def test_equations(T, heads):
    mixer = perturbed(RWKV5Config(heads=heads).build(32, depth=6, index=2))
    x = torch.randn(2, T, 32, dtype=torch.float64)
    parameters = {name: p.detach() for name, p in mixer.named_parameters()}
    want = torch.stack([by_equations(parameters, row, heads) for row in x])
    torch.testing.assert_close(mixer(x)[0], want, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(mixer.float()(x.float())[0].double(), want, rtol=1e-3, atol=1e-4)


def test_the_paper_s_comparison_has_so_many_parameters():
    """24 layers of width 1024, 50304 classes, no tying, with channel mixes of 4096: the 456M of Table 1."""
    with torch.device("meta"):
        mixer = RWKV5Config(heads=16).build(1024, depth=48)
    count, channel_mix = sum(p.numel() for p in mixer.parameters()), 9 * 1024**2 + 2 * 1024
    assert count == 5 * 1024**2 + 8 * 1024
    # two layer norms in each layer, one after the embedding and one before the head
    assert 24 * (count + channel_mix + 4 * 1024) + 4 * 1024 + 2 * 50304 * 1024 == 455_692_288


def test_initial_values():
    """Of the third of four layers."""
    mixer = RWKV5Config().build(64, depth=8, index=4)
    p = {name: x.detach() for name, x in mixer.named_parameters()}
    for n in (0, 1, 17, 63):
        share, (head, channel) = n / 64, divmod(n, 16)
        want = {
            "mix_k_D": share**0.5, "mix_v_D": share**0.5 + 0.2, "mix_r_D": share**0.25, "mix_g_D": share**0.25,
        }  # fmt: skip
        for name, value in want.items():
            assert p[name][n] == pytest.approx(value, abs=1e-6), name
        decay = -6 + 5 * (n / 63) ** (0.7 + 1.3 * 2 / 3)
        assert p["decay_HK"][head, channel] == pytest.approx(decay, abs=1e-5)
        bonus = 2 / 3 * (1 - n / 63) + 0.1 * ((n + 1) % 3 - 1)
        assert p["bonus_HK"][head, channel] == pytest.approx(bonus, abs=1e-6)
    for name, gain in {"r": 1, "v": 1, "k": 0.1, "g": 0.1}.items():
        weight = p[f"{name}.weight"]
        torch.testing.assert_close(weight @ weight.T, gain**2 * torch.eye(64), rtol=1e-5, atol=1e-5)
    assert not p["out.weight"].any()
    torch.testing.assert_close(p["norm.weight"], torch.full((64,), 0.75**0.7))
    assert not p["norm.bias"].any()


def test_heads_that_do_not_divide():
    with pytest.raises(ValueError, match="heads is 3; it must divide the width 32"):
        RWKV5Config(heads=3).build(32)
