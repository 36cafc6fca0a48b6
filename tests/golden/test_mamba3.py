"""Mamba-3 against a loop in float64 over the published recurrence, which writes each key twice; and its counts."""

import pytest
import torch

from exlstm.mixers.mamba3 import Mamba3Config

WIDTH, HEADS, STATE, INNER = 32, 4, 12, 64


def normalized(x, weight):
    return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight


def turned(x_K, angle_J):
    """Neighbors in the first half as complex numbers."""
    J = len(angle_J)
    pairs = torch.view_as_complex(x_K[: 2 * J].reshape(J, 2).contiguous())
    return torch.cat([torch.view_as_real(pairs * torch.polar(torch.ones(J).double(), angle_J)).flatten(), x_K[2 * J :]])


def definition(x_TD, p, groups):
    """One row, one head after another, one step after another."""
    T, V, J = len(x_TD), INNER // HEADS, STATE // 4
    parts = [INNER, INNER, groups * STATE, groups * STATE, HEADS, HEADS, HEADS, J]
    z, u, b, c, dd, a, trap, ang = (x_TD @ p["up.weight"].T).split(parts, dim=1)
    dt = torch.log1p(torch.exp(dd + p["dt_bias_H"]))
    rate = torch.where(a >= 0, 1 + a, 1 / (1 - a)).clamp(min=1e-4)
    lam = torch.sigmoid(trap)
    heads = []
    for h in range(HEADS):
        group, inside = h * groups // HEADS, slice(h * V, (h + 1) * V)
        keys, queries = (x.view(T, groups, STATE)[:, group] for x in (b, c))
        keys = normalized(keys, p["b_norm.weight"]) + p["b_bias_HK"][h]
        queries = normalized(queries, p["c_norm.weight"]) + p["c_bias_HK"][h]
        memory, angle = torch.zeros(STATE, V).double(), torch.zeros(J).double()
        k_before, u_before, outputs = torch.zeros(STATE).double(), torch.zeros(V).double(), []
        for t in range(T):
            angle = angle + torch.tanh(ang[t]) * torch.pi * dt[t, h]
            k_K, q_K, u_V = turned(keys[t], angle), turned(queries[t], angle), u[t, inside]
            decay = torch.exp(-rate[t, h] * dt[t, h])
            memory = decay * memory + (1 - lam[t, h]) * dt[t, h] * decay * torch.outer(k_before, u_before)
            memory = memory + lam[t, h] * dt[t, h] * torch.outer(k_K, u_V)
            outputs.append(q_K @ memory + p["skip_H"][h] * u_V)
            k_before, u_before = k_K, u_V
        heads.append(torch.stack(outputs))
    return (torch.cat(heads, dim=1) * z * torch.sigmoid(z)) @ p["down.weight"].T


@pytest.mark.parametrize("T", [1, 5, 67])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_outputs(T, groups, dtype):
    mixer = Mamba3Config(state=STATE, groups=groups).build(WIDTH)
    exact = {name: x.detach().double() + 0.3 * torch.randn(x.shape).double() for name, x in mixer.named_parameters()}
    mixer = mixer.double()
    mixer.load_state_dict(exact)
    x = torch.randn(2, T, WIDTH, dtype=torch.float64)
    want = torch.stack([definition(row, exact, groups) for row in x])
    room = 1e-9 if dtype is torch.float64 else 1e-4
    got = mixer.to(dtype)(x.to(dtype))[0].double()
    torch.testing.assert_close(got, want, rtol=room, atol=room * float(want.abs().max()))


def test_counts():
    with torch.device("meta"):
        mixer = Mamba3Config(heads=32).build(1024)
    assert sum(p.numel() for p in mixer.parameters()) == 6_693_184
    assert mixer.state_bytes() == 4 * (32 * 32 + 2048 * 128 + 32 * 128 + 2048 + 32)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (Mamba3Config(heads=5), "heads is 5; it must divide the inner width 64"),
        (Mamba3Config(groups=3), "groups is 3; it must divide heads, which is 4"),
        (Mamba3Config(state=6), "state is 6; it must be a multiple of 4"),
    ],
)
def test_errors(config, message):
    with pytest.raises(ValueError, match=message):
        config.build(WIDTH)
