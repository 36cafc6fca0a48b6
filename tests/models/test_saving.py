"""Saving and loading: bit for bit, and nothing lost when something is wrong."""

import json
import os
import re
from functools import partial

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from exlstm.mixers import MIXERS
from exlstm.mixers.lstm import LSTMConfig
from exlstm.mixers.slstm import SLSTMConfig
from exlstm.models.block import BlockConfig
from exlstm.models.checkpoints.loading import load
from exlstm.models.checkpoints.own import config_from_json, config_to_json
from exlstm.models.checkpoints.saving import convert, save
from exlstm.models.lm import LM, LMConfig
from exlstm.models.pattern import lm_from_pattern
from exlstm.models.presets import PRESETS, preset


def build(pattern="msMal", dtype=torch.float32, **options):
    config = lm_from_pattern(pattern, vocab_size=11, width=32)
    return LM(LMConfig(**{**vars(config), **options})).to(dtype)


def assert_equal(one, two):
    assert one.config == two.config
    a, b = one.state_dict(), two.state_dict()
    assert a.keys() == b.keys()
    for name, x in a.items():
        assert x.dtype == b[name].dtype, name
        assert torch.equal(x, b[name]), name


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_round_trip(tmp_path, dtype, tied):
    model = build(dtype=dtype, tie_embeddings=tied)
    save(model, tmp_path / "new" / "folder")
    again = load(tmp_path / "new" / "folder")
    assert_equal(again, model)
    assert (again.head.weight is again.embed.weight) == tied
    assert all(p.requires_grad for p in again.parameters())
    x = torch.randint(11, (1, 5))
    assert torch.equal(again(x)[0], model(x)[0])
    again(x)[0].sum().backward()
    stored = load_file(tmp_path / "new" / "folder" / "model.safetensors")
    assert ("head.weight" in stored) == (not tied)
    assert sorted(os.listdir(tmp_path / "new" / "folder")) == ["config.json", "model.safetensors"]


MIXED = [
    LSTMConfig(heads=4),
    SLSTMConfig(recurrence_blocks=2),
    *(SLSTMConfig(recurrence=name, recurrence_blocks=2, recurrence_seed=5, recurrent_init="uniform")
      for name in ("diagonal", "low_rank", "sparse", "learned")),
]  # fmt: skip


@pytest.mark.parametrize("mixer", MIXED, ids=lambda mixer: getattr(mixer, "recurrence", "lstm"))
def test_structures_of_recurrent_weights(tmp_path, mixer):
    """A fixed graph is in config.json alone; it follows to a device like all else."""
    model = build(blocks=(BlockConfig(mixer=mixer),)).eval()
    save(model, tmp_path)
    again = load(tmp_path).eval()
    assert_equal(again, model)
    x = torch.randint(11, (1, 5))
    assert torch.equal(again(x)[0], model(x)[0])
    assert torch.equal(again.mixers[0].adjacency(), model.mixers[0].adjacency())
    there = load(tmp_path, device="meta")
    assert {x.device.type for x in (*there.parameters(), *there.buffers())} == {"meta"}
    assert not [name for name in load_file(tmp_path / "model.safetensors") if "sources" in name]


def test_loading_as_another_dtype(tmp_path):
    model = build(tie_embeddings=True)
    save(model, tmp_path)
    again = load(tmp_path, dtype=torch.bfloat16)
    assert_equal(again, model.to(torch.bfloat16))
    assert again.head.weight is again.embed.weight


def test_saving_over_an_older_model(tmp_path):
    save(build("m"), tmp_path)
    newer = build("sM")
    save(newer, str(tmp_path), overwrite=True)
    assert_equal(load(str(tmp_path)), newer)


def test_another_layout_over_an_older_model(tmp_path):
    """Nothing of the older one is left, such as the other layout's config."""
    save(build("M"), tmp_path)
    save(build("mm"), tmp_path, layout="classic", overwrite=True)
    assert sorted(os.listdir(tmp_path)) == ["config.yaml", "model.safetensors"]
    load(tmp_path)


