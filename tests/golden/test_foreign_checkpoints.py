"""Checkpoints of the official packages, read and written: the same logits, prefill and step by step, both ways.

Random weights and float64 where the package computes in it, so that a wrong row, gate or gain cannot hide in rounding.
"""

import json

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, xLSTMConfig, xLSTMForCausalLM
from xlstm import (
    FeedForwardConfig,
    mLSTMBlockConfig,
    mLSTMLayerConfig,
    sLSTMBlockConfig,
    sLSTMLayerConfig,
    xLSTMLMModel,
    xLSTMLMModelConfig,
)
from xlstm.xlstm_large.from_pretrained import load_from_pretrained
from xlstm.xlstm_large.model import xLSTMLarge, xLSTMLargeConfig

from exlstm import convert, load, save

VOCAB, T = 50, 20


def tokens(B=2):
    return torch.randint(VOCAB, (B, T), generator=torch.Generator().manual_seed(1))


def shaken(model, dtype=torch.float64):
    """Random everywhere, also where initial values are zeros or ones."""
    torch.manual_seed(0)
    model = model.to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return model.eval()


def same_model(one, two):
    assert one.config == two.config
    a, b = one.state_dict(), two.state_dict()
    assert a.keys() == b.keys()
    for name, x in a.items():
        torch.testing.assert_close(x, b[name], rtol=0, atol=1e-15, msg=lambda text, name=name: f"{name}: {text}")


# ---------------------------------------------------------------------------------------------------- classic

CLASSIC = {
    "1:0": {"slstm_at": []},
    "0:1": {"mlstm": None},
    "mixed": {"slstm_at": [1]},
    "twelve blocks": {"slstm_at": [3, 10], "blocks": 12, "width": 32},
    "odd width": {"slstm_at": [1], "width": 36, "heads": 2},
    "three heads": {"slstm_at": [0], "width": 96, "heads": 3},
    "one head": {"slstm_at": [0], "heads": 1},
    "biases": {"slstm_at": [1], "bias": True, "ffn": {"bias": True}},
    "tied": {"slstm_at": [1], "tie_weights": True},
    "no last norm": {"slstm_at": [1], "add_post_blocks_norm": False},
    "other windows and blocks": {"slstm_at": [1], "mlstm": {"conv1d_kernel_size": 3, "qkv_proj_blocksize": 8}},
    "inner width": {"slstm_at": [1], "mlstm": {"proj_factor": 1.3, "round_proj_up_to_multiple_of": 8}},
    "no convolution": {"slstm_at": [1], "slstm": {"conv1d_kernel_size": 0}},
    "no gain": {"slstm_at": [1], "slstm": {"group_norm_weight": False}},
    "wide MLP": {"slstm_at": [1], "ffn": {"proj_factor": 2.6667, "act_fn": "swish"}},
    "narrow MLP": {"slstm_at": [1], "ffn": {"proj_factor": 1.3, "round_proj_up_to_multiple_of": 4, "act_fn": "relu^2"}},
    "no MLP": {"slstm_at": [1], "ffn": None},
}


def classic_model(settings):
    """The package's model from settings in plain data, as our config.yaml holds them."""
    settings = dict(settings)
    mlstm, slstm = settings.pop("mlstm_block", None), settings.pop("slstm_block", None)
    if mlstm:
        mlstm = mLSTMBlockConfig(mlstm=mLSTMLayerConfig(**mlstm["mlstm"]))
    if slstm:
        ffn = None if slstm["feedforward"] is None else FeedForwardConfig(**slstm["feedforward"])
        slstm = sLSTMBlockConfig(slstm=sLSTMLayerConfig(**slstm["slstm"]), feedforward=ffn)
    config = xLSTMLMModelConfig(mlstm_block=mlstm, slstm_block=slstm, **settings)
    if config.tie_weights:
        config.add_embedding_dropout = False
    return xLSTMLMModel(config)


def classic_settings(*, slstm_at=None, blocks=2, width=64, heads=4, mlstm=(), slstm=(), ffn=(), **top):
    settings = {"vocab_size": VOCAB, "context_length": 32, "num_blocks": blocks, "embedding_dim": width, **top}
    if mlstm is not None:
        settings |= {"slstm_at": slstm_at, "mlstm_block": {"mlstm": {"num_heads": heads, **dict(mlstm)}}}
    if mlstm is None or slstm_at:
        layer = {"num_heads": heads, "backend": "vanilla", "dtype": "float32", **dict(slstm)}
        settings["slstm_block"] = {"slstm": layer, "feedforward": None if ffn is None else dict(ffn)}
    return settings


