"""The multiplicative LSTM against its equations, step by step in float64, and as an LSTM where it is one."""

import pytest
import torch

from exlstm.mixers.mult_lstm import MultLSTMConfig

WIDTH = 12


def shifted(mixer):
    """Every parameter away from zeros and ones."""
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return mixer


def by_equations(mixer, x_BTD):
    """m = (W_p x) * (M h), then an LSTM's gates from x and m; heads one after another."""
    H, V = mixer.m_HVK.shape[:2]
    h, c, out = torch.zeros(len(x_BTD), WIDTH).double(), torch.zeros(len(x_BTD), WIDTH).double(), []
    M = torch.block_diag(*mixer.m_HVK)
    R = [torch.block_diag(*blocks) for blocks in mixer.r_GHVK]
    for x in x_BTD.unbind(1):
        m = (x @ mixer.p.weight.T) * (h @ M.T)
        i, f, z, o = (
            x @ mixer.x.weight[n * H * V : (n + 1) * H * V].T + m @ R[n].T + mixer.x.bias[n * H * V : (n + 1) * H * V]
            for n in range(4)
        )
        c = c / (1 + torch.exp(-f)) + torch.tanh(z) / (1 + torch.exp(-i))
        h = torch.tanh(c) / (1 + torch.exp(-o))
        out.append(h)
    return torch.stack(out, dim=1), h, c


@pytest.mark.parametrize("heads", [1, 3])
def test_equations(heads):
    torch.manual_seed(0)
    mixer = shifted(MultLSTMConfig(heads=heads).build(WIDTH)).double()
    x = torch.randn(3, 20, WIDTH, dtype=torch.float64)
    want, h, c = by_equations(mixer, x)
    y, state = mixer(x)
    torch.testing.assert_close(y, want, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(state.h_BHV.flatten(1), h, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(state.c_BHV.flatten(1), c, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(mixer.float()(x.float())[0].double(), want, rtol=1e-5, atol=1e-5)


def test_with_a_constant_factor_it_is_an_lstm():
    """An input channel held at 1, which alone makes the factors, and M = 1: then m = h."""
    torch.manual_seed(0)
    mixer, theirs = MultLSTMConfig().build(WIDTH).double(), torch.nn.LSTM(WIDTH, WIDTH, batch_first=True).double()
    with torch.no_grad():
        mixer.p.weight.zero_()[:, 0] = 1
        mixer.m_HVK[0] = torch.eye(WIDTH)
        values = mixer.x.weight, mixer.r_GHVK.flatten(0, 2), mixer.x.bias, torch.zeros(4 * WIDTH)
        for parameter, value in zip(theirs.parameters(), values, strict=True):
            parameter.copy_(value)
    x = torch.randn(3, 20, WIDTH, dtype=torch.float64)
    x[..., 0] = 1
    torch.testing.assert_close(mixer(x)[0], theirs(x)[0], rtol=1e-12, atol=1e-14)


def test_count_and_initial_values():
    """10 d^2 + 4 d. M keeps lengths and the factors are of order 1, so that m is as large as h."""
    d = 64
    mixer = MultLSTMConfig().build(d)
    assert sum(p.numel() for p in mixer.parameters()) == 10 * d**2 + 4 * d
    for matrix in (mixer.m_HVK[0], *mixer.r_GHVK[:, 0]):
        torch.testing.assert_close(matrix @ matrix.T, torch.eye(d), rtol=1e-4, atol=1e-5)
    assert 0.9 < mixer.p.weight.std() * d**0.5 < 1.1
    assert torch.equal(mixer.x.bias, torch.tensor([0.0, 1.0, 0.0, 0.0]).repeat_interleave(d))
