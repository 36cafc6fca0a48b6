"""minLSTM, LRU and S5 against loops over their published equations, in float64, and counts of parameters."""

import pytest
import torch

from exlstm.mixers.hgrn import HGRNConfig
from exlstm.mixers.lru import LRUConfig
from exlstm.mixers.minlstm import MinLSTMConfig
from exlstm.mixers.s5 import S5Config
from exlstm.models.summary import parameters

WIDTH = 12


def build(config):
    """With weights that are all of some size."""
    torch.manual_seed(0)
    mixer = config.build(WIDTH).double()
    with torch.no_grad():
        for p in mixer.parameters():
            p += 0.2 * torch.randn_like(p)
    return mixer, dict(mixer.named_parameters())


def gelu(x):
    return torch.nn.functional.gelu(x, approximate="tanh")


@pytest.mark.parametrize("positive", [True, False])
@pytest.mark.parametrize("up_factor", [1.0, 1.5])
def test_minlstm(positive, up_factor):
    mixer, p = build(MinLSTMConfig(positive=positive, up_factor=up_factor))
    x = torch.randn(2, 9, WIDTH).double()
    h, want = torch.zeros(2, mixer.inner).double(), []
    for t in range(9):
        f, i = (torch.sigmoid(x[:, t] @ p[f"{name}.weight"].T) for name in "fi")
        n = x[:, t] @ p["h.weight"].T
        if positive:
            n = torch.where(n >= 0, n + 0.5, torch.sigmoid(n))
        h = f / (f + i) * h + i / (f + i) * n
        want.append(h if up_factor == 1 else h @ p["out.weight"].T)
    torch.testing.assert_close(mixer(x)[0], torch.stack(want, dim=1))
    assert parameters(mixer) == (3 + (up_factor != 1)) * WIDTH * mixer.inner


def halves(matrix, dim):
    return torch.complex(*matrix.chunk(2, dim=dim))


def states(x, factor, b):
    """h of every step: h = factor h + B x."""
    h, found = torch.zeros(x.shape[0], len(factor), dtype=torch.complex128), []
    for t in range(x.shape[1]):
        h = factor * h + x[:, t].to(torch.complex128) @ b.T
        found.append(h)
    return torch.stack(found, dim=1)


@pytest.mark.parametrize("up_factor", [1.0, 0.75])
def test_lru(up_factor):
    mixer, p = build(LRUConfig(up_factor=up_factor))
    x = torch.randn(2, 30, WIDTH).double()
    factor = torch.exp(torch.complex(-p["nu_P"].exp(), p["theta_P"].exp()))
    h = states(x, factor, p["gamma_P"].exp()[:, None] * halves(p["b.weight"], 0))
    c = halves(p["c.weight"], 1).conj()
    s = gelu((h @ c.T).real + p["skip_D"] * x)
    want = mixer.out1(s) * torch.sigmoid(mixer.out2(s))
    torch.testing.assert_close(mixer(x)[0], want)
    assert parameters(mixer) == 4 * mixer.poles * WIDTH + 3 * mixer.poles + WIDTH + 2 * (WIDTH**2 + WIDTH)


@pytest.mark.parametrize("activation", ["full_glu", "half_glu1", "half_glu2", "gelu"])
@pytest.mark.parametrize("blocks", [1, 3])
def test_s5(activation, blocks):
    mixer, p = build(S5Config(activation=activation, blocks=blocks))
    x = torch.randn(2, 30, WIDTH).double()
    pole, dt = torch.complex(-p["a_re_P"].exp(), p["a_im_P"]), p["log_dt_P"].exp()
    factor = torch.exp(pole * dt)
    h = states(x, factor, ((factor - 1) / pole)[:, None] * halves(p["b.weight"], 0))
    y = 2 * (h @ halves(p["c.weight"], 1).conj().T).real + p["skip_D"] * x
    g = gelu(y)
    want = {
        "full_glu": lambda: mixer.out1(g) * torch.sigmoid(mixer.out2(g)),
        "half_glu1": lambda: g * torch.sigmoid(mixer.out2(g)),
        "half_glu2": lambda: y * torch.sigmoid(mixer.out2(g)),
        "gelu": lambda: g,
    }[activation]()
    torch.testing.assert_close(mixer(x)[0], want)
    maps = {"full_glu": 2, "gelu": 0}.get(activation, 1)
    assert mixer.poles == WIDTH // 2
    assert parameters(mixer) == 4 * mixer.poles * WIDTH + 3 * mixer.poles + WIDTH + maps * (WIDTH**2 + WIDTH)


