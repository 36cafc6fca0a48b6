"""Models with every option on that foreign checkpoints have, in everything that is done with a model."""

import json
from dataclasses import replace

import pytest
import torch

from exlstm import load, save
from exlstm.infer.quantize import quantize
from exlstm.infer.token_loop import TokenLoop
from exlstm.mixers.mlstm import MLSTMConfig
from exlstm.mixers.mlstm_large import MLSTMLargeConfig
from exlstm.mixers.slstm import SLSTMConfig
from exlstm.models.block import BlockConfig, MLPConfig
from exlstm.models.lm import LM, LMConfig
from exlstm.models.pattern import lm_from_pattern
from exlstm.models.summary import flops_per_token, parameters
from exlstm.nn.layers import ACTIVATIONS
from exlstm.train.optimizer import decay_groups

VOCAB, WIDTH = 23, 32


def options(activation="silu", *, bias=True, norm="rms", out_norm=False):
    """A block of each kind that takes them."""
    mlp = MLPConfig(hidden=24, activation=activation, bias=bias)
    mixers = (MLSTMConfig(bias=bias, up_factor=1.35, up_multiple=4), SLSTMConfig(), MLSTMLargeConfig(bias=bias))
    return LMConfig(
        vocab_size=VOCAB, width=WIDTH, blocks=tuple(BlockConfig(mixer=mixer, mlp=mlp) for mixer in mixers),
        norm=norm, norm_bias=bias, out_norm=out_norm,
    )  # fmt: skip


def build(config, dtype=torch.float32):
    """Weights of which all matter."""
    torch.manual_seed(3)
    model = LM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model.to(dtype).eval()


def tokens(B=2, T=12, seed=0):
    return torch.randint(VOCAB, (B, T), generator=torch.Generator().manual_seed(seed))


def biases(model):
    """The parameters that only options add."""
    known = {name for name, _ in LM(options(bias=False, out_norm=True)).named_parameters()}
    return {name: x for name, x in model.named_parameters() if name not in known}


def test_a_new_model_has_biases_of_zero_and_computes_what_it_would_without_them():
    model, plain = LM(options("gelu", out_norm=True)), LM(options("gelu", bias=False, out_norm=True))
    added = biases(model)
    per_mlp, per_norms = ["mlp.up.bias", "mlp.down.bias"], ["mixer_norm.bias", "mlp_norm.bias"]
    mixers = [
        ["mixer.up.bias", "mixer.down.bias", "mixer.q.bias_D", "mixer.k.bias_D", "mixer.v.bias_D"], [],
        [f"mixer.{name}.bias" for name in ("q", "k", "v", "o", "norm", "out")],
    ]  # fmt: skip
    want = [f"blocks.{n}.{name}" for n, own in enumerate(mixers) for name in (*own, *per_mlp, *per_norms)]
    assert sorted(added) == sorted([*want, "norm.bias"])
    assert not any(x.any() for x in added.values())
    model.load_state_dict(plain.state_dict(), strict=False)
    torch.testing.assert_close(model(tokens())[0], plain(tokens())[0], rtol=1e-5, atol=1e-5)


def test_every_bias_matters_and_learns():
    model = build(options("gelu", out_norm=True), torch.float64)
    want, _ = model(tokens())
    want.square().sum().backward()
    for name, bias in biases(model).items():
        assert bias.grad.abs().max() > 1e-6, name
        with torch.no_grad():
            before = bias.clone()
            bias += 0.1 * torch.randn_like(bias)  # not one number for all: a norm would take it away again
            assert (model(tokens())[0] - want).abs().max() > 1e-4, name
            bias.copy_(before)


def test_no_norm_before_the_head():
    """What the head reads is then the last block's output itself."""
    model = build(options())
    assert model.norm is None
    assert not any(name.startswith("norm.") for name, _ in model.named_parameters())
    seen = []
    model.blocks[-1].register_forward_hook(lambda _module, _inputs, out: seen.append(out[0]))
    hidden, _ = model.hidden(tokens())
    assert torch.equal(hidden, seen[0])
    assert torch.equal(model(tokens())[0], model.head(hidden))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_token_by_token_is_the_whole(activation):
    model, x, after, logits = build(options(activation), torch.float64), tokens(), None, []
    for piece in x.split([1, 1, 4, 1, 5], dim=1):
        part, after = model(piece, after)
        logits.append(part)
    torch.testing.assert_close(torch.cat(logits, dim=1), model(x)[0], rtol=1e-9, atol=1e-9)


