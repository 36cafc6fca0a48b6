"""S4D, GSS, BiGS's forward half and H3 against plain loops in complex numbers, written from the papers' equations."""

import cmath
import math

import numpy as np
import pytest
import torch

from exlstm.mixers.bigs import BiGSConfig
from exlstm.mixers.gss import GSSConfig
from exlstm.mixers.h3 import H3Config
from exlstm.mixers.s4d import S4DConfig
from exlstm.models.block import BlockConfig, MLPConfig
from exlstm.models.lm import LM, LMConfig

WIDTH, T = 8, 67
STATES = 6


def gelu(x):
    return np.vectorize(lambda z: 0.5 * z * (1 + math.erf(z / math.sqrt(2))))(x)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def hold(A, dt):
    """Zero-order hold: the factor of a step and of the input."""
    return cmath.exp(dt * A), (cmath.exp(dt * A) - 1) / A


def bilinear(A, dt):
    return (1 + dt * A / 2) / (1 - dt * A / 2), dt / (1 - dt * A / 2)


def scan(u_T, A_Z, dt, C_Z, D, rule=hold, factor=2.0):
    """One channel, one state and one step at a time."""
    h, y = [0j] * len(A_Z), []
    for u in u_T:
        total = 0.0
        for z, A in enumerate(A_Z):
            a, b = rule(A, dt)
            h[z] = a * h[z] + b * u
            total += factor * (C_Z[z] * h[z]).real
        y.append(total + D * u)
    return np.array(y)


def built(config, **more):
    """A mixer in float64 with all of its parameters as arrays."""
    torch.manual_seed(0)
    mixer = config.build(WIDTH, **more).double()
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return mixer, {name: p.detach().numpy() for name, p in mixer.named_parameters()}


def assert_same(mixer, want_TD, x_TD):
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 1e-4)):
        got, _ = mixer.to(dtype)(torch.from_numpy(x_TD).to(dtype)[None])
        torch.testing.assert_close(got[0].double(), torch.from_numpy(want_TD), rtol=tolerance, atol=tolerance)


def inputs():
    return np.random.default_rng(0).normal(size=(T, WIDTH))


@pytest.mark.parametrize("poles", ["lin", "inv"])
def test_s4d(poles):
    mixer, p = built(S4DConfig(states=STATES, poles=poles))
    x, s = inputs(), np.empty((T, WIDTH))
    for d in range(WIDTH):
        A = -np.exp(p["log_re_DZ"][d]) + 1j * p["im_DZ"][d]
        C = p["c_re_DZ"][d] + 1j * p["c_im_DZ"][d]
        s[:, d] = scan(x[:, d], A, math.exp(p["log_dt_D"][d]), C, p["skip_D"][d])
    both = gelu(s) @ p["glu.weight"].T + p["glu.bias"]
    assert_same(mixer, both[:, :WIDTH] * sigmoid(both[:, WIDTH:]), x)


def test_gss():
    mixer, p = built(GSSConfig(states=STATES))
    x = inputs()
    u, v = gelu(x @ p["u.weight"].T), gelu(x @ p["v.weight"].T)
    assert u.shape[1] == 4 * WIDTH
    assert v.shape[1] == WIDTH // 4
    A = -np.exp(p["log_re_PZ"][0]) + 1j * np.exp(p["log_im_PZ"][0])
    s = np.empty_like(v)
    for e in range(v.shape[1]):
        s[:, e] = scan(v[:, e], A, 1.0, p["c_re_EZ"][e] + 1j * p["c_im_EZ"][e], p["skip_E"][e], factor=1.0)
    want = ((s @ p["mix.weight"].T) * u) @ p["out.weight"].T + p["out.bias"]
    assert_same(mixer, want, x)


def test_bigs():
    mixer, p = built(BiGSConfig(states=STATES))
    x = inputs()
    layer = lambda name, x: x @ p[f"{name}.weight"].T + p[f"{name}.bias"]  # noqa: E731
    v, u = gelu(layer("v", x)), gelu(layer("u", x))
    assert v.shape[1] == 3 * WIDTH
    A = -np.exp(p["log_re_PZ"][0]) + 1j * p["im_PZ"][0]
    C, dt = p["c_re_PZ"][0] + 1j * p["c_im_PZ"][0], math.exp(p["log_dt_P"][0])
    s = np.stack([scan(u[:, d], A, dt, C, p["skip_P"][0], factor=1.0) for d in range(WIDTH)], axis=1)
    assert_same(mixer, layer("out", gelu(layer("mix2", layer("mix1", s))) * v), x)


