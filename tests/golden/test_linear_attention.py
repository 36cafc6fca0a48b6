"""Linear attention, Performer and Based against weights of all pairs of steps in float64, and their counts."""

import pytest
import torch

from exlstm.mixers.based import BasedConfig
from exlstm.mixers.linear_attention import LinearAttentionConfig
from exlstm.mixers.performer import PerformerConfig

WIDTH, HEADS = 48, 4
CONFIGS = {
    "linear_attention": LinearAttentionConfig(),
    "linear_attention without biases": LinearAttentionConfig(bias=False),
    "performer": PerformerConfig(seed=5),
    "performer with biases": PerformerConfig(bias=True, features=9),
    "based": BasedConfig(),
    "based wide": BasedConfig(key_width=5),
}


def exponentials(x, rows, is_query):
    """Positive random features: exp(w.x - |x|^2 / 2), over M^1/2; of a query over its largest."""
    x = x / x.shape[-1] ** 0.25
    found = torch.exp(x @ rows.T - x.square().sum(-1, keepdim=True) / 2)
    return ((found / found.max(-1, keepdim=True).values if is_query else found) + 1e-4) / len(rows) ** 0.5


def weights_of(name, mixer, q_TK, k_TK):
    """The weight of every step at every step, not normalized yet."""
    if name.startswith("based"):
        s = q_TK @ k_TK.T / q_TK.shape[1] ** 0.5
        return 1 + s + s.square() / 2
    if name.startswith("performer"):
        rows = mixer.rows.exact
        return exponentials(q_TK, rows, True) @ exponentials(k_TK, rows, False).T
    return (torch.nn.functional.elu(q_TK) + 1) @ (torch.nn.functional.elu(k_TK) + 1).T


def definition(name, mixer, p, x_TD):
    """One row, one head after another."""
    eps = mixer.config.eps
    q, k, v = (x_TD @ p[f"{n}.weight"].T + p.get(f"{n}.bias", 0.0) for n in "qkv")
    heads = []
    for h in range(HEADS):
        q_TK, k_TK, v_TV = (x.chunk(HEADS, dim=1)[h] for x in (q, k, v))
        weights = weights_of(name, mixer, q_TK, k_TK).tril()
        heads.append(weights @ v_TV / (weights.sum(1, keepdim=True) + eps))
    return torch.cat(heads, dim=1) @ p["out.weight"].T + p.get("out.bias", 0.0)


@pytest.mark.parametrize("T", [1, 5, 64, 67])
@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_outputs(name, T, dtype):
    mixer = CONFIGS[name].build(WIDTH)
    exact = {key: x.detach().double() + 0.1 * torch.randn(x.shape).double() for key, x in mixer.named_parameters()}
    mixer.load_state_dict(exact)
    exact = {key: x.detach().double() for key, x in mixer.named_parameters()}
    x = torch.randn(2, T, WIDTH, dtype=torch.float64)
    want = torch.stack([definition(name, mixer, exact, row) for row in x])
    room = 1e-6 if dtype is torch.float64 else 1e-3
    got = mixer.to(dtype)(x.to(dtype))[0].double()
    torch.testing.assert_close(got, want, rtol=room, atol=room * float(want.abs().max()))


def test_performers_of_one_seed_have_the_same_rows():
    """And blocks of one model others, so that their errors do not add up."""
    config = PerformerConfig(seed=1)
    first, again, later = config.build(WIDTH), config.build(WIDTH), config.build(WIDTH, depth=2, index=1)
    assert torch.equal(first.rows.exact, again.rows.exact)
    assert not torch.equal(first.rows.exact, later.rows.exact)
    assert not any("rows" in key for key in first.state_dict())


@torch.no_grad()
def test_random_features_of_many_rows_are_softmax():
    """The point of a Performer, with small queries and keys."""
    mixer = PerformerConfig(features=20_000).build(WIDTH).double()
    x = torch.randn(1, 9, WIDTH, dtype=torch.float64)
    q, k, v = (getattr(mixer, n)(x).unflatten(-1, (HEADS, -1)).transpose(1, 2) for n in "qkv")
    want = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
    torch.testing.assert_close(mixer(x)[0], mixer.out(want), rtol=0, atol=0.15 * float(mixer.out(want).std()))


def count(config):
    """Parameters of a layer of width 1024, and the floats of its state."""
    with torch.device("meta"):
        mixer = config.build(1024)
    return sum(p.numel() for p in mixer.parameters()), mixer.state_bytes() // 4


def test_counts():
    d = 1024
    assert count(LinearAttentionConfig(heads=16)) == (4 * d * d + 4 * d, 65 * d)
    assert count(LinearAttentionConfig(heads=16, bias=False))[0] == 4 * d * d
    assert count(PerformerConfig(heads=16)) == (4 * d * d, 16 * 266 * 65)
    assert count(BasedConfig(heads=16)) == (2 * d * 16 * 16 + 2 * d * d, 16 * 153 * 65)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (LinearAttentionConfig(heads=5), "heads is 5; it must divide the width 1024"),
        (PerformerConfig(heads=5), "heads is 5; it must divide the width 1024"),
        (PerformerConfig(heads=4), "heads is 4; with width 1024 use 8 or more"),
        (BasedConfig(heads=5), "heads is 5; it must divide the width 1024"),
    ],
)
def test_errors(config, message):
    with pytest.raises(ValueError, match=message):
        config.build(1024)