def compare_classic(theirs, ours):
    """float64: steps to the last digits; in the parallel form eps has another size there."""
    state, after, x = {}, None, tokens()
    with torch.no_grad():
        torch.testing.assert_close(ours(x)[0], theirs(x), rtol=1e-4, atol=1e-4)
        for t in range(6):
            want, state = theirs.step(x[:, t : t + 1].clone(), state)
            got, after = ours(x[:, t : t + 1], after)
            torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-8)


@pytest.fixture(params=CLASSIC)
def classic(request, tmp_path):
    """(the package's model, the folder with its state dict and settings)"""
    settings = classic_settings(**CLASSIC[request.param])
    model = shaken(classic_model(settings))
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"training": {"lr": 1e-3}, "model": settings}))
    return model, tmp_path


def test_classic_theirs_to_ours(classic, capsys):
    model, folder = classic
    compare_classic(model, load(folder))
    assert "num_heads" not in capsys.readouterr().err


def test_classic_ours_to_theirs(classic):
    """What `save` writes, the package builds and loads strictly; what it holds is what we had."""
    model, folder = classic
    ours = load(folder)
    save(ours, folder / "out", layout="classic")
    again = classic_model(yaml.safe_load((folder / "out/config.yaml").read_text())).double().eval()
    missing = again.load_state_dict(load_file(folder / "out/model.safetensors"), strict=False)
    assert not missing.unexpected_keys
    assert set(missing.missing_keys) <= set()
    compare_classic(again, ours)
    same_model(load(folder / "out"), ours)


def test_classic_cuda_arrangement(tmp_path):
    """The same weights as the `cuda` cell stores them, by the formulas that were verified on it."""
    settings = classic_settings(slstm_at=[1], heads=2, width=64)
    model = shaken(classic_model(settings))
    tensors = {name: x.clone() for name, x in model.state_dict().items()}
    (kernel,) = (name for name in tensors if name.endswith("_recurrent_kernel_"))
    bias = kernel.replace("_recurrent_kernel_", "_bias_")
    H, K = 2, 32
    tensors[kernel] = tensors[kernel].view(H, 4, K, K).permute(0, 3, 1, 2).reshape(H, K, 4 * K).contiguous()
    tensors[bias] = tensors[bias].view(4, H, K).permute(1, 0, 2).reshape(-1).contiguous()
    save_file(tensors, tmp_path / "model.safetensors")
    compare_classic(model, load(tmp_path))


def test_classic_without_settings_says_what_it_assumes(tmp_path, capsys):
    model = shaken(classic_model(classic_settings(slstm_at=[1])))
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    compare_classic(model, load(tmp_path / "model.safetensors"))
    note = capsys.readouterr().err
    assert "does not say" in note
    assert "act_fn gelu" in note
    assert note.count("\n") == 1


# ---------------------------------------------------------------------------------------------- xlstm-large

LARGE = {
    "plain": {},
    "eleven blocks": {"num_blocks": 11, "embedding_dim": 64},
    "odd widths": {"embedding_dim": 96, "num_heads": 3, "qk_dim_factor": 0.25, "ffn_proj_factor": 1.7},
    "narrow MLP": {"embedding_dim": 40, "num_heads": 2, "ffn_round_up_to_multiple_of": 4},
    "biases": {"use_bias": True},
    "no last norm": {"add_out_norm": False},
    "other caps": {"gate_soft_cap": 7.0, "output_logit_soft_cap": 11.0, "norm_eps": 1e-4},
    "fused": {"weight_mode": "fused", "qk_dim_factor": 0.25},
    "fused with biases": {"weight_mode": "fused", "use_bias": True},
}


def large_model(**options):
    config = xLSTMLargeConfig(**{
        "embedding_dim": 64, "num_heads": 4, "num_blocks": 2, "vocab_size": VOCAB, "chunk_size": 16,
        "mode": "inference", "return_last_states": True, "chunkwise_kernel": "chunkwise--native_autograd",
        "sequence_kernel": "native_sequence__native", "step_kernel": "native", "autocast_kernel_dtype": "float32",
        "inference_state_dtype": "float64", "norm_reduction_force_float32": False, **options,
    })  # fmt: skip
    return xLSTMLarge(config), config


def compare_large(theirs, ours, dtype=torch.float64):
    x, state, after = tokens(), None, None
    close = {"rtol": 1e-8, "atol": 1e-8} if dtype == torch.float64 else {"rtol": 1e-4, "atol": 2e-4}
    with torch.no_grad():
        want, _ = theirs(x)
        torch.testing.assert_close(ours(x)[0], want, **close)
        for t in range(6):
            want, state = theirs(x[:, t : t + 1], state)
            got, after = ours(x[:, t : t + 1], after)
            torch.testing.assert_close(got, want, **close)