def contents(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


# what lies in the folder, and what saving a model there must say; the last is whether overwrite=True changes that
TAKEN = [
    ({"config.json": "{}", "model.safetensors": ""}, "holds 'config.json' of a model; name another folder, or", True),
    ({"tokenizer.json": "{}"}, "holds 'tokenizer.json' of a model", True),
    ({"config.json": "{}", "tokenizer.json": "{}", "checkpoints/.tmp": ""}, "is a run of exlstm train", False),
    ({"model.safetensors": "", "optimizer.safetensors": "", "trainer.json": "{}"}, "holds 'optimizer.safeten", False),
    ({"config.json": "{}", "thesis.tex": "all of it"}, "holds 'thesis.tex', which belongs to no saved model", False),
    ({"model.safetensors/inside": ""}, "holds 'model.safetensors', which belongs to no saved model", False),
]  # fmt: skip


@pytest.mark.parametrize(("files", "message", "replaced"), TAKEN, ids=lambda value: str(value)[:24])
def test_what_a_save_would_destroy_is_refused(tmp_path, files, message, replaced):
    """By a save and by a conversion; before anything is written, and through a link, too."""
    target = tmp_path / "target"
    for name, text in files.items():
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (target / name).write_text(text)
    (tmp_path / "link").symlink_to(target, target_is_directory=True)
    model = build("m")
    save(model, tmp_path / "in")
    before = contents(target)
    for act in (partial(save, model), partial(convert, tmp_path / "in")):
        for folder in (target, tmp_path / "link", tmp_path / "in/../target"):
            for overwrite in (False, True)[: 1 if replaced else 2]:
                with pytest.raises(ValueError, match=message):
                    act(folder, overwrite=overwrite)
        assert contents(target) == before
    assert sorted(os.listdir(tmp_path)) == ["in", "link", "target"]
    if replaced:
        save(model, target, overwrite=True)
        assert_equal(load(target), model)


def test_hidden_files_do_not_count_and_stay(tmp_path):
    """A folder under version control may be empty otherwise."""
    (tmp_path / ".git").write_text("history")
    save(build("m"), tmp_path)
    save(build("m"), tmp_path, overwrite=True)
    assert (tmp_path / ".git").read_text() == "history"


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "file").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(ValueError, match=r"file is a file; name a folder"):
            save(build("m"), tmp_path / "file", overwrite=overwrite)
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize(
    ("source", "target", "relation"),
    [
        ("in", "in", "is"),
        ("in", "link", "is"),
        ("link", "in/../in", "is"),
        ("in/model.safetensors", "in", "holds"),
        ("in", ".", "holds"),
        ("in", "in/out", "is inside of"),
        ("link", "in/deep/out", "is inside of"),
    ],
)
def test_a_conversion_into_its_source_is_refused(tmp_path, monkeypatch, source, target, relation):
    monkeypatch.chdir(tmp_path)
    save(build("m"), "in")
    (tmp_path / "link").symlink_to("in", target_is_directory=True)
    before = contents(tmp_path)
    for overwrite in (False, True):
        with pytest.raises(ValueError, match=rf"^{re.escape(target)} {relation} the model to convert; name another"):
            convert(source, target, overwrite=overwrite)
    assert contents(tmp_path) == before


def test_a_loaded_file_may_be_replaced(tmp_path):
    """Weights are read, not mapped for good: saving over the folder a model came from does not change it."""
    save(build("m"), tmp_path)
    model = load(tmp_path)
    before = {name: x.clone() for name, x in model.state_dict().items()}
    save(build("m"), tmp_path, overwrite=True)
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())


@pytest.mark.parametrize("name", PRESETS)
def test_configs_survive_json(name):
    config = preset(name)
    data = json.loads(json.dumps(config_to_json(config)))
    assert config_from_json(data) == config
    assert (data["format"], data["model_type"]) == (1, "exlstm")


@pytest.mark.parametrize("name", MIXERS)
def test_every_mixer_is_saved_by_its_name(name):
    config = LMConfig(vocab_size=3, width=32, blocks=(BlockConfig(mixer=MIXERS[name]()),))
    data = config_to_json(config)
    assert data["blocks"][0]["mixer"]["kind"] == name
    assert config_from_json(data) == config


