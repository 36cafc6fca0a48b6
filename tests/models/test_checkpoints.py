"""Checkpoints without the packages they come from: what can be read, and what cannot."""

import json
import pickle

import pytest
import torch
from checkpoint_cases import NAMES, PATTERNS, build, change, same, written
from safetensors.torch import load_file, save_file

from exlstm import convert, load, save
from exlstm.models.checkpoints.loading import LAYOUTS


@pytest.mark.parametrize("layout", LAYOUTS)
def test_round_trip(tmp_path, layout):
    model = build(PATTERNS[layout])
    save(model, tmp_path, layout=layout)
    again = load(tmp_path)
    x = torch.randint(11, (1, 9), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(again(x)[0], model(x)[0], rtol=1e-5, atol=1e-5)
    assert again.config == model.config
    assert all(p.requires_grad for p in again.parameters())


def cut_off(folder, names):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-50])


def in_dtype(dtype):
    """The embedding in a dtype that no weight has; numbers that it cannot hold do not matter."""

    def apply(folder, names):
        tensors = load_file(folder / "model.safetensors")
        tensors[names[0]] = tensors[names[0]].to(dtype)
        save_file(tensors, folder / "model.safetensors")

    return apply


def indexed(text):
    """An index in the place of the weights, which lie where it could name them: in the folder above."""

    def apply(folder, names):
        (folder / "model.safetensors").rename(folder.parent / "x.safetensors")
        (folder / "model.safetensors.index.json").write_text(text.replace("FOLDER", str(folder.parent)))

    return apply


def naming(*names):
    return indexed(json.dumps({"weight_map": {f"tensor{number}": name for number, name in enumerate(names)}}))


NO_MAP = r"index.json has no weight_map, which says what shards there are; copy or download it again\.$"
OUTSIDE = r"index.json names .*, which is no .safetensors file beside it; download it again\.$"
BAD = {
    **{f"index {text}": (indexed(text), NO_MAP) for text in ("{}", "[]", "7", '{"weight_map": []}')},
    "index of brackets": (indexed("[" * 100_000), r"index.json is not JSON \(its brackets are nested too deeply\)"),
    "index names the folder above": (naming("../x.safetensors"), OUTSIDE),
    "index names it by another system's rules": (naming("..\\x.safetensors"), OUTSIDE),
    "index names it by a detour": (naming("a/../../x.safetensors"), OUTSIDE),
    "index names an absolute place": (naming("FOLDER/x.safetensors"), OUTSIDE),
    "index names an int": (naming("x.safetensors", 3), OUTSIDE),
    "index names a pickle": (naming("x.pt"), OUTSIDE),
    "int weights": (in_dtype(torch.int32), r"is of dtype torch.int32 and not torch.float32 or torch.bfloat16 or"),
    "bool weights": (in_dtype(torch.bool), r"is of dtype torch.bool and not torch.float32"),
    "float8 weights": (in_dtype(torch.float8_e4m3fn), r"is of dtype F8_E4M3, which no model here has; save it"),
    "complex weights": (in_dtype(torch.complex64), r"is of dtype C64, which no model here has; save it"),
    "an empty matrix": (change(matrix=torch.ones(3, 0)), r"has shape \(3, 0\), and it needs 2 axes, none of 0"),
    "config of brackets": (written("config.json", "[" * 100_000), r"config.json is not JSON \(its brackets are"),
    "YAML of brackets": (written("config.yaml", "[" * 1_000), r"config.yaml is not YAML"),
    "cut off": (cut_off, r"cannot be read \(.*\); it may be cut off: save or download it again\.$"),
    "a tensor missing": (change(gate=None), r"does not fit its config: .*gate.*bias is missing; save or download"),
    "a matrix missing": (change(matrix=None), r"(out_proj|proj_down).weight is missing from the weights; save or"),
    "an unknown tensor": (change(extra__thing=torch.ones(2)), r"extra.thing of shape \(2,\) is not known to the lay"),
    "of two layouts": (
        change(token_embedding__weight=torch.ones(11, 32), blocks__0__x=torch.ones(1)), r"mixes layouts: .* is of '.*"
    ),
    "a wrong shape": (change(gate=torch.ones(5)), r"gate.*bias has shape \(5,\), and the rest of the model needs \("),
    "a vector": (change(matrix=torch.ones(3)), r"(out_proj|proj_down).weight has shape \(3,\), and it needs 2 axes"),
    "no JSON": (written("config.json", "{"), r"config.json is not JSON \(.*\); save or download it again\.$"),
    "no YAML": (written("config.yaml", "a: [1"), r"config.yaml is not YAML \(.*\); save or download it again\.$"),
}  # fmt: skip


