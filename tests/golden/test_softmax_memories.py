"""ABC, gated slot attention and causal Linformer against their equations in float64, head by head and step by step.

Slots are held as the papers have them, one key and one value each, and weights of ABC as shares of all steps so far.
"""

from functools import partial

import pytest
import torch
from perturbation import perturbed

from exlstm.mixers.abc import ABCConfig
from exlstm.mixers.gsa import GSAConfig
from exlstm.mixers.linformer import LinformerConfig


def rotated(x_K, t, base):
    """Pairs (f, f + K/2) as complex numbers, turned by t base^(-2f/K)."""
    half = len(x_K) // 2
    angle = t * base ** (-torch.arange(half, dtype=torch.float64) / half)
    turned = torch.complex(x_K[:half], x_K[half:]) * torch.polar(torch.ones_like(angle), angle)
    return torch.cat([turned.real, turned.imag])


def heads_of(x, heads):
    """[T, E] -> for every head [T, E / heads]"""
    return x.unflatten(1, (heads, -1)).unbind(1)


def silu(x):
    return x / (1 + torch.exp(-x))


def rms(x, eps=1e-5):
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt()


def read(keys_QK, values_QV, q_K):
    """What softmax over the slots gives."""
    weight_Q = torch.exp(keys_QK @ q_K)
    return (weight_Q / weight_Q.sum()) @ values_QV


def abc(p, x, heads, slots, base=10_000.0):
    """Every slot is an average over all steps: its own softmax over time."""
    q, k, v, s = (heads_of(x @ p[f"{name}.weight"].T, heads) for name in "qkvs")
    out = []
    for h in range(heads):
        scale, read_h = k[h].shape[1] ** -0.5, []
        k_TK = torch.stack([rotated(k_K, t, base) for t, k_K in enumerate(k[h])])
        for t in range(len(x)):
            share_TQ = s[h][: t + 1].clamp(-32, 32).softmax(0)
            keys, values = share_TQ.T @ k_TK[: t + 1], share_TQ.T @ v[h][: t + 1]
            read_h.append(read(keys, values, scale * rotated(q[h][t], t, base)))
        out.append(rms(torch.stack(read_h)) * p["gain_V"])
    return (torch.cat(out, dim=1) * silu(x @ p["r.weight"].T)) @ p["out.weight"].T


def gsa(p, x, heads, slots):
    """Every slot is a moving average."""
    q, k, v = (heads_of(silu(x @ p[f"{name}.weight"].T), heads) for name in "qkv")
    keep = heads_of(torch.sigmoid(x @ p["f.weight"].T) ** (1 / 8), heads)
    out = []
    for h in range(heads):
        read_h = []
        keys, values = (torch.zeros(slots, q[h].shape[1], dtype=x.dtype) for _ in range(2))
        for q_t, k_t, v_t, a in zip(q[h], k[h], v[h], keep[h], strict=True):
            keys = a[:, None] * keys + (1 - a)[:, None] * k_t
            values = a[:, None] * values + (1 - a)[:, None] * v_t
            read_h.append(read(keys, values, q_t))
        out.append(torch.stack(read_h))
    return (rms(silu(torch.cat(out, dim=1))) * p["norm.weight"]) @ p["out.weight"].T


def linformer(p, x, heads, slots):
    """Projections over time of the steps so far."""
    q, k, v = (heads_of(x @ p[f"{name}.weight"].T, heads) for name in "qkv")
    out = []
    for h in range(heads):
        scale = k[h].shape[1] ** -0.5
        out.append(torch.stack([
            read(p["e_NQ"][: t + 1].T @ k[h][: t + 1], p["f_NQ"][: t + 1].T @ v[h][: t + 1], scale * q[h][t])
            for t in range(len(x))
        ]))  # fmt: skip
    return torch.cat(out, dim=1) @ p["out.weight"].T


CASES = {
    "abc": (ABCConfig, abc),
    "gsa": (GSAConfig, gsa),
    "linformer": (partial(LinformerConfig, length=67), linformer),
}


