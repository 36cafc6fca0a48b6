"""What a new mixer holds, parameter by parameter, against the published initialisation."""

import pytest
import torch

from exlstm.mixers.attention import AttentionConfig
from exlstm.mixers.lru import LRUConfig
from exlstm.mixers.lstm import LSTMConfig
from exlstm.mixers.mlstm import MLSTMConfig
from exlstm.mixers.mlstm_large import MLSTMLargeConfig
from exlstm.mixers.rglru import RGLRUConfig
from exlstm.mixers.rwkv4 import RWKV4Config
from exlstm.mixers.rwkv_channel import RWKVChannelConfig
from exlstm.mixers.s5 import S5Config
from exlstm.mixers.slstm import SLSTMConfig

WIDTH, DEPTH = 256, 6
SMALL, WANG = (2 / (5 * WIDTH)) ** 0.5, 2 / (DEPTH * WIDTH**0.5)


def assert_normal(x, deviation):
    assert abs(x.mean()) < 5 * deviation / x.numel() ** 0.5
    assert abs(x.std() / deviation - 1) < 5 / x.numel() ** 0.5
    assert x.abs().max() > 2.5 * deviation  # not uniform


def assert_uniform(x, bound):
    assert x.abs().max() <= bound
    assert abs(x.std() * 3**0.5 / bound - 1) < 5 / x.numel() ** 0.5


def build(config, index=2):
    return dict(config.build(WIDTH, depth=DEPTH, index=index).named_parameters())


def test_mlstm():
    p = build(MLSTMConfig())
    for name in ("up.weight", "q.weight_HVK", "k.weight_HVK", "v.weight_HVK"):
        assert_normal(p.pop(name), SMALL)
    assert_normal(p.pop("down.weight"), WANG)
    for name in ("conv.weight_DW", "conv.bias_D"):
        assert_uniform(p.pop(name), 0.5)  # as torch's Conv1d of one channel and four taps
    assert not p.pop("i.weight").any()
    assert not p.pop("f.weight").any()
    assert 0 < p.pop("i.bias").abs().max() < 0.5  # N(0, 0.1^2)
    torch.testing.assert_close(p.pop("f.bias"), torch.tensor([3.0, 4.0, 5.0, 6.0]), check_dtype=True)
    assert (p.pop("norm.weight") == 1).all()
    assert (p.pop("skip") == 1).all()
    assert not p


def test_biases_are_zero_at_first_and_nothing_else_is_added():
    added = {
        MLSTMConfig: ["up.bias", "q.bias_D", "k.bias_D", "v.bias_D", "down.bias"],
        MLSTMLargeConfig: ["q.bias", "k.bias", "v.bias", "o.bias", "norm.bias", "out.bias"],
    }
    for config, names in added.items():
        p, plain = build(config(bias=True)), build(config())
        for name in names:
            assert name not in plain
            assert not p.pop(name).any()
        assert {name: x.shape for name, x in p.items()} == {name: x.shape for name, x in plain.items()}
        assert (p["norm.weight"] == 1).all()


def test_the_input_gates_bias_is_small_and_random():
    assert_normal(torch.cat([build(MLSTMConfig(heads=64))["i.bias"] for _ in range(10)]), 0.1)


def test_other_gates_of_the_mlstm_start_open_and_as_strong():
    """A ReLU around zero would leave half of the heads shut for good; e^3 per step would remember one step alone."""
    for gate in ("relu", "relu2"):
        assert_normal(torch.cat([build(MLSTMConfig(heads=64, input_gate=gate))["i.bias"] for _ in range(10)]) - 1, 0.1)
    f, usual = (build(MLSTMConfig(forget_gate=gate))["f.bias"] for gate in ("exp", "sigmoid"))
    torch.testing.assert_close(f.exp(), usual.sigmoid())
    f, usual = (build(SLSTMConfig(forget_gate=gate))["b_HGV"][:, 1] for gate in ("exp", "sigmoid"))
    torch.testing.assert_close(f.exp(), usual.sigmoid())


def test_mlstm_large():
    p = build(MLSTMLargeConfig())
    for name in ("q.weight", "k.weight", "v.weight"):
        assert_normal(p.pop(name), SMALL)
    assert_normal(p.pop("out.weight"), WANG)
    for name in ("o.weight", "i.weight", "f.weight"):
        assert not p.pop(name).any()
    assert p.pop("i.bias").tolist() == [-10] * 4
    assert p.pop("f.bias").tolist() == [3, 4, 5, 6]
    assert (p.pop("norm.weight") == 1).all()
    assert not p


