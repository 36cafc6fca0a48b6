"""Folders of encoders and forecasters: bit for bit, and one sentence for what is none."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

import exlstm
from exlstm.models.encoder import encoder_from_pattern
from exlstm.models.forecaster import Forecaster, ForecasterConfig, forecaster_from_pattern
from exlstm.models.locate import locate


def encoder(pattern="ms", *, dtype=torch.float32, **options):
    torch.manual_seed(0)
    config = encoder_from_pattern(pattern, input_size=3, width=16, heads=2, **options)
    return exlstm.XLSTM(3, 16, config=config).to(dtype).eval()


def forecaster(pattern="ms", *, dtype=torch.float32, **changes):
    torch.manual_seed(0)
    config = forecaster_from_pattern(pattern, width=16, heads=2, patch=4, season=3)
    return Forecaster(replace(config, **changes)).to(dtype).eval()


def output(model):
    channels = 1 if isinstance(model, Forecaster) else model.input_size
    x = torch.randn(2, 9, channels, generator=torch.Generator().manual_seed(1)).to(next(model.parameters()).dtype)
    with torch.no_grad():
        return model(x[..., 0], 5) if isinstance(model, Forecaster) else model(x)[0]


MODELS = {
    "encoder": encoder,
    "bidirectional, other mixers": lambda: encoder("mamba,a,l", bidirectional=True),
    "encoder in bfloat16": lambda: encoder(dtype=torch.bfloat16),
    "blocks alone": lambda: exlstm.XLSTM(
        16, 16, config=replace(encoder_from_pattern("s", input_size=16, width=16), out_norm=False)
    ),
    "forecaster": forecaster,
    "forecaster of other levels": lambda: forecaster("sa", levels=(0.05, 0.5, 0.95), dtype=torch.float64),
}


@pytest.mark.parametrize("made", MODELS.values(), ids=MODELS)
def test_round_trip(made, tmp_path):
    """Config, tensors with their dtypes, and outputs; and it goes on learning."""
    model = made()
    exlstm.save(model, tmp_path / "new" / "folder")
    assert sorted(path.name for path in (tmp_path / "new" / "folder").iterdir()) == ["config.json", "model.safetensors"]
    before = torch.get_rng_state()
    again = exlstm.load(tmp_path / "new" / "folder").eval()
    assert torch.equal(torch.get_rng_state(), before), "loading draws no random numbers"
    assert type(again) is type(model)
    assert again.config == model.config
    want, got = model.state_dict(), again.state_dict()
    assert list(got) == list(want)
    assert all(torch.equal(got[name], x) and got[name].dtype == x.dtype for name, x in want.items())
    assert torch.equal(output(again), output(model))
    assert all(weight.requires_grad for weight in again.parameters())


def test_a_loaded_forecaster_learns_on(tmp_path):
    """Its loss is that of the saved one, with gradients for all weights: no part of it is without numbers."""
    model = forecaster()
    exlstm.save(model, tmp_path)
    again = exlstm.load(tmp_path)
    x = torch.randn(2, 16, generator=torch.Generator().manual_seed(2))
    loss = again.loss(x, 12)
    assert torch.equal(loss, model.loss(x, 12))
    loss.backward()
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in again.parameters())


def test_another_dtype_and_device(tmp_path):
    model = encoder()
    exlstm.save(model, tmp_path)
    again = exlstm.load(tmp_path, dtype=torch.float64)
    assert {weight.dtype for weight in again.parameters()} == {torch.float64}
    torch.testing.assert_close(output(again), output(model).double(), rtol=1e-4, atol=1e-5)
    there = exlstm.load(tmp_path, device="meta")
    assert {x.device.type for x in (*there.parameters(), *there.buffers())} == {"meta"}


def test_the_format_is_what_it_was():
    """What a change here makes unreadable is every saved forecaster."""
    from exlstm.models.checkpoints.own import config_to_json, parsed

    data = config_to_json(forecaster("s").config)
    assert {name: value for name, value in data.items() if name != "blocks"} == {
        "format": 1, "model_type": "exlstm_forecaster", "width": 16, "patch": 4, "season": 3,
        "levels": (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9), "hidden": 32, "norm": "rms", "norm_eps": 1e-6,
        "dropout": 0.0, "instance_norm": True, "relative": True,
    }  # fmt: skip
    assert parsed(json.loads(json.dumps(data)), ForecasterConfig) == forecaster("s").config


def damaged(folder, kind):
    """A folder of a forecaster with something wrong in it."""
    exlstm.save(forecaster(), folder)
    weights, config = folder / "model.safetensors", folder / "config.json"
    data, tensors = json.loads(config.read_text()), load_file(weights)
    if kind == "cut off":
        weights.write_bytes(weights.read_bytes()[:1000])
    elif kind == "no weights":
        weights.unlink()
    elif kind == "a tensor less":
        save_file({name: x for name, x in tensors.items() if name != "head.up.bias"}, weights)
    elif kind == "another width":
        config.write_text(json.dumps({**data, "width": 32}))
    elif kind == "another format":
        config.write_text(json.dumps({**data, "format": 2}))
    elif kind == "levels that fall":
        config.write_text(json.dumps({**data, "levels": [0.9, 0.1]}))
    elif kind == "of an encoder":
        exlstm.save(encoder(), folder, overwrite=True)
        save_file(tensors, weights)


@pytest.mark.parametrize(("kind", "message"), [
    ("cut off", "model.safetensors cannot be read"),
    ("no weights", "has no weights, such as model.safetensors; pass a folder with a model"),
    ("a tensor less", "does not fit its config: head.up.bias is missing"),
    ("another width", r"embed\..* has shape .*, and the rest of the model needs"),
    ("another format", "of type 'exlstm_forecaster', format 2; this version reads 'exlstm_forecaster' of format 1"),
    ("levels that fall", r"levels is \(0.9, 0.1\); they must rise"),
    ("of an encoder", "does not fit its config: "),
])  # fmt: skip
def test_a_wrong_folder_costs_one_sentence(kind, message, tmp_path):
    damaged(tmp_path, kind)
    with pytest.raises(ValueError, match=message) as error:
        exlstm.load(tmp_path)
    assert "\n" not in str(error.value)


def test_what_cannot_be_saved_is_refused(tmp_path):
    class Other(torch.nn.Module):
        """Something in the place of the blocks."""

    exlstm.save(encoder(), tmp_path / "there")
    with_part = encoder()
    with_part.extra = torch.nn.Linear(2, 2)
    for model, options, message in (
        (
            Forecaster(forecaster().config, Other()),
            {},
            r"not what its config says: stack.blocks.*; save a Forecaster of",
        ),
        (with_part, {}, r"extra.bias has shape \(2,\), the config needs None; save an XLSTM of that config"),
        (encoder(), {"layout": "classic"}, "layout 'classic' is one of language models; save XLSTM as 'exlstm'"),
        (torch.nn.Linear(2, 2), {}, "the model is Linear; save an LM, an XLSTM or a Forecaster"),
    ):
        with pytest.raises(ValueError, match=message):
            exlstm.save(model, tmp_path / "new", **options)
    assert not (tmp_path / "new").exists()
    with pytest.raises(ValueError, match=r"holds 'config.json' of a model; name another folder"):
        exlstm.save(forecaster(), tmp_path / "there")
    exlstm.save(forecaster(), tmp_path / "there", overwrite=True)
    assert isinstance(exlstm.load(tmp_path / "there"), Forecaster)


def test_where_a_language_model_is_needed_others_are_named(tmp_path):
    """For `exlstm generate` and its like; and bits are for language models."""
    exlstm.save(encoder(), tmp_path)
    with pytest.raises(ValueError, match="holds a model of type 'exlstm_encoder', and a language model is needed here"):
        locate(tmp_path).load()
    with pytest.raises(ValueError, match="holds no language model, and weights='int8' is for these; leave it out"):
        exlstm.load(tmp_path, weights="int8")