@pytest.mark.parametrize("index", [0, 1])
def test_complex_hgrn(index):
    torch.manual_seed(0)
    mixer = HGRNConfig(form="complex").build(WIDTH, depth=2, index=index).double()
    p = dict(mixer.named_parameters())
    angle_E = 10_000.0 ** (-2 * torch.arange(WIDTH) / WIDTH)
    torch.testing.assert_close(p["angle_E"].detach().float(), angle_E)
    with torch.no_grad():
        for x in p.values():
            x += 0.2 * torch.randn_like(x)
    x = torch.randn(2, 20, WIDTH).double()
    bound = torch.sigmoid(p["bound_E"]) if index else 0
    h, want = torch.zeros(2, WIDTH, dtype=torch.complex128), []
    for t in range(20):
        forget = bound + (1 - bound) * torch.sigmoid(x[:, t] @ p["f.weight"].T)
        i = halves(torch.nn.functional.silu(x[:, t] @ p["i.weight"].T), 1)
        h = torch.polar(forget, p["angle_E"].expand_as(forget)) * h + (1 - forget) * i
        both = torch.cat([h.real, h.imag], dim=1)
        n = torch.nn.functional.layer_norm(both, both.shape[1:], p["norm.weight"], p["norm.bias"], 1e-5)
        want.append((n * torch.nn.functional.silu(x[:, t] @ p["g.weight"].T)) @ p["out.weight"].T)
    torch.testing.assert_close(mixer(x)[0], torch.stack(want, dim=1))


def test_s5_begins_as_hippo():
    """Before any training, B and C in the basis of the poles are real matrices of the HiPPO state space.

    Its impulse response is real: with both poles of every pair it is that of the state space itself.
    """
    torch.manual_seed(0)
    p = dict(S5Config(blocks=1).build(WIDTH).double().named_parameters())
    N = WIDTH
    n = torch.arange(N, dtype=torch.float64)
    a = -torch.sqrt(torch.outer(2 * n + 1, 2 * n + 1)).tril(-1) - torch.diag(n + 1)
    normal = a + torch.outer((n + 0.5).sqrt(), (n + 0.5).sqrt())
    found = torch.linalg.eigvals(normal)
    torch.testing.assert_close(found.real, torch.full((N,), -0.5, dtype=torch.float64))
    frequencies = found.imag[found.imag < 0].sort().values
    torch.testing.assert_close(p["a_im_P"].sort().values, frequencies, rtol=1e-5, atol=1e-5)
    b = halves(p["b.weight"], 0)
    assert b.shape == (N // 2, WIDTH)
    # half of the variance of B_0 is in one pole of every pair
    assert 0.3 < (b.abs().square().sum(0).mean() / 1.0).item() < 0.7


def test_initial_poles_of_the_lru():
    torch.manual_seed(0)
    p = dict(LRUConfig(low=0.9, high=0.99, phase=0.3).build(512).named_parameters())
    size = torch.exp(-p["nu_P"].exp())
    assert 0.9 <= size.min() < 0.905
    assert 0.985 < size.max() <= 0.9901
    # uniform on a ring: the square of the absolute value is uniform
    middle = (0.9**2 + 0.99**2) / 2
    assert abs(size.square().mean() - middle) < 0.01
    assert 0.29 < p["theta_P"].exp().max() <= 0.3001
    torch.testing.assert_close(p["gamma_P"].exp(), torch.sqrt(1 - size.square()), rtol=1e-4, atol=0)
    with pytest.raises(ValueError, match=r"high is 0\.5; it must be above low, which is 0\.9"):
        LRUConfig(low=0.9, high=0.5)
