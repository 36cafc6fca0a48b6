"""The associative LSTM against its equations in torch's complex numbers, and as the recurrence that it can be."""

import pytest
import torch

from exlstm.mixers.assoc_lstm import AssocLSTMConfig

WIDTH, N = 12, 6


def bound(z):
    return z / z.abs().clamp(min=1)


def by_equations(mixer, x_BTD):
    """complex128, one copy after another."""
    R, order = mixer.r_GNPM.reshape(9 * N, WIDTH), mixer.order_CN.tolist()
    B = len(x_BTD)
    h, out = torch.zeros(B, N, dtype=torch.complex128), []
    copies = [torch.zeros(B, N, dtype=torch.complex128) for _ in order]
    for x in x_BTD.unbind(1):
        raw = mixer.x(x) + torch.cat([h.real, h.imag], dim=1) @ R.T
        i, f, o = (torch.sigmoid(raw[:, n * N : (n + 1) * N]) for n in range(3))
        u, a, b = (bound(torch.complex(*raw[:, n * N : (n + 2) * N].split(N, dim=1))) for n in (3, 5, 7))
        copies = [f * c + a[:, places] * i * u for c, places in zip(copies, order, strict=True)]
        mean = sum(b[:, places] * c for c, places in zip(copies, order, strict=True)) / len(order)
        h = o * bound(mean)
        out.append(torch.cat([h.real, h.imag], dim=1))
    return torch.stack(out, dim=1), copies


@pytest.mark.parametrize("copies", [1, 4])
def test_equations(copies):
    torch.manual_seed(0)
    mixer = AssocLSTMConfig(copies=copies).build(WIDTH).double()
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter *= 3  # so that both sides of a bound are met
    x = torch.randn(3, 20, WIDTH, dtype=torch.float64)
    want, last = by_equations(mixer, x)
    y, state = mixer(x)
    torch.testing.assert_close(y, want, rtol=1e-11, atol=1e-13)
    for c_BPN, c in zip(state.c_BCPN.unbind(1), last, strict=True):
        torch.testing.assert_close(torch.complex(c_BPN[:, 0], c_BPN[:, 1]), c, rtol=1e-11, atol=1e-13)
    torch.testing.assert_close(mixer.float()(x.float())[0].double(), want, rtol=1e-4, atol=1e-4)


def test_with_keys_of_one_it_is_a_gated_sum():
    """No R, and keys a = b = 1: c = f c + i u in every copy, whatever its order, and h = o bound(c)."""
    torch.manual_seed(0)
    mixer = AssocLSTMConfig(copies=3).build(WIDTH).double()
    with torch.no_grad():
        mixer.r_GNPM.zero_()
        mixer.x.weight[5 * N :] = 0
        mixer.x.bias[5 * N :] = torch.tensor([1.0, 0.0, 1.0, 0.0]).repeat_interleave(N)
    x, c = torch.randn(2, 9, WIDTH, dtype=torch.float64), 0
    y = mixer(x)[0]
    for t in range(9):
        i, f, o, re, im, *_ = mixer.x(x[:, t]).split(N, dim=1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * bound(torch.complex(re, im))
        h = torch.sigmoid(o) * bound(c)
        torch.testing.assert_close(y[:, t], torch.cat([h.real, h.imag], dim=1), rtol=1e-12, atol=1e-14)


def test_count_and_initial_values():
    """9 d^2 + 4.5 d. Orders are permutations, all different, and the same in each model."""
    d = 64
    mixer = AssocLSTMConfig().build(d)
    assert sum(p.numel() for p in mixer.parameters()) == 9 * d**2 + 9 * d // 2
    order_CN = mixer.order_CN
    assert torch.equal(order_CN.sort(1).values, torch.arange(d // 2).expand(4, -1))
    assert len({tuple(order) for order in order_CN.tolist()}) == 4
    torch.manual_seed(5)
    assert torch.equal(AssocLSTMConfig().build(d).order_CN, order_CN)
    assert torch.equal(mixer.x.bias, (torch.arange(9) == 1).float().repeat_interleave(d // 2))