@pytest.fixture(params=LARGE)
def large(request, tmp_path):
    """(the package's model, the folder with its weights in two shards and its settings)"""
    model, config = large_model(**LARGE[request.param])
    model = shaken(model)
    names = sorted(model.state_dict())  # as safetensors gives them back: k before q
    for number, part in enumerate((names[::2], names[1::2])):
        tensors = {name: model.state_dict()[name] for name in part}
        save_file(tensors, tmp_path / f"model_{number}.safetensors")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(vars(config)))
    return model, tmp_path


def test_large_theirs_to_ours(large, capsys):
    model, folder = large
    compare_large(model, load(folder))
    assert capsys.readouterr().err == ""


def test_large_ours_to_theirs(large):
    """`load_from_pretrained` reads what `save` writes; it computes in float32."""
    model, folder = large
    ours = load(folder)
    save(ours.float(), folder / "out", layout="xlstm-large")
    again = load_from_pretrained(folder / "out").eval()
    compare_large(again, load(folder / "out"), torch.float32)
    same_model(load(folder / "out"), ours.float())


# ---------------------------------------------------------------------------------------------- transformers

HUGGINGFACE = {
    "plain": {},
    "odd widths": {"hidden_size": 192, "num_heads": 2, "qk_dim_factor": 1 / 3},
    "eleven blocks": {"num_hidden_layers": 11},
    "biases": {"use_bias": True},
    "said to be tied": {"tie_word_embeddings": True},  # which it is not: transformers ties nothing in this model
    "no last norm": {"add_out_norm": False},
    "other caps": {"gate_soft_cap": 7.0, "output_logit_soft_cap": 11.0, "norm_eps": 1e-4},
}


def huggingface_model(**options):
    options = {"vocab_size": VOCAB, "hidden_size": 128, "num_hidden_layers": 2, "num_heads": 4, **options}
    config = xLSTMConfig(
        embedding_dim=options["hidden_size"], num_blocks=options["num_hidden_layers"], chunk_size=16, **options
    )
    return shaken(xLSTMForCausalLM(config), torch.float32)


def compare_huggingface(theirs, ours):
    """float32, which is what transformers computes logits in: in one go, and with its cache."""
    x, cache, state = tokens(), None, None
    close = {"rtol": 1e-4, "atol": 4e-4}
    with torch.no_grad():
        torch.testing.assert_close(ours(x)[0], theirs(x, use_cache=False).logits, **close)
        for part in (x[:, :9], x[:, 9:10], x[:, 10:11]):
            out = theirs(part, cache_params=cache, use_cache=True)
            cache = out.cache_params
            got, state = ours(part, state)
            torch.testing.assert_close(got, out.logits, **close)


@pytest.fixture(params=HUGGINGFACE)
def huggingface(request, tmp_path):
    """(transformers' model, the folder it was saved in, as several shards)"""
    model = huggingface_model(**HUGGINGFACE[request.param])
    model.save_pretrained(tmp_path / "theirs", max_shard_size="200KB")
    return model, tmp_path


def test_huggingface_theirs_to_ours(huggingface, capsys):
    model, folder = huggingface
    assert len(list((folder / "theirs").glob("*.safetensors"))) > 1
    compare_huggingface(model, load(folder / "theirs"))
    assert capsys.readouterr().err == ""


def test_huggingface_ours_to_theirs(huggingface):
    """transformers' Auto class loads what `save` writes."""
    model, folder = huggingface
    ours = load(folder / "theirs")
    save(ours, folder / "out", layout="huggingface")
    again = AutoModelForCausalLM.from_pretrained(folder / "out").eval()
    assert type(again) is xLSTMForCausalLM
    compare_huggingface(again, ours)
    same_model(load(folder / "out"), ours)


def test_a_tied_head_is_stored_beside_its_embedding(tmp_path):
    """transformers would leave a missing head to chance."""
    ours = load_tied(tmp_path)
    save(ours, tmp_path / "out", layout="huggingface")
    compare_huggingface(AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval(), ours)


def load_tied(folder):
    """A model of transformers that was saved without its head."""
    model = huggingface_model()
    tensors = {name: x for name, x in model.state_dict().items() if name != "lm_head.weight"}
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({**model.config.to_dict(), "tie_word_embeddings": True}))
    ours = load(folder)
    assert ours.head.weight is ours.embed.weight
    return ours


