"""Checkpoints without the packages they come from: what cannot be read or written, memory, shards, fewer bits."""

import itertools
import json
import math
import pickle
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

import exlstm
from exlstm import LM, LMConfig, convert, load, save
from exlstm.models.checkpoints.loading import LAYOUTS
from exlstm.models.lm import MLPConfig
from exlstm.models.pattern import lm_from_pattern


def build(pattern="ms", **options):
    """A model without zeros and ones; of xLSTM-7B's blocks, with its cap on logits."""
    torch.manual_seed(0)
    if set(pattern) == {"M"}:
        options = {"logit_cap": 30.0, **options}
    model = LM(LMConfig(**{**vars(lm_from_pattern(pattern, vocab_size=11, width=32)), **options}))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model


def same(one, two):
    a, b = one.state_dict(), two.state_dict()
    return one.config == two.config and a.keys() == b.keys() and all(torch.equal(x, b[name]) for name, x in a.items())


PATTERNS = {"exlstm": "msMal", "huggingface": "MM", "xlstm-large": "MM", "classic": "mms"}
# of each foreign layout: the embedding, a gate's bias and a matrix of the first block
NAMES = {
    "huggingface": ("backbone.embeddings.weight", "backbone.blocks.0.mlstm_layer.igate_preact.bias",
                    "backbone.blocks.0.mlstm_layer.out_proj.weight"),
    "xlstm-large": ("embedding.weight", "backbone.blocks.0.mlstm_layer.igate_preact.bias",
                    "backbone.blocks.0.mlstm_layer.out_proj.weight"),
    "classic": ("token_embedding.weight", "xlstm_block_stack.blocks.0.xlstm.mlstm_cell.igate.bias",
                "xlstm_block_stack.blocks.0.xlstm.proj_down.weight"),
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_round_trip(tmp_path, layout):
    model = build(PATTERNS[layout])
    save(model, tmp_path, layout=layout)
    again = load(tmp_path)
    x = torch.randint(11, (1, 9), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(again(x)[0], model(x)[0], rtol=1e-5, atol=1e-5)
    assert again.config == model.config
    assert all(p.requires_grad for p in again.parameters())


def change(**changed):
    """Damage to the weights: by role, what takes the tensor's place (None: nothing); other names are added."""

    def apply(folder, names):
        tensors = load_file(folder / "model.safetensors")
        for role, x in changed.items():
            name = dict(zip(("embed", "gate", "matrix"), names, strict=True)).get(role, role.replace("__", "."))
            tensors.pop(name, None)
            if x is not None:
                tensors[name] = x
        save_file(tensors, folder / "model.safetensors")

    return apply


def cut_off(folder, names):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-50])


def written(name, text):
    def apply(folder, names):
        for config in folder.glob("config.*"):
            config.unlink()
        (folder / name).write_text(text)

    return apply


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


# ---------------------------------------------------------------------------------------------------- saving

INEXPRESSIBLE = {
    ("huggingface", "Mm"): r"block 1 is MLSTMConfig without an MLP; this layout has xLSTM-7B's mLSTM with an MLP only",
    ("xlstm-large", "MMa"): r"block 2 is AttentionConfig; this layout has xLSTM-7B's mLSTM with an MLP only",
    ("classic", "msM"): r"block 2 is MLSTMLargeConfig; this layout has the paper's mLSTM and sLSTM only",
    ("elsewhere", "m"): r"there is no layout 'elsewhere'; choose one of exlstm, huggingface, xlstm-large, classic",
}


