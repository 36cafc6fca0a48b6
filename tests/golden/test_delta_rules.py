"""DeltaNet, Gated DeltaNet and RWKV-7 against others: transformers' layers, and loops over time from the equations."""

import pytest
import torch
from torch.nn.functional import conv1d, elu, group_norm, logsigmoid, normalize, rms_norm, silu, softplus
from transformers.models.kimi_linear.modeling_kimi_linear import recurrent_kimi_delta_attention
from transformers.models.olmo_hybrid.configuration_olmo_hybrid import OlmoHybridConfig
from transformers.models.olmo_hybrid.modeling_olmo_hybrid import (
    OlmoHybridGatedDeltaNet,
    torch_recurrent_gated_delta_rule,
)

from exlstm.mixers.deltanet import DeltaNetConfig
from exlstm.mixers.gated_deltanet import GatedDeltaNetConfig
from exlstm.mixers.rwkv7 import RWKV7Config
from exlstm.ops.delta_rule import DeltaState, delta_rule, dplr_rule

lengths = pytest.mark.parametrize("T", [1, 5, 64, 67])


def draws(*shapes, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]


def moved(mixer, by=0.3):
    """The mixer with parameters of which all matter."""
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter += by * torch.randn_like(parameter)
    return mixer


def count(mixer):
    return sum(parameter.numel() for parameter in mixer.parameters())


@lengths
@pytest.mark.parametrize("backend", ["numba", "chunkwise", "recurrent"])
def test_the_op_is_that_of_transformers(T, backend):
    """With a decay per head, and with one per key channel as in Kimi Linear."""
    q, k, v, beta, g, channels, s = draws(
        (2, T, 3, 8), (2, T, 3, 8), (2, T, 3, 6), (2, T, 3), (2, T, 3), (2, T, 3, 8), (2, 3, 8, 6)
    )
    q, k, beta = normalize(q, dim=-1), normalize(k, dim=-1), 2 * beta.sigmoid()
    for decays, theirs in ((g, torch_recurrent_gated_delta_rule), (channels, recurrent_kimi_delta_attention)):
        log_decays = logsigmoid(2 * decays)
        want, last = theirs(q, k, v, log_decays, beta, s, True)
        got, state = delta_rule(q * 8**-0.5, k, v, beta, log_decays, DeltaState(s), backend=backend)
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(state.s_BHKV, last, rtol=1e-4, atol=1e-5)


def test_the_delta_rule_is_a_case_of_the_general_one():
    """With a = e^g k, b = -beta k and beta k as the key."""
    q, k, v, beta, g = draws((2, 9, 3, 8), (2, 9, 3, 8), (2, 9, 3, 6), (2, 9, 3), (2, 9, 3, 8), dtype=torch.float64)
    k, beta, g = normalize(k, dim=-1), beta.sigmoid(), logsigmoid(g)
    want, state = delta_rule(q, k, v, beta, g)
    written = beta[..., None] * k
    got, other = dplr_rule(q, written, v, g.exp() * k, -written, g)
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(other, state)