def test_padding_and_resets():
    """A row in a ragged batch and a document behind another are as alone, whatever a bias adds to nothing."""
    model, x = build(options(), torch.float64), tokens(3)
    logits, state = model(x, lengths_B=torch.tensor([12, 0, 5]))
    step, _ = model(tokens(3, 1, seed=5), state)
    want, alone = model(x[2:, :5])
    torch.testing.assert_close(logits[2:, :5], want, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(step[2:], model(tokens(3, 1, seed=5)[2:], alone)[0], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(step[1:2], model(tokens(3, 1, seed=5)[1:2])[0], rtol=1e-9, atol=1e-9)
    reset = torch.zeros(3, 12, dtype=torch.bool)
    reset[:, 7] = True
    torch.testing.assert_close(model(x, reset_BT=reset)[0][:, 7:], model(x[:, 7:])[0], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("mode", ["bfloat16", "autocast"])
@pytest.mark.parametrize("config", [options(), options("selu", norm="layer", out_norm=True)], ids=["rms", "layer"])
def test_half_the_bits_give_about_the_same(mode, config):
    exact, _ = build(config, torch.float64)(tokens(T=40))
    model = build(config, torch.bfloat16 if mode == "bfloat16" else torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=mode == "autocast"):
        logits, _ = model(tokens(T=40))
    assert (logits - exact).norm() <= 0.05 * exact.norm()
    logits.float().sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


def both_ways(model, B, steps=8):
    """A loop that replays and one that calls, from the same state, and what they gave."""
    with torch.no_grad():
        _, state = model(tokens(B, 5, seed=2))
    loops = TokenLoop(model, state), TokenLoop(model, state, replay=False)
    return loops[0], *(torch.stack([loop(x_B) for x_B in tokens(B, steps).T], dim=1) for loop in loops)


REPLAYED = set(ACTIVATIONS) - {"selu"}


@pytest.mark.breadth(8)
@pytest.mark.parametrize("B", [1, 3])
@pytest.mark.parametrize("norm", ["layer", "rms"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_token_loop_gives_the_models_numbers(activation, norm, B):
    """Replayed where the activation is known there; else called, and it says why."""
    model = build(options(activation, norm=norm, out_norm=norm == "layer"))
    loop, replayed, called = both_ways(model, B)
    torch.testing.assert_close(replayed, called, rtol=0, atol=1e-4)
    exact = build(model.config, torch.float64)
    exact.load_state_dict({name: x.double() for name, x in model.state_dict().items()})
    torch.testing.assert_close(called.double(), both_ways(exact, B)[2], rtol=0, atol=1e-3)
    if activation in REPLAYED:
        assert loop.why_not is None
    else:
        assert "aten" in loop.why_not


def test_a_token_loop_in_bfloat16():
    """At most twice as wrong as calls are, with all mixers and with the last one alone."""
    whole = options(norm="layer", out_norm=True)
    for config in (whole, replace(whole, blocks=whole.blocks[2:] * 2)):
        loop, replayed, called = both_ways(build(config, torch.bfloat16), 2)
        assert loop.why_not is None
        wanted = both_ways(build(config, torch.bfloat16).double(), 2)[2]
        assert (replayed - wanted).norm() <= 2 * (called - wanted).norm()


@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_quantised_models_keep_their_biases(weights):
    model = build(options())
    small = quantize(model, weights)
    kept = dict(small.named_buffers()) | dict(small.named_parameters())
    for name, bias in biases(model).items():
        assert torch.equal(kept[name], bias), name
    loop, replayed, called = both_ways(small, 2)
    assert loop.why_not is None
    torch.testing.assert_close(replayed, called, rtol=0, atol=1e-4)
    without = build(options())
    with torch.no_grad():
        for bias in biases(without).values():
            bias.zero_()
    called_without = both_ways(quantize(without, weights), 2)[2]
    whole = both_ways(model, 2)[2]
    assert (called - whole).norm() < 0.5 * (called_without - whole).norm()


def test_biases_do_not_decay():
    decaying, others = decay_groups(build(options(out_norm=True)))
    assert set(biases(build(options(out_norm=True)))) <= set(others)
    assert set(decaying) == set(decay_groups(LM(options(bias=False, out_norm=True)))[0])


@pytest.mark.parametrize("mode", ["train", "prefill", "decode"])
def test_biases_are_parameters_and_no_matrices(mode):
    model, plain = LM(options(out_norm=True)), LM(options(bias=False, out_norm=True))
    assert flops_per_token(model, mode, 100) == flops_per_token(plain, mode, 100)
    assert parameters(model) == parameters(plain) + sum(x.numel() for x in biases(model).values())
    assert f"total {parameters(model):,} parameters" in model.summary()
    assert f"total {parameters(model) - 2 * WIDTH:,} parameters" in LM(replace(model.config, out_norm=False)).summary()


@pytest.mark.parametrize("out_norm", [True, False])
def test_saved_and_loaded(tmp_path, out_norm):
    model = build(options("relu2", out_norm=out_norm))
    save(model, tmp_path)
    again = load(tmp_path)
    assert again.config == model.config
    assert again.state_dict().keys() == model.state_dict().keys()
    assert torch.equal(again(tokens())[0], model(tokens())[0])
    assert again.blocks[0].mixer.q.bias_D.requires_grad


def test_a_model_saved_before_there_were_these_options(tmp_path):
    """Its config.json has none of these fields, and is of the same format."""
    model = build(lm_from_pattern("msMal", vocab_size=VOCAB, width=WIDTH))
    save(model, tmp_path)
    data = json.loads((tmp_path / "config.json").read_text())
    assert data["format"] == 1
    assert [data.pop(name) for name in ("norm_bias", "out_norm")] == [False, True]
    for block in data["blocks"]:
        added = {"mlstm": ["bias", "up_multiple"], "mlstm_large": ["bias"]}.get(block["mixer"]["kind"], [])
        assert [block["mixer"].pop(name) for name in added] in ([False, 64], [False], [])
        assert block["mlp"] is None or block["mlp"].pop("bias") is False
    (tmp_path / "config.json").write_text(json.dumps(data))
    again = load(tmp_path)
    assert again.config == model.config
    assert torch.equal(again(tokens())[0], model(tokens())[0])


def test_an_activation_that_is_not_known():
    with pytest.raises(ValueError, match=r"activation is 'swish'; it must be one of gelu, .*silu"):
        LM(options("swish"))


def test_a_plain_stack_is_its_mixers_and_mlps_one_after_the_other(tmp_path):
    config = replace(options("gelu", out_norm=True), residual=False)
    model, x_BT = build(config), tokens()
    assert not [name for name, _ in model.named_parameters() if "mixer_norm" in name or "mlp_norm" in name]
    with torch.no_grad():
        x_BTD = model.embed(x_BT)
        for block in model.blocks:
            x_BTD = block.mlp(block.mixer(x_BTD, None)[0])
        logits_BTC, state = model(x_BT)
        torch.testing.assert_close(logits_BTC, model.head(model.norm(x_BTD)))
        loop = TokenLoop(model, model(x_BT[:, :8])[1])
        for step in range(8, 12):
            torch.testing.assert_close(loop(x_BT[:, step]), logits_BTC[:, step], rtol=1e-4, atol=1e-4)
    assert loop.why_not is None
    save(model, tmp_path / "plain")
    again = load(tmp_path / "plain")
    assert again.config == config
    torch.testing.assert_close(again(x_BT)[0], logits_BTC)


@pytest.mark.parametrize("gate", ["input_gate", "forget_gate"])
@pytest.mark.parametrize("sees", ["bias", "start"])
def test_gates_that_do_not_see_the_input_stay_constant_in_training(gate, sees):
    config = lm_from_pattern("mm", vocab_size=VOCAB, width=WIDTH)
    mixer = replace(config.blocks[0].mixer, **{f"{gate}_sees": sees})
    torch.manual_seed(0)
    model = LM(replace(config, blocks=(BlockConfig(mixer=mixer),) * 2))
    own = f"{gate[0]}."
    before = {name: x.clone() for name, x in model.named_parameters()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1)
    for step in range(3):
        logits_BTC, _ = model(tokens(seed=step))
        torch.nn.functional.cross_entropy(logits_BTC.flatten(0, 1), tokens(seed=step + 1).flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()
    moved = {name for name, x in model.named_parameters() if not torch.equal(x, before[name])}
    still = set(before) - moved
    expected = {f"blocks.{n}.mixer.{own}weight" for n in range(2)}
    assert still == expected | ({f"blocks.{n}.mixer.{own}bias" for n in range(2)} if sees == "start" else set())
    assert not any(before[name].any() for name in expected)