@pytest.mark.parametrize(("layout", "pattern"), INEXPRESSIBLE)
def test_what_a_layout_cannot_express(tmp_path, layout, pattern):
    """The block is named, and nothing is written."""
    with pytest.raises(ValueError, match=INEXPRESSIBLE[layout, pattern]):
        save(build(pattern), tmp_path / "out", layout=layout)
    assert not (tmp_path / "out").exists()
    save(build(pattern), tmp_path / "own")
    with pytest.raises(ValueError, match=INEXPRESSIBLE[layout, pattern]):
        convert(tmp_path / "own", tmp_path / "out", layout=layout)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("layout", "pattern", "options", "message"),
    [
        ("classic", "ms", {"logit_cap": 30.0}, r"logit_cap is 30.0; with this layout it has to be None"),
        ("classic", "ms", {"norm": "rms"}, r"norm is 'rms'; with this layout it has to be 'layer'"),
        (
            "huggingface",
            "MM",
            {"logit_cap": None},
            r"output_logit_soft_cap is None; transformers' xlstm has to have one",
        ),
        ("xlstm-large", "MM", {"tie_embeddings": True}, r"the head is tied .* which xlstm-large cannot express"),
        ("xlstm-large", "MM", {"norm_bias": True}, r"norm_bias is True; with this layout it has to be False"),
    ],
)
def test_settings_that_a_layout_cannot_express(tmp_path, layout, pattern, options, message):
    with pytest.raises(ValueError, match=message):
        save(build(pattern, **options), tmp_path / "out", layout=layout)
    assert not (tmp_path / "out").exists()


def test_layouts_without_them_refuse_positions_scales_and_norms_of_the_embedding(tmp_path):
    for options in ({"positions": 9}, {"embed_norm": True}, {"embed_scale": 2.0}):
        (name,) = options
        for layout, pattern in (("classic", "ms"), ("huggingface", "M"), ("xlstm-large", "M")):
            with pytest.raises(ValueError, match=rf"{name} is .*; with this layout it has to be (None|False)\."):
                save(build(pattern, **options), tmp_path / "out", layout=layout)


def with_block(pattern, index, mixer, mlp):
    """A model of which one block has other settings; an MLP of None is added, if there is one to have."""
    blocks = list(build(pattern).config.blocks)
    block = blocks[index]
    mixer = replace(block.mixer, **mixer)
    blocks[index] = replace(
        block, mixer=mixer, mlp=replace(block.mlp or MLPConfig(hidden=48), **mlp) if mlp else block.mlp
    )
    return build(pattern, blocks=tuple(blocks))


@pytest.mark.parametrize(
    ("layout", "pattern", "index", "mixer", "mlp", "message"),
    [
        ("classic", "ms", 1, {"forget_gate": "exp"}, {}, r"block 1 has forget_gate 'exp'; this layout has 'sigmoid' o"),
        ("classic", "ms", 0, {"forget_gate": "exp"}, {}, r"block 0 has forget_gate 'exp'; this layout has 'sigmoid' o"),
        ("classic", "ms", 0, {"input_gate": "relu"}, {}, r"block 0 has input_gate 'relu'; this layout has 'exp' only"),
        ("classic", "ms", 1, {"input_gate": "relu"}, {}, r"block 1 has input_gate 'relu'; this layout has 'exp' only"),
        ("classic", "ms", 1, {"normalize": False}, {}, r"block 1 has normalize False; this layout has True only"),
        ("classic", "s", 0, {"recurrence": "none"}, {}, r"block 0 has recurrence 'none'; this layout has 'block' only"),
        ("classic", "s", 0, {"recurrence": "sparse", "recurrence_degree": 2}, {}, r"block 0 has recurrence 'sparse'; "),
        ("classic", "s", 0, {"recurrence_blocks": 2}, {}, r"block 0 has recurrence_blocks 2; this layout has None o"),
        ("classic", "mm", 1, {"heads": 2}, {}, r"block 1 differs from block 0; this layout has one kind of mLSTM, one"),
        ("classic", "m", 0, {"conv_width": 1}, {}, r"block 0 has conv_width 1; this layout needs at least 2"),
        ("classic", "sm", 1, {}, {"hidden": 48}, r"block 1 is an mLSTM with an MLP; in this layout only an sLSTM has"),
        ("xlstm-large", "MM", 1, {"heads": 2}, {}, r"block 1 differs from block 0; this layout has blocks of one kind"),
        ("huggingface", "M", 0, {"normalize": False}, {}, r"normalize is False; with this layout it has to be True"),
        ("huggingface", "M", 0, {"input_gate": "sigmoid"}, {}, r"input_gate is 'sigmoid'; with this layout it has to"),
        ("xlstm-large", "M", 0, {}, {"activation": "gelu"}, r"activation is 'gelu'; with this layout it has to be 'si"),
    ],
)  # fmt: skip
def test_settings_of_a_block_that_a_layout_cannot_express(tmp_path, layout, pattern, index, mixer, mlp, message):
    """They would be lost: the other package computes something else, or fails."""
    with pytest.raises(ValueError, match=message):
        save(with_block(pattern, index, mixer, mlp), tmp_path / "out", layout=layout)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("recurrent_init", ["zeros", "uniform"])