@lengths
@pytest.mark.parametrize("turning", [False, True])
def test_gated_deltanet(T, turning):
    sizes = {"hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 4, "intermediate_size": 8}
    layers = ["linear_attention", "full_attention"]
    config = OlmoHybridConfig(**sizes, num_hidden_layers=2, layer_types=layers, linear_allow_neg_eigval=turning)
    torch.manual_seed(0)
    theirs = moved(OlmoHybridGatedDeltaNet(config, 0))
    ours = GatedDeltaNetConfig(allow_neg_eigval=turning).build(32)
    names = {"b_proj": "beta", "o_proj": "out", "conv1d.weight": "conv.weight_DW", "o_norm": "norm"}
    names |= {"A_log": "log_a_H", "dt_bias": "dt_bias_H", "_proj": ""}
    loaded = {}
    for key, x in theirs.state_dict().items():
        for old, new in names.items():
            key = key.replace(old, new)
        loaded[key] = x.flatten(1) if x.ndim == 3 else x
    ours.load_state_dict(loaded)
    (x,) = draws((2, T, 32))
    torch.testing.assert_close(ours(x)[0], theirs(x), rtol=1e-4, atol=1e-5)


def shifted(x_BTD):
    """The input of the step before."""
    return torch.cat([torch.zeros_like(x_BTD[:, :1]), x_BTD[:, :-1]], dim=1)


def rule(q, k, v, beta):
    """The delta rule from S = 0, one step after another."""
    S, out = q.new_zeros(*q.shape[:1], *q.shape[2:], v.shape[3]), []
    for q_t, k_t, v_t, beta_t in zip(*(x.unbind(1) for x in (q, k, v, beta)), strict=True):
        stored = torch.einsum("bhkv,bhk->bhv", S, k_t)
        S = S + torch.einsum("bhk,bhv->bhkv", k_t, beta_t[..., None] * (v_t - stored))
        out.append(torch.einsum("bhkv,bhk->bhv", S, q_t))
    return torch.stack(out, dim=1)


def split(x, heads):
    return x.unflatten(-1, (heads, -1))


@lengths
def test_deltanet(T):
    torch.manual_seed(0)
    mixer = moved(DeltaNetConfig(allow_neg_eigval=True).build(32)).double()
    (x,) = draws((2, T, 32), dtype=torch.float64)
    qkv = torch.cat([x @ layer.weight.mT for layer in (mixer.q, mixer.k, mixer.v)], dim=-1)
    padded = torch.nn.functional.pad(qkv.mT, (3, 0))
    qkv = silu(conv1d(padded, mixer.conv.weight_DW[:, None], groups=96).mT)
    q, k, v = (split(part, 4) for part in qkv.chunk(3, dim=-1))
    q, k = (part * (part.square().sum(-1, keepdim=True) + 1e-6).rsqrt() for part in (q, k))
    o = rule(q * 8**-0.5, k, v, 2 * (x @ mixer.beta.weight.mT).sigmoid())
    want = rms_norm(o, (8,), mixer.norm.weight, 1e-5).flatten(2) @ mixer.out.weight.mT
    torch.testing.assert_close(mixer(x)[0], want)


@pytest.mark.parametrize("kind", ["elu1", "dpfp"])
def test_fast_weight_programmers(kind):
    """Schlag et al. 2021: features that are not negative, divided by their sum; of DPFP products with neighbors."""
    torch.manual_seed(0)
    config = DeltaNetConfig(conv_width=0, feature_map=kind, dpfp_degree=2, key_norm="sum")
    mixer = moved(config.build(32)).double()
    (x,) = draws((2, 9, 32), dtype=torch.float64)
    q, k, v = (split(x @ layer.weight.mT, 4) for layer in (mixer.q, mixer.k, mixer.v))

    def features(y):
        if kind == "elu1":
            return elu(y) + 1
        both = torch.cat([y.relu(), (-y).relu()], dim=-1)
        return torch.cat([both * both.roll(n, dims=-1) for n in (1, 2)], dim=-1)

    q, k = (features(y) / (features(y).sum(-1, keepdim=True) + 1e-6) for y in (q, k))
    o = rule(q * q.shape[-1] ** -0.5, k, v, (x @ mixer.beta.weight.mT).sigmoid())
    want = rms_norm(o, (8,), mixer.norm.weight, 1e-5).flatten(2) @ mixer.out.weight.mT
    torch.testing.assert_close(mixer(x)[0], want)


@lengths
def test_rwkv7(T):
    torch.manual_seed(0)
    mixer = moved(RWKV7Config().build(32, depth=4, index=1)).double()
    (x,) = draws((2, T, 32), dtype=torch.float64)
    p = dict(mixer.named_parameters())
    change = shifted(x) - x
    r, w, k, v, a, g = (x + change * p[f"mix_{name}_D"] for name in "rwkvag")
    low = lambda y, name, act: act(y @ p[f"{name}1.weight"].mT) @ p[f"{name}2.weight"].mT  # noqa: E731
    r, k, v = (y @ p[f"{name}.weight"].mT for y, name in zip((r, k, v), "rkv", strict=True))
    decay = torch.exp(
        -(torch.tensor(-0.5, dtype=torch.float64).exp()) * (p["w0_D"] + low(w, "w", torch.tanh)).sigmoid()
    )
    rate = (p["a0_D"] + low(a, "a", lambda y: y)).sigmoid()
    gate = low(g, "g", torch.sigmoid)
    kappa = normalize(split(k * p["k_k_D"], 4), dim=-1)
    k = k * (1 + (rate - 1) * p["k_a_D"])
    r, k, v, rate, decay = (split(y, 4) for y in (r, k, v, rate, decay))
    S, out = x.new_zeros(2, 4, 8, 8), []
    for t in range(T):
        read = torch.einsum("bhk,bhkv->bhv", kappa[:, t], S)
        S = decay[:, t, ..., None] * S - torch.einsum("bhk,bhv->bhkv", kappa[:, t] * rate[:, t], read)
        S = S + torch.einsum("bhk,bhv->bhkv", k[:, t], v[:, t])
        out.append(torch.einsum("bhkv,bhk->bhv", S, r[:, t]))
    o = torch.stack(out, dim=1).flatten(2)
    o = group_norm(o.flatten(0, 1), 4, p["norm.weight"], p["norm.bias"], 64e-5).view_as(o)
    o = o + ((r * k * p["r_k_HK"]).sum(-1, keepdim=True) * v).flatten(2)
    torch.testing.assert_close(mixer(x)[0], (o * gate) @ p["out.weight"].mT)


def test_parameters_are_counted_as_published():
    d, H = 1024, 8
    assert count(DeltaNetConfig(heads=H).build(d)) == 4 * d * d + d * H + 12 * d + d // H
    assert count(GatedDeltaNetConfig(heads=H).build(d)) == 6 * d * d + 2 * d * H + 12 * d + 2 * H + 3 * d // 2 // H
    # 4,864,000 with the value residual, of rank 32
    assert count(RWKV7Config(heads=16).build(d)) == 4_864_000 - (2 * 32 * d + d)


def test_states_are_as_large_as_published():
    d = 1024
    floats = lambda config: config.build(d).state_bytes() // 4  # noqa: E731
    assert floats(DeltaNetConfig(heads=8)) == 137 * d
    assert floats(GatedDeltaNetConfig(heads=3)) == 393 * d
    assert floats(RWKV7Config(heads=16)) == 65 * d


def test_first_values_of_rwkv7():
    """By channel and layer, as its training script sets them."""
    depth, index, d = 4, 1, 64
    p = dict(RWKV7Config(heads=2).build(d, depth=depth, index=index).named_parameters())
    n, early, late = torch.arange(d), 1 - index / depth, index / (depth - 1)
    for name, power in {"r": 0.2, "w": 0.9, "k": 0.7, "v": 0.7, "a": 0.9, "g": 0.2}.items():
        torch.testing.assert_close(p[f"mix_{name}_D"].detach(), 1 - (n / d) ** (power * early))
    z = (n % 32 - 15.5) / 15.5
    want = -6 + 6 * (n / (d - 1)) ** (1 + late**0.3) + 0.5 + 2.5 * z * z.abs()
    torch.testing.assert_close(p["w0_D"].detach(), want)
    torch.testing.assert_close(p["a0_D"].detach(), -0.19 + 0.3 * z * z.abs() + 0.4 * (n / (d - 1) - 0.5))
    torch.testing.assert_close(p["k_k_D"].detach(), 0.71 - 0.1 * (n / (d - 1) - 0.5))
    assert (p["k_a_D"] == 1.02).all()
    assert (p["r_k_HK"] == -0.04).all()
    assert not any(p[name].any() for name in ("out.weight", "w1.weight", "a1.weight", "g1.weight", "norm.bias"))
    eye = torch.eye(d)
    torch.testing.assert_close((p["r.weight"] @ p["r.weight"].mT).detach(), eye, rtol=0, atol=1e-5)
    torch.testing.assert_close((p["k.weight"] @ p["k.weight"].mT).detach(), 0.01 * eye, rtol=0, atol=1e-5)
    torch.testing.assert_close(p["norm.weight"].detach(), torch.full((d,), ((1 + index) / depth) ** 0.7))


def test_first_values_of_the_gated_deltanet():
    p = dict(GatedDeltaNetConfig(heads=64, key_factor=1.0, value_factor=1.0).build(64).named_parameters())
    assert p["log_a_H"].exp().min() >= 0.01 - 1e-6
    assert p["log_a_H"].exp().max() <= 16
    steps = softplus(p["dt_bias_H"])
    assert steps.min() >= 0.999e-3
    assert steps.max() <= 0.1001