def test_slstm():
    p = build(SLSTMConfig(), index=2)
    assert_normal(p.pop("w_HGVK"), SMALL)
    assert not p.pop("r_HKGV").any()
    for name in ("conv.weight_DW", "conv.bias_D"):
        assert_uniform(p.pop(name), 0.5)
    b_HGV = p.pop("b_HGV")
    assert not b_HGV[:, [0, 2, 3]].any()
    share = torch.arange(64) / 63
    want = (5 - 12 * share ** (0.3 + 1.3 * 2 / 5)).expand(4, -1)
    torch.testing.assert_close(b_HGV[:, 1].detach(), want, rtol=1e-5, atol=1e-5)
    assert (p.pop("norm.weight") == 1).all()
    assert not p


@pytest.mark.parametrize(("forget_bias", "first", "last"), [("power_law", 5, -7), ("linspace", 3, 6), ("zeros", 0, 0)])
def test_slstm_forget_bias(forget_bias, first, last):
    f_HV = build(SLSTMConfig(forget_bias=forget_bias))["b_HGV"][:, 1]
    assert (f_HV[:, 0] == first).all()
    assert (f_HV[:, -1] == last).all()


def test_slstm_recurrent_weights():
    assert_uniform(build(SLSTMConfig(recurrent_init="uniform"))["r_HKGV"], WIDTH**-0.5)
    assert "r_HKGV" not in build(SLSTMConfig(recurrence="none"))
    assert "conv.weight_DW" not in build(SLSTMConfig(conv_width=0))


@pytest.mark.parametrize("recurrent_init", ["zeros", "uniform"])
@pytest.mark.parametrize("blocks", [1, 4])
def test_slstm_recurrent_weights_of_other_structures(recurrent_init, blocks):
    """Uniform: what a unit hears in all varies as much as with a dense R, of one block or as many."""

    def weights(name):
        config = SLSTMConfig(
            recurrence=name, recurrence_blocks=blocks, recurrent_init=recurrent_init, recurrence_degree=9
        )
        p = build(config)
        return {key.removeprefix("recurrence."): p[key] for key in p if key.startswith("recurrence.")}

    p = weights("low_rank")
    assert_uniform(p["r_in_HKJ"], (3 / 4) ** 0.5)
    bounds = {"diagonal": 1, "sparse": 1 / 3, "learned": WIDTH**-0.5, "low_rank": WIDTH**-0.5}
    for name, bound in bounds.items():
        p = weights(name)
        r = p.pop(next(key for key in p if key.endswith("GV")))
        assert_uniform(r, bound) if recurrent_init == "uniform" else assert_zeros(r)
        if name == "learned":
            assert_normal(p.pop("graph_HKV"), 0.01)
        assert set(p) == ({"r_in_HKJ"} if name == "low_rank" else set())


def assert_zeros(x):
    assert not x.any()


def test_a_dense_product_of_low_rank_has_the_variance_of_a_dense_one():
    config = SLSTMConfig(recurrence="low_rank", recurrence_blocks=1, recurrence_rank=16, recurrent_init="uniform")
    r_HKGV = config.build(WIDTH).recurrence()
    assert r_HKGV.std().item() == pytest.approx((3 * WIDTH) ** -0.5, rel=0.05)


def test_later_blocks_keep_more():
    """The power law bends with the block's index: more channels of later blocks have large forget biases."""
    shares = [(build(SLSTMConfig(), index=index)["b_HGV"][:, 1] > 0).float().mean() for index in range(DEPTH)]
    assert shares == sorted(shares)
    assert shares[0] < 0.1
    assert shares[-1] > 0.5


def test_attention():
    p = build(AttentionConfig())
    for name in ("q.weight", "k.weight", "v.weight"):
        assert_normal(p.pop(name), SMALL)
    assert_normal(p.pop("out.weight"), WANG)
    assert not p


