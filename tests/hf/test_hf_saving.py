"""One folder, two readers: what exlstm.save writes transformers reads, and the other way round."""

import importlib
import json
import sys

import pytest
import torch
import transformers
from hf_cases import build, tokens
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

import exlstm
import exlstm.hf
from exlstm.hf import ExlstmConfig, ExlstmForCausalLM, from_lm


def assert_same(one, two):
    a, b = one.state_dict(), two.state_dict()
    assert a.keys() == b.keys()
    for name, x in a.items():
        assert x.dtype == b[name].dtype, name
        assert torch.equal(x, b[name]), name


@pytest.mark.parametrize(
    ("dtype", "tied"), [(torch.float64, False), (torch.bfloat16, True), (torch.float32, True)], ids=str
)
def test_both_ways(tmp_path, dtype, tied):
    lm = build(dtype=dtype, tie_embeddings=tied)
    exlstm.save(lm, tmp_path / "ours")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    assert type(model) is ExlstmForCausalLM
    assert model.config.lm_config() == lm.config
    assert_same(model, lm)
    model.save_pretrained(tmp_path / "theirs")
    back = exlstm.load(tmp_path / "theirs")
    assert back.config == lm.config
    assert_same(back, lm)
    for one in (model, back):
        assert (one.head.weight is one.embed.weight) == tied
    stored = load_file(tmp_path / "theirs" / "model.safetensors")
    assert stored.keys() == load_file(tmp_path / "ours" / "model.safetensors").keys()
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "theirs")
    assert_same(again, lm)
    assert_close(again(tokens(1, 4)).logits, back.eval()(tokens(1, 4))[0])


def test_another_dtype(tmp_path):
    lm = build(dtype=torch.float32)
    exlstm.save(lm, tmp_path)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert_same(model, exlstm.load(tmp_path, dtype=torch.bfloat16))


def test_shards(tmp_path):
    lm = build(dtype=torch.float32)
    from_lm(lm).save_pretrained(tmp_path, max_shard_size="30KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    assert_same(transformers.AutoModelForCausalLM.from_pretrained(tmp_path), lm)
    assert_same(exlstm.load(tmp_path), lm)


def test_a_run_is_not_replaced_by_a_model(tmp_path):
    """Its config.json and tokenizer.json would be."""
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "config.json").write_text("{}")
    model = from_lm(build("m", torch.float32))
    for part in (model, model.config):
        with pytest.raises(ValueError, match="is a run of exlstm train"):
            part.save_pretrained(tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["checkpoints", "config.json"]
    assert (tmp_path / "config.json").read_text() == "{}"


def test_what_transformers_adds_to_config_json_does_not_matter(tmp_path):
    """Token ids, the classes of a Trainer's run, and settings of outputs: none of them is of the architecture."""
    lm = build("m", torch.float32)
    model = from_lm(lm)
    for name, value in {
        "bos_token_id": 1,
        "eos_token_id": [1, 2],
        "pad_token_id": 1,
        "output_hidden_states": True,
    }.items():
        setattr(model.config, name, value)
    model.save_pretrained(tmp_path)
    data = json.loads((tmp_path / "config.json").read_text())
    assert data["model_type"] == "exlstm"
    assert data["eos_token_id"] == [1, 2]
    assert_same(exlstm.load(tmp_path), lm)


@pytest.mark.parametrize("name", exlstm.PRESETS)
def test_every_architecture_survives(name):
    config = exlstm.preset(name)
    theirs = ExlstmConfig.from_lm(config)
    assert theirs.lm_config() == config
    again = ExlstmConfig.from_dict(json.loads(theirs.to_json_string()))
    assert again.lm_config() == config
    assert (again.hidden_size, again.num_hidden_layers, again.vocab_size) == (
        config.width,
        len(config.blocks),
        config.vocab_size,
    )
    assert again.tie_word_embeddings == config.tie_embeddings


def test_no_window_is_cut(tmp_path):
    """lm-evaluation-harness asks these names in this order, and takes 2048 where it finds none."""
    config = ExlstmConfig.from_lm(build("m").config)
    assert not hasattr(config, "n_positions")
    assert config.max_position_embeddings > 2**30


def test_missing_weights_are_drawn_as_in_a_fresh_model(tmp_path):
    lm = build("ms", torch.float32)
    exlstm.save(lm, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    for name in ("norm.weight", "blocks.0.mixer.up.weight"):
        tensors[name] += 1
        del tensors[name]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    model, loading = ExlstmForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert set(loading["missing_keys"]) == {"norm.weight", "blocks.0.mixer.up.weight"}
    assert torch.equal(model.norm.weight, torch.ones_like(model.norm.weight))
    spread = model.blocks[0].mixer.up.weight.std() / lm.blocks[0].mixer.up.weight.std()
    assert 0.9 < spread < 1.1
    assert torch.equal(model.embed.weight, lm.embed.weight)


def test_a_quantised_folder_is_refused(tmp_path):
    exlstm.save(exlstm.quantize(build("m", torch.float32), "int8"), tmp_path)
    with pytest.raises(ValueError, match="int8 weights, which transformers cannot read"):
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path)


def test_a_config_of_another_format_is_refused():
    data = ExlstmConfig.from_lm(build("m").config).to_dict()
    with pytest.raises(ValueError, match="format 2"):
        ExlstmConfig.from_dict({**data, "format": 2})


def test_without_the_extra_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=r"pip install 'exlstm\[hf\]'"):
        importlib.reload(exlstm.hf)