@pytest.mark.parametrize("head", [1, 2, 4])
def test_h3(head):
    mixer, p = built(H3Config(states=STATES, conv_width=9, head_width=head))
    x, W = inputs(), 9
    layer = lambda name, x: x @ p[f"{name}.weight"].T + p[f"{name}.bias"]  # noqa: E731
    q, k, v = (layer(name, x) for name in "qkv")
    shifted = np.zeros_like(k)
    for t in range(T):
        for lag in range(min(t + 1, W)):
            shifted[t] += p["taps_DW"][:, W - 1 - lag] * k[t - lag]
        shifted[t] += p["skip_k_D"] * k[t]
    y = np.zeros((T, WIDTH))
    for start in range(0, WIDTH, head):
        for i in range(head):
            for j in range(head):
                e = start * head + i * head + j
                A = -np.exp(p["log_re_EZ"][e]) + 1j * p["im_EZ"][e]
                C, dt = p["c_re_EZ"][e] + 1j * p["c_im_EZ"][e], math.exp(p["log_dt_E"][e])
                kv = shifted[:, start + i] * v[:, start + j]
                y[:, start + j] += q[:, start + i] * scan(kv, A, dt, C, p["skip_E"][e], rule=bilinear)
    assert_same(mixer, layer("out", y), x)


def count(config, width):
    with torch.device("meta"):
        return sum(p.numel() for p in config.build(width).parameters())


@pytest.mark.parametrize("d", [64, 1024])
def test_counts(d):
    assert count(S4DConfig(), d) == 2 * d * d + 132 * d
    Z, narrow = 64, d // 4
    assert count(GSSConfig(), d) == 9 * d * d + narrow * d + d + 2 * Z + 2 * narrow * Z + narrow
    assert count(BiGSConfig(), d) == 11 * d * d + 9 * d + 4 * Z + 2
    assert count(H3Config(), d) == 4 * d * d + 4 * d + 195 * d


def test_h3_of_the_355m_class():
    """24 layers, an MLP of 4 d, tied embeddings; the published shape less the 128 d of input vectors per layer."""
    block = BlockConfig(mixer=H3Config(), mlp=MLPConfig(hidden=4096, gated=False, bias=True))
    config = LMConfig(
        vocab_size=50264, width=1024, blocks=(block,) * 24, norm="layer", norm_bias=True, tie_embeddings=True
    )
    with torch.device("meta"):
        found = sum(p.numel() for p in LM(config).parameters())
    assert found == 361_719_808 - 24 * 128 * 1024


def test_states():
    """Of one row, in float32; see the table of states: 64 d, 256 d with 512 states, 128 d, 127 d."""
    d = 64
    for config, floats in (
        (S4DConfig(), 64 * d), (GSSConfig(states=512), 256 * d), (BiGSConfig(), 128 * d), (H3Config(), 127 * d),
    ):  # fmt: skip
        assert config.build(d).state_bytes(1000) == 4 * floats


def test_initial_values():
    """Poles at -1/2 + i pi n, or of S4D-Inv; steps between the bounds."""
    p = dict(S4DConfig().build(256).named_parameters())
    torch.testing.assert_close(p["log_re_DZ"].exp(), torch.full((256, 32), 0.5))
    torch.testing.assert_close(p["im_DZ"][7], math.pi * torch.arange(32.0))
    for name in ("c_re_DZ", "c_im_DZ"):
        assert abs(p[name].std() - 0.5**0.5) < 0.03
    assert math.log(1e-3) <= p["log_dt_D"].min() < math.log(3e-3)
    assert math.log(3e-2) < p["log_dt_D"].max() <= math.log(1e-1)
    inverse = S4DConfig(poles="inv", states=4).build(2).im_DZ[0]
    torch.testing.assert_close(inverse, torch.tensor([8 / math.pi * (8 / (2 * n + 1) - 1) for n in range(4)]))
    h3 = dict(H3Config().build(64, depth=8).named_parameters())
    assert abs(h3["out.weight"].std() / 0.005 - 1) < 0.1


def test_errors():
    with pytest.raises(ValueError, match="head_width is 3; it must divide the width 32"):
        H3Config(head_width=3).build(32)
    with pytest.raises(ValueError, match=r"dt_min is 0.2; it must be at most dt_max, which is 0.1"):
        S4DConfig(dt_min=0.2)