def test_the_format_is_what_it_was():
    """What version 1 of the format looks like. A change here is a change for every saved model."""
    assert config_to_json(lm_from_pattern("s", vocab_size=5, width=32)) == {
        "format": 1, "model_type": "exlstm", "vocab_size": 5, "width": 32, "norm": "layer", "norm_eps": 1e-5,
        "tie_embeddings": False, "logit_cap": None, "dropout": 0.0, "norm_bias": False, "out_norm": True,
        "embed_scale": None, "positions": None, "embed_norm": False, "residual": True,
        "blocks": [{
            "mixer": {
                "kind": "slstm", "heads": 4, "conv_width": 4, "forget_gate": "sigmoid", "cell_activation": "tanh",
                "recurrence": "block", "recurrence_blocks": None, "recurrence_rank": 4, "recurrence_degree": 4,
                "recurrence_seed": 0, "recurrent_init": "zeros", "forget_bias": "power_law", "norm_eps": 1e-5,
                "input_gate": "exp", "normalize": True,
            },
            "mlp": {"hidden": 64, "activation": "gelu", "bias": False, "gated": True},
        }],
    }  # fmt: skip


def test_options_that_came_later_may_be_missing():
    """In a config that an earlier version saved."""
    config = lm_from_pattern("ms", vocab_size=5, width=32)
    data = config_to_json(config)
    later = (
        {"forget_gate", "input_gate_sees", "forget_gate_sees"},
        {"input_gate", "normalize", *(n for n in data["blocks"][1]["mixer"] if n[:11] == "recurrence_")},
    )
    for block, names in zip(data["blocks"], later, strict=True):
        for name in names:
            del block["mixer"][name]
    del data["blocks"][1]["mlp"]["gated"]
    for name in ("embed_scale", "positions", "embed_norm", "residual"):
        del data[name]
    assert config_from_json(data) == config


def test_the_names_of_weights_are_what_they_were(tmp_path):
    """A renamed parameter makes every saved model unreadable."""
    save(build("msMal"), tmp_path)
    names = sorted(name.removeprefix("blocks.") for name in load_file(tmp_path / "model.safetensors"))
    mlp = ["mlp.down.weight", "mlp.up.weight", "mlp_norm.weight"]
    want = {
        0: ["mixer.conv.bias_D", "mixer.conv.weight_DW", "mixer.down.weight", "mixer.f.bias", "mixer.f.weight",
            "mixer.i.bias", "mixer.i.weight", "mixer.k.weight_HVK", "mixer.norm.weight", "mixer.q.weight_HVK",
            "mixer.skip", "mixer.up.weight", "mixer.v.weight_HVK", "mixer_norm.weight"],
        1: ["mixer.b_HGV", "mixer.conv.bias_D", "mixer.conv.weight_DW", "mixer.norm.weight", "mixer.r_HKGV",
            "mixer.w_HGVK", "mixer_norm.weight", *mlp],
        2: ["mixer.f.bias", "mixer.f.weight", "mixer.i.bias", "mixer.i.weight", "mixer.k.weight", "mixer.norm.weight",
            "mixer.o.weight", "mixer.out.weight", "mixer.q.weight", "mixer.v.weight", "mixer_norm.weight", *mlp],
        3: ["mixer.k.weight", "mixer.out.weight", "mixer.q.weight", "mixer.v.weight", "mixer_norm.weight", *mlp],
        4: ["mixer.b_G", "mixer.u_GV", "mixer.w_GD", "mixer_norm.weight", *mlp],
    }  # fmt: skip
    blocks = [f"{index}.{name}" for index, group in want.items() for name in group]
    assert names == sorted([*blocks, "embed.weight", "head.weight", "norm.weight"])


@pytest.mark.skipif(os.name != "posix", reason="Windows has no such permissions")
def test_others_may_read_the_weights_that_may_read_the_config(tmp_path):
    """safetensors makes files for their owner alone."""
    before = os.umask(0o022)
    try:
        save(build("m"), tmp_path)
    finally:
        os.umask(before)
    assert {file.stat().st_mode & 0o777 for file in tmp_path.iterdir()} == {0o644}


def no_room(*args, **kwargs):
    raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


