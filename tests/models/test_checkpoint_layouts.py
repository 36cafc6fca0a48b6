"""What a layout of checkpoints can express: settings that another package would lose are refused."""

import math
from dataclasses import replace

import pytest
import torch
import yaml
from checkpoint_cases import NAMES, build, change, same
from safetensors.torch import load_file

from exlstm import convert, load, save
from exlstm.models.block import MLPConfig

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


def test_layouts_without_them_refuse_what_they_cannot_hold(tmp_path):
    for options in ({"positions": 9}, {"embed_norm": True}, {"embed_scale": 2.0}, {"residual": False}):
        (name,) = options
        for layout, pattern in (("classic", "ms"), ("huggingface", "M"), ("xlstm-large", "M")):
            with pytest.raises(ValueError, match=rf"{name} is .*; with this layout it has to be (None|False|True)\."):
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