@pytest.mark.parametrize("layout", NAMES)
@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_read(tmp_path, layout, case):
    """One sentence, from `load` and from `convert`, which leaves nothing behind."""
    damage, message = BAD[case]
    save(build(PATTERNS[layout]), tmp_path / "in", layout=layout)
    damage(tmp_path / "in", NAMES[layout])
    with pytest.raises(ValueError, match=message) as error:
        load(tmp_path / "in")
    assert "\n" not in str(error.value)
    assert str(error.value).endswith(".")
    with pytest.raises(ValueError, match=message):
        convert(tmp_path / "in", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("dtype", [torch.int64, torch.complex64, torch.float8_e5m2], ids=str)
def test_a_pickle_of_other_numbers(tmp_path, dtype):
    save(build("m"), tmp_path, layout="classic")
    tensors = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    torch.save({name: x.to(dtype) for name, x in tensors.items()}, tmp_path / "model.pt")
    with pytest.raises(ValueError, match=rf"is of dtype {dtype} and not torch.float32 or"):
        load(tmp_path)
    torch.save({name: x.to_sparse() for name, x in tensors.items()}, tmp_path / "model.pt")
    with pytest.raises(ValueError, match=r"which is no dense tensor; save the model's state_dict\(\) alone\.$"):
        load(tmp_path)


def test_a_block_of_a_large_number_is_not_counted_to(tmp_path):
    save(build("m"), tmp_path, layout="classic")
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["xlstm_block_stack.blocks.99999999999.xlstm.x"] = torch.ones(1)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"there is no xlstm_block_stack.blocks.1 among the weights"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 2**31 - 1, "vocab_size": 2**31 - 1}, "the config is of a model that cannot be"),
        ({"width": 10**30}, "width is 1000.*; it must be a whole number from 1 to"),
        ({"blocks": 3}, "the config does not fit format 1"),
        ({"blocks": ["m"]}, "the config does not fit format 1"),
        ({"blocks": [{"mixer": {"kind": ["mlstm"]}, "mlp": None}]}, r"has a mixer of kind \['mlstm'\]; known are"),
        (
            {"blocks": [{"mixer": {"kind": "mlstm", "heads": 1, "up_factor": 1e308}, "mlp": None}]},
            "up_factor is",
        ),
        ({"blocks": [{"mixer": {"kind": "mlstm"}, "mlp": {"hidden": "8"}}]}, "hidden is '8'; it must be a whole num"),
        ({"format": [1]}, r"format \[1\]; this version reads"),
        ({"tie_embeddings": 1}, "tie_embeddings is 1; it must be True or False"),
    ],
    ids=str,
)
def test_odd_values_in_our_own_config(tmp_path, change, message):
    save(build("m"), tmp_path)
    data = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**data, **change}))
    with pytest.raises(ValueError, match=message) as error:
        load(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("layout", "settings", "message"),
    [
        ("huggingface", {"norm_eps": -1}, "norm_eps is -1; it must be a number above 0"),
        ("huggingface", {"norm_eps": float("nan")}, "norm_eps is nan; it must be a number above 0"),
        ("huggingface", {"gate_soft_cap": 0}, "gate_cap is 0; it must be a number above 0 or None"),
        ("huggingface", {"output_logit_soft_cap": -3.0}, "logit_cap is -3.0; it must be a number above 0 or None"),
        ("huggingface", {"output_logit_soft_cap": [30]}, r"output_logit_soft_cap \[30\], which is no number"),
        ("classic", {"tie_weights": "false"}, "tie_weights 'false', which is not true or false; correct it"),
        ("classic", {"dropout": 1.5}, "dropout is 1.5; it must be a number of at least 0 and below 1"),
        ("classic", {"slstm_block": {"feedforward": {"act_fn": ["gelu"]}}}, r"act_fn \['gelu'\]; known are"),
    ],
    ids=str,
)
def test_odd_values_in_other_configs(tmp_path, layout, settings, message):
    save(build(PATTERNS[layout]), tmp_path, layout=layout)
    written("config.json", json.dumps(settings))(tmp_path, None)
    with pytest.raises(ValueError, match=message):
        load(tmp_path)