@pytest.mark.parametrize("T", [1, 5, 67])
@pytest.mark.parametrize(("heads", "slots"), [(4, 6), (2, 1)])
@pytest.mark.parametrize("name", CASES)
def test_equations(name, heads, slots, T):
    config, equations = CASES[name]
    mixer = perturbed(config(heads=heads, slots=slots).build(32))
    x = torch.randn(2, T, 32, dtype=torch.float64)
    parameters = {key: p.detach() for key, p in mixer.named_parameters()}
    want = torch.stack([equations(parameters, row, heads, slots) for row in x])
    torch.testing.assert_close(mixer(x)[0], want, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(mixer.float()(x.float())[0].double(), want, rtol=1e-3, atol=1e-4)


def test_counts():
    """Parameters and states at width 1024 with 4 heads of 64 slots."""
    d, slots = 1024, 4 * 64
    with torch.device("meta"):
        mixers = {name: config().build(d) for name, config in {"abc": ABCConfig, "gsa": GSAConfig}.items()}
        mixers["linformer"] = LinformerConfig(length=100).build(d)
    counts = {name: sum(p.numel() for p in mixer.parameters()) for name, mixer in mixers.items()}
    assert counts == {
        "abc": 4 * d**2 + d * slots + 256,
        "gsa": 4 * d**2 + d * slots + d,
        "linformer": 4 * d**2 + 2 * 100 * 64,
    }
    assert mixers["abc"].state_bytes() == 4 * 98_560 + 8
    assert mixers["gsa"].state_bytes() == 4 * 2 * 64 * d
    assert mixers["linformer"].state_bytes() == 4 * 2 * 64 * d + 8
    assert mixers["abc"].cell_flops("decode", 1) == 4 * (6 * 64 * (128 + 256) + 3 * 64)


def test_initial_values():
    for config, names in ((ABCConfig, "qkvrs"), (GSAConfig, "qkvf")):
        p = dict(config().build(256).named_parameters())
        for name in (*names, "out"):
            assert abs(p[f"{name}.weight"].std() / 0.02 - 1) < 0.1
    p = dict(LinformerConfig(slots=16).build(64).named_parameters())
    for name in ("e_NQ", "f_NQ"):
        assert 0.24 < p[name].abs().max() <= 0.25


def test_weights_beyond_the_limit():
    """A weight of e^32 outshines all that came before, and float32 holds it."""
    mixer = ABCConfig(slots=2).build(32)
    with torch.no_grad():
        mixer.s.weight.zero_()
        mixer.s.weight[:, 0] = 1.0
    x = torch.randn(1, 3, 32)
    for size in (1e3, -1e3):
        x[0, 1, 0] = size
        y, state = mixer(x)
        y.sum().backward()
        assert y.isfinite().all()
        assert all(p.grad.isfinite().all() for p in mixer.parameters())
        assert state.cell.den_BHQ.min() > 0


def test_the_end_of_a_linformer():
    """A step beyond its length is an error, wherever sequences are cut; resets and padding do not count."""
    mixer, x = LinformerConfig(length=6).build(32), torch.randn(2, 7, 32)
    message = "a row has 7 steps since its beginning, and write vectors end at length=6; cut"
    with pytest.raises(ValueError, match=message):
        mixer(x)
    _, state = mixer(x[:, :6])
    with pytest.raises(ValueError, match=message), torch.no_grad():
        mixer(x[:, 6:], state)
    reset = torch.zeros(2, 7, dtype=torch.bool)
    reset[0, 3] = True
    with pytest.raises(ValueError, match=message):
        mixer(x, reset_BT=reset)
    mixer(x, reset_BT=reset, lengths_B=torch.tensor([7, 6]))
    mixer(x[:, 6:], state, reset_BT=torch.ones(2, 1, dtype=torch.bool))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (ABCConfig(heads=16), "heads is 16; it must cut the width 16 of the keys into even widths"),
        (ABCConfig(heads=3, key_factor=0.75), "heads is 3; it must divide the width 32 of the values"),
        (GSAConfig(heads=3), "heads is 3; it must divide the width 32"),
        (LinformerConfig(heads=3), "heads is 3; it must divide the width 32"),
    ],
)
def test_errors(config, message):
    with pytest.raises(ValueError, match=message):
        config.build(32)