@pytest.mark.parametrize("forget_bias", ["power_law", "linspace", "zeros"])
def test_how_an_slstm_was_initialised_is_kept(tmp_path, recurrent_init, forget_bias):
    model = with_block("s", 0, {"recurrent_init": recurrent_init, "forget_bias": forget_bias}, {})
    save(model, tmp_path, layout="classic")
    assert load(tmp_path).config == model.config


@pytest.mark.parametrize(("layout", "pattern"), [("huggingface", "M"), ("xlstm-large", "M"), ("classic", "s")])
@pytest.mark.parametrize("hidden", [64, 320, 384, 512, 341, 100])
def test_a_factor_that_the_package_rounds_to_the_same_width(tmp_path, layout, pattern, hidden):
    """Its formula, on what is written: the usual factor must not be written where it gives another width."""
    (block,) = build(pattern).config.blocks
    block = replace(block, mlp=replace(block.mlp, hidden=hidden))
    save(build(pattern, width=128, blocks=(block,)), tmp_path, layout=layout)
    (file,) = tmp_path.glob("config.*")
    data = yaml.safe_load(file.read_text())
    if layout == "classic":
        data = data["slstm_block"]["feedforward"]
        multiple = data["round_proj_up_to_multiple_of"]
        assert math.ceil(data["proj_factor"] * 128 / multiple) * multiple == hidden
    else:
        multiple = data["ffn_round_up_to_multiple_of"]
        assert int((128 * data["ffn_proj_factor"] + multiple - 1) // multiple * multiple) == hidden


def test_a_tied_head_of_the_classic_layout(tmp_path):
    """Stored twice there, it is one again; the config decides, and two that differ are refused."""
    save(build("ms", tie_embeddings=True), tmp_path, layout="classic")
    assert "lm_head.weight" in load_file(tmp_path / "model.safetensors")
    model = load(tmp_path)
    assert model.config.tie_embeddings
    assert model.head.weight is model.embed.weight
    change(lm_head__weight=torch.ones(11, 32))(tmp_path, NAMES["classic"])
    with pytest.raises(ValueError, match=r"token_embedding.weight and lm_head.weight differ, though the config says"):
        load(tmp_path)


def test_a_bias_that_a_layout_has_no_place_for(tmp_path):
    """transformers' last norm has no bias where the others have one; zeros are nothing to keep."""
    model = build("M", norm_bias=True)
    blocks = tuple(
        type(block)(mixer=type(block.mixer)(**{**vars(block.mixer), "bias": True}),
                    mlp=type(block.mlp)(**{**vars(block.mlp), "bias": True}))
        for block in model.config.blocks
    )  # fmt: skip
    model = build("M", norm_bias=True, blocks=blocks, logit_cap=30.0, norm="rms", norm_eps=1e-6)
    with pytest.raises(ValueError, match=r"norm.bias is not 0 everywhere, and this layout has no place for it"):
        save(model, tmp_path / "out", layout="huggingface")
    assert not list(tmp_path.iterdir()), "nothing half-written"
    with torch.no_grad():
        model.norm.bias.zero_()
    save(model, tmp_path / "out", layout="huggingface")
    assert same(load(tmp_path / "out"), model)


def test_shards(tmp_path):
    """An index names them; a save over them leaves none behind; a missing one is named."""
    model = build("mMs")
    save(model, tmp_path / "in")
    convert(tmp_path / "in", tmp_path / "out", shard_bytes=20_000)
    files = sorted(file.name for file in (tmp_path / "out").iterdir())
    shards = [name for name in files if name.startswith("model-")]
    assert len(shards) > 3
    assert files == ["config.json", *shards, "model.safetensors.index.json"]
    index = json.loads((tmp_path / "out/model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(x.nbytes for x in model.state_dict().values())
    assert set(index["weight_map"].values()) == set(shards)
    assert same(load(tmp_path / "out"), model)
    check_sizes([tmp_path / "out" / name for name in shards], 20_000)
    (tmp_path / "out" / shards[1]).rename(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=rf"{shards[1]} is missing, which holds a part of the weights; copy or"):
        load(tmp_path / "out")
    save(build("s"), tmp_path / "out", overwrite=True)
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["config.json", "model.safetensors"]


def check_sizes(files, most):
    """No file is too full, unless by one tensor; and no two that follow each other fit into one."""
    sizes = [[x.nbytes for x in load_file(file).values()] for file in files]
    assert all(sum(of_file) <= most or len(of_file) == 1 for of_file in sizes)
    assert all(sum(one) + sum(other) > most for one, other in itertools.pairwise(sizes))


def test_shards_are_of_what_is_written(tmp_path):
    """Their size is that of the new dtype, not of the one that is read."""
    save(build("mMs"), tmp_path / "in")
    convert(tmp_path / "in", tmp_path / "out", dtype=torch.bfloat16, shard_bytes=20_000)
    check_sizes(sorted((tmp_path / "out").glob("*.safetensors")), 20_000)


def test_more_than_ten_counted_shards(tmp_path):
    """model_10 comes after model_9; one of the middle that is missing is named, and one tensor is in one of them."""
    model = build("MMM")
    save(model, tmp_path / "in")
    convert(tmp_path / "in", tmp_path / "out", layout="xlstm-large", shard_bytes=10_000)
    count = len(list((tmp_path / "out").glob("model_*.safetensors")))
    assert count > 10
    assert same(load(tmp_path / "out"), model)
    save_file({"embedding.weight": torch.ones(11, 32)}, tmp_path / f"out/model_{count}.safetensors")
    with pytest.raises(ValueError, match=rf"embedding.weight is in both .*model_0.* and .*model_{count}.*; remove wh"):
        load(tmp_path / "out")
    (tmp_path / "out/model_3.safetensors").unlink()
    with pytest.raises(ValueError, match=r"model_3.safetensors is missing, which holds a part of the weights; copy"):
        load(tmp_path / "out")


def test_shards_without_their_index(tmp_path):
    save(build("mM"), tmp_path / "in")
    convert(tmp_path / "in", tmp_path / "out", shard_bytes=20_000)
    (tmp_path / "out/model.safetensors.index.json").unlink()
    with pytest.raises(
        ValueError, match=r"has no model.safetensors.index.json, which says what shards there are; copy"
    ):
        load(tmp_path / "out")


def test_a_conversion_onto_itself_is_refused(tmp_path):
    save(build("m"), tmp_path)
    with pytest.raises(ValueError, match=r"is the model to convert; name another folder for the result"):
        convert(tmp_path, tmp_path / ".", dtype=torch.bfloat16)
    load(tmp_path)


# ---------------------------------------------------------------------------------------- dtypes and fewer bits


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("bits", ["int8", "int4"])
def test_quantised_while_loading(tmp_path, bits, tied):
    """What `quantize` makes of the loaded model, bit for bit: by `load`, by `convert`, and loaded again."""
    save(build("msM", tie_embeddings=tied), tmp_path / "in")
    want = exlstm.quantize(load(tmp_path / "in"), bits)
    convert(tmp_path / "in", tmp_path / "out", weights=bits, shard_bytes=20_000)
    for got in (load(tmp_path / "in", weights=bits), load(tmp_path / "out"), load(tmp_path / "out", weights=bits)):
        assert same(got, want)


def test_quantised_from_what_was_saved(tmp_path):
    """Not from weights that were rounded to another dtype first; scales are rounded to no dtype."""
    save(build("mM"), tmp_path)
    want = exlstm.quantize(load(tmp_path), "int8").to(torch.bfloat16)
    got = load(tmp_path, weights="int8", dtype=torch.bfloat16)
    assert same(got, want)
    assert got.embed.weight.dtype == torch.bfloat16
    assert got.head.scale_N.dtype == torch.float32


def test_a_foreign_model_quantised_on_the_way(tmp_path):
    model = build("MM")
    save(model, tmp_path / "in", layout="huggingface")
    convert(tmp_path / "in", tmp_path / "out", weights="int8")
    assert same(load(tmp_path / "out"), exlstm.quantize(model, "int8"))


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (
            lambda folder: load(folder / "int8", weights="int4"),
            r"is quantised already \(int8\); use the original for int4",
        ),
        (lambda folder: load(folder / "int8", weights="int2"), r"weights are 'int2'; they can be one of int8, int4"),
        (
            lambda folder: load(folder / "int8", dtype=torch.int8),
            r"dtype is torch.int8; it has to be one of floating num",
        ),
        (
            lambda folder: convert(folder / "int8", folder / "out", layout="classic"),
            r"are quantised \(int8\), which the la",
        ),
        (
            lambda folder: save(load(folder / "int8"), folder / "out", layout="classic"),
            r"are quantised \(int8\), which th",
        ),
    ],
)
def test_bits_that_do_not_go_together(tmp_path, run, message):
    save(exlstm.quantize(build("ms"), "int8"), tmp_path / "int8")
    with pytest.raises(ValueError, match=message):
        run(tmp_path)
    assert not (tmp_path / "out").exists()


def test_a_foreign_model_has_one_dtype(tmp_path):
    """Norms and gates that were saved in float32 beside bfloat16 come in the embedding's, or in what is asked for."""
    save(build("MM"), tmp_path, layout="huggingface")
    tensors = {
        name: x if "norm" in name or "gate" in name else x.bfloat16()
        for name, x in load_file(tmp_path / "model.safetensors").items()
    }
    save_file(tensors, tmp_path / "model.safetensors")
    assert {x.dtype for x in load(tmp_path).state_dict().values()} == {torch.bfloat16}
    assert {x.dtype for x in load(tmp_path, dtype=torch.float64).state_dict().values()} == {torch.float64}


# ---------------------------------------------------------------------------------------------------- memory

MEASURE = """
import re, sys, torch
import exlstm
from exlstm.models.checkpoints import loading
def peak():
    return 1024 * int(re.search(r"VmHWM:\\s*(\\d+)", open("/proc/self/status").read())[1])
exlstm.load(sys.argv[2])  # what is imported and allocated at first
open("/proc/self/clear_refs", "w").write("5")
before = peak()
{run}
print(peak() - before)
"""


def measured(tmp_path, run, *arguments):
    """Peak memory of some code beyond what the process had, in bytes; files that are mapped count while they are."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURE.replace("{run}", run), *map(str, arguments)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return int(done.stdout.split()[-1])


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """A model of 190 MB in float32, of which a tensor has 17 MB, in transformers' layout; and a tiny one."""
    folder = tmp_path_factory.mktemp("wide")
    config = LMConfig(**{**vars(lm_from_pattern("M" * 16, vocab_size=8192, width=512)), "logit_cap": 30.0})
    with torch.device("meta"):
        model = LM(config)
    model = model.to_empty(device="cpu")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(0.01)
    save(model, folder / "own")
    save(build("M"), folder / "tiny")
    convert(folder / "own", folder / "in", layout="huggingface", shard_bytes=40 << 20)
    return folder, sum(x.nbytes for x in model.state_dict().values()), 8192 * 512 * 4


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize(("name", "dtype"), [("in", "None"), ("own", "torch.bfloat16")])
def test_peak_memory_of_loading(wide, name, dtype):
    """The weights, one tensor, and no more of the mapped file than is let go of again; of shards, and of one file."""
    folder, size, tensor = wide
    size = size // 2 if "16" in dtype else size
    used = measured(folder, f"model = exlstm.load(sys.argv[1], dtype={dtype})", folder / name, folder / "tiny")
    assert size < used < size + 3 * tensor + loading_slack()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_peak_memory_of_converting(wide, tmp_path):
    """About one shard, of a model that is several times as large."""
    folder, size, tensor = wide
    shard = 40 << 20
    run = f"exlstm.convert(sys.argv[1], sys.argv[3], dtype=torch.float32, shard_bytes={shard})"
    used = measured(folder, run, folder / "in", folder / "tiny", tmp_path / "out")
    assert used < shard + 3 * tensor + loading_slack()
    assert used < size


def loading_slack():
    """What of the mapped file may count at a time."""
    from exlstm.models.checkpoints.files import OPEN_BYTES

    return OPEN_BYTES
