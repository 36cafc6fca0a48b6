"""Recurrent nets with a matrix memory against their equations, step by step in float64, and as torch.nn.RNN."""

import pytest
import torch

from exlstm.mixers.matrix_rnn import MatrixRNNConfig
from exlstm.ops.matrix_rnn import matrix_rnn

WIDTH, H, V = 12, 3, 4


def by_equations(mixer, x_BTD):
    """Row by row of the batch and head by head, with outer products."""
    K, out = mixer.key_width, torch.zeros_like(x_BTD)
    for b, x_TD in enumerate(x_BTD):
        for head in range(H):
            S = torch.zeros(K, V, dtype=torch.float64)
            for t, x in enumerate(x_TD):
                q, k = ((layer.weight @ x)[head * K : (head + 1) * K] for layer in (mixer.q, mixer.k))
                v = (mixer.v.weight @ x)[head * V : (head + 1) * V]
                mixed = S if mixer.r_HUV is None else S @ mixer.r_HUV[head]
                Z = torch.tanh(mixed + torch.outer(k, v) / K**0.5)
                f = 0.0 if mixer.gate is None else torch.sigmoid(mixer.gate(x)[head])
                S = f * S + (1 - f) * Z
                o = q @ S
                units = slice(head * V, (head + 1) * V)
                out[b, t, units] = o / (o.square().mean() + 1e-5).sqrt() * mixer.norm.weight[units]
    return out @ mixer.out.weight.T


@pytest.mark.parametrize("key_width", [None, 5])
@pytest.mark.parametrize("mix", ["none", "value"])
@pytest.mark.parametrize("cell", ["elman", "gru"])
def test_equations(cell, mix, key_width):
    torch.manual_seed(0)
    mixer = MatrixRNNConfig(heads=H, cell=cell, mix=mix, key_width=key_width).build(WIDTH).double()
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
        x = torch.randn(2, 20, WIDTH, dtype=torch.float64)
        want = by_equations(mixer, x)
        torch.testing.assert_close(mixer(x)[0], want, rtol=1e-11, atol=1e-13)
        torch.testing.assert_close(mixer.float()(x.float())[0].double(), want, rtol=1e-3, atol=1e-4)


def test_with_one_key_it_is_the_elman_net():
    """K = 1, q = k = 1: then the matrix is a row, h = tanh(h R + v)."""
    torch.manual_seed(0)
    theirs = torch.nn.RNN(8, 8, batch_first=True, bias=False).double()
    w_VD, u_VK = (p.detach() for p in theirs.parameters())
    x = torch.randn(3, 20, 8, dtype=torch.float64)
    one, v = torch.ones(3, 20, 1, 1, dtype=torch.float64), (x @ w_VD.T)[:, :, None]
    o, state = matrix_rnn(one, one, v, None, u_VK.T[None].contiguous())
    want, last = theirs(x)
    torch.testing.assert_close(o[:, :, 0], want, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(state.h_BHKV[:, 0, 0], last[0], rtol=1e-12, atol=1e-14)


def test_count_and_initial_values():
    """4 d^2, d of the norm, and with both 4 (d / 4)^2 of R and 4 (d + 1) of the gate."""
    d = 64
    plain, full = MatrixRNNConfig(cell="elman", mix="none").build(d), MatrixRNNConfig().build(d)
    assert sum(p.numel() for p in plain.parameters()) == 4 * d**2 + d
    assert sum(p.numel() for p in full.parameters()) == 4 * d**2 + d + d**2 // 4 + 4 * (d + 1)
    for r_UV in full.r_HUV:
        torch.testing.assert_close(r_UV @ r_UV.T, 0.81 * torch.eye(d // 4), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(full.gate.bias, torch.tensor([0.0, 1.0, 2.0, 3.0]), check_dtype=True)