def test_kernels_of_a_config_are_ignored(tmp_path):
    """A config from a GPU names kernels that this machine may not have."""
    model = huggingface_model()
    model.save_pretrained(tmp_path)
    data = json.loads((tmp_path / "config.json").read_text())
    data |= {"chunkwise_kernel": "chunkwise--triton_xl_chunk", "step_kernel": "triton", "sequence_kernel": "?"}
    (tmp_path / "config.json").write_text(json.dumps(data))
    compare_huggingface(model, load(tmp_path))


def test_bfloat16_within_the_rule(tmp_path):
    """A bfloat16 checkpoint: at most twice as wrong, against its own weights in float64, as transformers is."""
    model = huggingface_model()
    model.bfloat16().save_pretrained(tmp_path)
    truth, ours = load(tmp_path, dtype=torch.float64), load(tmp_path)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert ours.embed.weight.dtype == theirs.dtype == torch.bfloat16
    with torch.no_grad():
        want = truth(tokens())[0]
        assert 0 < wrong(ours(tokens())[0], want) <= 2 * wrong(theirs(tokens()).logits, want)


@pytest.mark.parametrize("case", ["1:0", "0:1", "mixed"])
def test_classic_bfloat16_within_the_rule(tmp_path, case):
    """At most twice as wrong as the package in bfloat16, both against these weights in float64."""
    settings = classic_settings(**CLASSIC[case])
    theirs = shaken(classic_model(settings)).bfloat16()
    torch.save(theirs.state_dict(), tmp_path / "weights.pt")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings))
    truth, ours = load(tmp_path, dtype=torch.float64), load(tmp_path)
    with torch.no_grad():
        want = truth(tokens())[0]
        assert 0 < wrong(ours(tokens())[0], want) <= 2 * wrong(theirs(tokens()), want)


def test_large_bfloat16_within_the_rule(tmp_path):
    """Step by step, for in bfloat16 the package cannot read a prompt on a CPU."""
    theirs, config = large_model(inference_state_dtype="float32")
    theirs = shaken(theirs).bfloat16()
    save_file(theirs.state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(vars(config)))
    truth, ours = load(tmp_path, dtype=torch.float64), load(tmp_path)
    state = after = exact = None
    error = their_error = 0.0
    with torch.no_grad():
        for t in range(12):
            x = tokens()[:, t : t + 1]
            want, exact = truth(x, exact)
            got, after = ours(x, after)
            other, state = theirs(x, state)
            error, their_error = error + wrong(got, want), their_error + wrong(other, want)
    assert 0 < error <= 2 * their_error


def wrong(got, want):
    return (got.double() - want).pow(2).mean().sqrt()


# ---------------------------------------------------------------------------------------------- conversions


def test_from_every_layout_to_every_other(tmp_path):
    """Bit for bit, in shards that hold little: large, fused -> huggingface -> large -> exlstm -> huggingface."""
    model, config = large_model(weight_mode="fused", embedding_dim=128)
    model, source = shaken(model, torch.float32), tmp_path / "theirs"
    source.mkdir()
    save_file(model.state_dict(), source / "model.safetensors")
    (source / "config.yaml").write_text(yaml.safe_dump(vars(config)))
    want = load(source)
    for number, layout in enumerate(("huggingface", "xlstm-large", "exlstm", "huggingface")):
        convert(source, tmp_path / str(number), layout=layout, shard_bytes=100_000)
        source = tmp_path / str(number)
        assert len(list(source.glob("*.safetensors"))) > 3
        same_model(load(source), want)
    compare_huggingface(AutoModelForCausalLM.from_pretrained(source).eval(), want)


def test_classic_through_ours_and_back(tmp_path):
    model = shaken(classic_model(classic_settings(slstm_at=[1])), torch.float32)
    (tmp_path / "theirs").mkdir()
    save_file(model.state_dict(), tmp_path / "theirs/model.safetensors")
    (tmp_path / "theirs/config.yaml").write_text(yaml.safe_dump(classic_settings(slstm_at=[1])))
    convert(tmp_path / "theirs", tmp_path / "ours")
    convert(tmp_path / "ours", tmp_path / "back", layout="classic")
    before, after = model.state_dict(), load_file(tmp_path / "back/model.safetensors")
    assert before.keys() == after.keys()
    for name, x in before.items():
        # a gain is stored less one, which costs a rounding
        torch.testing.assert_close(after[name], x, rtol=0, atol=1e-7, msg=lambda text, name=name: f"{name}: {text}")