@pytest.mark.parametrize("layout", NAMES)
def test_settings_that_this_version_does_not_compute(tmp_path, layout):
    odd, message = {
        "classic": (
            {"slstm_block": {"slstm": {"function": "lstm"}}},
            r"an sLSTM with the function 'lstm'; this version",
        ),
    }.get(layout, ({"eps": 1e-4}, r"config.json has eps 0.0001; this version computes with 1e-06 only"))
    save(build(PATTERNS[layout]), tmp_path, layout=layout)
    written("config.json", json.dumps(odd))(tmp_path, None)
    with pytest.raises(ValueError, match=message):
        load(tmp_path)


def test_a_setting_that_is_no_number(tmp_path):
    save(build("M"), tmp_path, layout="huggingface")
    written("config.json", json.dumps({"norm_eps": "small"}))(tmp_path, None)
    with pytest.raises(ValueError, match=r"has norm_eps 'small', which is no number; correct it\."):
        load(tmp_path)


def test_a_number_that_yaml_takes_for_a_text(tmp_path):
    """1e-4 is one: YAML's own numbers have a dot."""
    save(build("M"), tmp_path, layout="xlstm-large")
    file = tmp_path / "config.yaml"
    lines = [line for line in file.read_text().splitlines() if not line.startswith("norm_eps")]
    file.write_text("\n".join([*lines, "norm_eps: 1e-4"]))
    config = load(tmp_path).config
    assert config.norm_eps == config.blocks[0].mixer.norm_eps == 1e-4


@pytest.mark.parametrize("file", ["model.safetensors", "weights.pt"])
def test_what_was_loaded_is_no_mapped_file(tmp_path, file):
    """A file that is written over in its place does not change the model, nor does its alignment."""
    save(build("ms"), tmp_path, layout="classic")
    if file == "weights.pt":
        torch.save(load_file(tmp_path / "model.safetensors"), tmp_path / file)
    model = load(tmp_path / file)
    before = {name: x.clone() for name, x in model.state_dict().items()}
    with open(tmp_path / file, "rb+") as handle:
        handle.write(bytes((tmp_path / file).stat().st_size))
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_loading_for_a_device(tmp_path, layout):
    save(build(PATTERNS[layout]), tmp_path, layout=layout)
    assert {x.device.type for x in load(tmp_path, device="meta").state_dict().values()} == {"meta"}


class Trap:
    """Unpickling it runs code."""

    def __reduce__(self):
        return exec, ("import pathlib; pathlib.Path('trapped').touch()",)


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_pickle_that_would_run_code_is_refused(tmp_path, monkeypatch, wrapped):
    monkeypatch.chdir(tmp_path)
    save(build("ms"), tmp_path, layout="classic")
    state = load_file("model.safetensors")
    torch.save({"state_dict": state, "extra": Trap()} if wrapped else Trap(), "weights.pt")
    for file in ("weights.pt", "plain.pt"):
        if file == "plain.pt":
            (tmp_path / file).write_bytes(pickle.dumps({"token_embedding.weight": Trap()}, protocol=2))
        with pytest.raises(
            ValueError, match=r"(weights|plain).pt holds more than tensors, and to read it could run its c"
        ):
            load(file)
    assert not (tmp_path / "trapped").exists()


@pytest.mark.parametrize("old_file", [False, True])
def test_state_dicts_of_torch(tmp_path, old_file):
    """As training tools save them: inside of something, every name with a prefix; also in torch's old file format."""
    model = build("ms")
    save(model, tmp_path, layout="classic")
    state = {f"module._orig_mod.{name}": x for name, x in load_file(tmp_path / "model.safetensors").items()}
    torch.save({"step": 3, "model_state_dict": state}, tmp_path / "w.pth", _use_new_zipfile_serialization=not old_file)
    again = load(tmp_path / "w.pth")
    assert same(again, load(tmp_path))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], r"holds no state dict; save the model's state_dict\(\)\."),
        ({}, r"holds no state dict"),
        (
            {"a": torch.ones(1), "step": 3},
            r"holds 'step', which is no dense tensor; save the model's",
        ),
        (
            {"a": torch.ones(1)},
            r"is of no known layout, it holds a; known are exlstm, huggingface, xlstm-large, classic\.",
        ),
    ],
)
def test_pickles_of_something_else(tmp_path, content, message):
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(ValueError, match=message):
        load(tmp_path / "x.pt")


def test_a_pickle_that_is_cut_off(tmp_path):
    torch.save({"a": torch.ones(1000)}, tmp_path / "x.pt")
    (tmp_path / "x.pt").write_bytes((tmp_path / "x.pt").read_bytes()[:500])
    with pytest.raises(ValueError, match=r"x.pt cannot be read \(.*\); it may be cut off: save or download it again\."):
        load(tmp_path / "x.pt")