def no_room_for_json(*args, **kwargs):
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize(
    ("target", "failure"),
    [("exlstm.models.checkpoints.saving.save_file", no_room),
     ("exlstm.models.checkpoints.saving.save_file", no_room_for_json),
     ("pathlib.Path.write_text", no_room_for_json), ("os.fsync", no_room_for_json)],
)  # fmt: skip
def test_a_full_disk_leaves_the_old_model(tmp_path, monkeypatch, target, failure):
    old = build("ms")
    save(old, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(target, failure)
        with pytest.raises(OSError, match="No space left on device"):
            save(build("MM"), tmp_path, overwrite=True)
    assert sorted(os.listdir(tmp_path)) == ["config.json", "model.safetensors"]
    assert_equal(load(tmp_path), old)


def test_a_full_disk_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr("exlstm.models.checkpoints.saving.save_file", no_room)
    with pytest.raises(OSError, match=r"^cannot write .*model.safetensors: .*; free some space and save again\.$"):
        save(build("m"), tmp_path)


def change_json(**changes):
    def damage(folder):
        data = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**data, **changes}))

    return damage


def change_mixer(**changes):
    def damage(folder):
        data = json.loads((folder / "config.json").read_text())
        data["blocks"][0]["mixer"].update(changes)
        (folder / "config.json").write_text(json.dumps(data))

    return damage


def cut_off(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def cut_in_the_header(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:20])


def change_tensors(change):
    def damage(folder):
        file = folder / "model.safetensors"
        tensors = load_file(file)
        change(tensors)
        save_file(tensors, file)

    return damage


DAMAGE = {
    "no config": (lambda folder: (folder / "config.json").unlink(), r"has no config.json, which says what the weights"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), r"has no weights, such as model.safetenso"),
    "cut off": (cut_off, r"model.safetensors cannot be read \(.*\); it may be cut off: save or download it again"),
    "cut in the header": (cut_in_the_header, r"model.safetensors cannot be read"),
    "empty": (lambda folder: (folder / "model.safetensors").write_bytes(b""), r"model.safetensors cannot be read"),
    "not JSON": (lambda folder: (folder / "config.json").write_text("{'a': 1"), r"config.json is not JSON \(.*\); sa"),
    "not UTF-8": (lambda folder: (folder / "config.json").write_bytes(b"\xff\xfe{"), r"config.json is not JSON"),
    "a JSON list": (lambda folder: (folder / "config.json").write_text("[1]"), r"type None, format None; this version"),
    "another type": (change_json(model_type="llama"), r"the config is of type 'llama', format 1; this version reads"),
    "another format": (change_json(format=2), r"the config is of type 'exlstm', format 2; this version reads 'exlstm'"),
    "an unknown field": (change_json(colour="red"), r"the config does not fit format 1 \(.*colour.*\); write it with"),
    "an unknown kind": (change_mixer(kind="rwkv"), r"a mixer of kind 'rwkv'; known are mlstm, mlstm_large, slstm"),
    "an unknown mixer field": (change_mixer(depth=3), r"does not fit format 1 \(.*depth.*\)"),
    "weights of no kind": (change_json(weights="int3"), r"the config has weights 'int3'; known are int8, int4"),
    "no blocks": (change_json(blocks=None), r"the config does not fit format 1"),
    "another width": (change_json(width=64), r"does not fit its config: .* has shape .*, and the rest of the model"),
    "a tensor too few": (change_tensors(lambda t: t.pop("norm.weight")), r"config: norm.weight is missing; save or"),
    "a tensor too many": (
        change_tensors(lambda t: t.update(x=torch.ones(1))), r"x of shape \(1,\) is not known to the layout 'exlstm'"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", DAMAGE)
def test_what_cannot_be_loaded(tmp_path, case):
    damage, message = DAMAGE[case]
    save(build("ms"), tmp_path)
    damage(tmp_path)
    with pytest.raises(ValueError, match=message) as error:
        load(tmp_path)
    assert "\n" not in str(error.value)
    assert str(error.value).endswith(".")


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(ValueError, match=r"there is no .*nowhere; name a folder with a model, or a file"):
        load(tmp_path / "nowhere")


def test_a_model_of_the_hub_is_not_fetched_behind_ones_back():
    with pytest.raises(ValueError, match=r"download it first: hf download NX-AI/xLSTM-7b --local-dir xLSTM-7b\."):
        load("NX-AI/xLSTM-7b")