def test_lstm():
    p = build(LSTMConfig(forget_bias=2.0))
    assert_uniform(p.pop("w_GD"), WIDTH**-0.5)
    assert_uniform(p.pop("u_GV"), WIDTH**-0.5)
    b_G = p.pop("b_G").view(4, WIDTH)
    assert (b_G[1] == 2).all()
    assert not b_G[[0, 2, 3]].any()
    assert not p
    u_GV = build(LSTMConfig(heads=4))["u_GV"]
    assert u_GV.shape == (4 * WIDTH, WIDTH // 4)
    assert_uniform(u_GV, WIDTH**-0.5)


def test_rwkv4():
    """Of the second layer of three: two blocks make a layer."""
    p = build(RWKV4Config(up_factor=2.0))
    for name in ("k.weight", "r.weight", "out.weight"):
        assert_zeros(p.pop(name))
    v = p.pop("v.weight")
    torch.testing.assert_close(v.mT @ v, 2 * torch.eye(WIDTH), rtol=1e-4, atol=1e-5)
    share = torch.arange(WIDTH) / WIDTH
    torch.testing.assert_close(p.pop("mix_k_D").detach(), share ** (2 / 3))
    torch.testing.assert_close(p.pop("mix_v_D").detach(), share ** (2 / 3) + 0.15)
    torch.testing.assert_close(p.pop("mix_r_D").detach(), share ** (1 / 3))
    share = torch.arange(2 * WIDTH) / (2 * WIDTH - 1)
    torch.testing.assert_close(p.pop("decay_E").detach(), -5 + 8 * share ** (0.7 + 1.3 / 2), rtol=1e-4, atol=1e-4)
    zigzag = torch.tensor([0.0, 0.5, -0.5])
    torch.testing.assert_close(p.pop("first_E")[:3].detach(), zigzag + torch.tensor(0.3).log())
    assert not p


@pytest.mark.parametrize(
    ("config", "mix"),
    [
        (RWKVChannelConfig(), lambda share: share ** (2 / 3)),
        (RWKVChannelConfig(share="past"), lambda share: 1 - share ** (2 / 3)),
        (RWKVChannelConfig(share="past", receptance=False, bend=4.0), lambda share: 1 - share ** ((2 / 3) ** 4)),
    ],
)
def test_rwkv_channel(config, mix):
    p = build(config, index=3)
    assert_zeros(p.pop("v.weight"))
    k = p.pop("k.weight")
    torch.testing.assert_close(k.mT @ k, 4 * torch.eye(WIDTH), rtol=1e-4, atol=1e-5)
    want = mix(torch.arange(WIDTH) / WIDTH)
    torch.testing.assert_close(p.pop("mix_k_D").detach(), want)
    if config.receptance:
        assert_zeros(p.pop("r.weight"))
        torch.testing.assert_close(p.pop("mix_r_D").detach(), want)
    assert not p


def test_rglru():
    p = build(RGLRUConfig())
    for name in ("y", "x", "conv", "r", "i", "out"):
        assert_zeros(p.pop(f"{name}.bias" if f"{name}.bias" in p else f"{name}.bias_D"))
    for name in ("y.weight", "x.weight"):
        assert_normal(p.pop(name), WIDTH**-0.5)
    for name in ("r.weight_HVK", "i.weight_HVK"):
        assert_normal(p.pop(name), (WIDTH / 4) ** -0.5)
    assert_normal(p.pop("conv.weight_DW"), 0.05)
    assert_normal(p.pop("out.weight"), (2 / DEPTH / WIDTH) ** 0.5)
    assert list(p) == ["lam_E"]  # tests/golden/test_rglru.py


def test_state_spaces():
    """Without poles, which are in tests/golden/test_scans.py."""
    for config, poles, size in ((LRUConfig(), WIDTH, 2 * WIDTH), (S5Config(), WIDTH // 2, 2 * WIDTH)):
        p = build(config)
        assert p.pop("skip_D").std().item() == pytest.approx(1.0, rel=0.2)
        for name in ("out1", "out2"):
            assert_uniform(p.pop(f"{name}.weight"), WIDTH**-0.5)
            assert p.pop(f"{name}.bias").abs().max() <= WIDTH**-0.5
        assert_normal(p.pop("b.weight"), size**-0.5)
        assert p["c.weight"].std().item() == pytest.approx(WIDTH**-0.5, rel=0.05)
        assert p.pop("c.weight").shape == (WIDTH, 2 * poles)
