"""Named models and patterns: the published ones to the parameter."""

from functools import cache

import pytest
import torch

from exlstm.mixers import MIXERS
from exlstm.mixers.attention import AttentionConfig
from exlstm.mixers.contract import BlockStyle, Partner
from exlstm.mixers.lstm import LSTMConfig
from exlstm.mixers.mlstm import MLSTMConfig
from exlstm.mixers.mlstm_large import MLSTMLargeConfig
from exlstm.mixers.rwkv4 import RWKV4Config
from exlstm.mixers.rwkv_channel import RWKVChannelConfig
from exlstm.mixers.slstm import SLSTMConfig
from exlstm.models.block import BlockConfig, MLPConfig
from exlstm.models.lm import LM, LMConfig
from exlstm.models.pattern import lm_from_pattern, styled_blocks, xlstm_pattern
from exlstm.models.presets import PRESETS, preset


@cache
def without_memory(name):
    """The preset's model on the meta device, which several tests look at."""
    with torch.device("meta"):
        return LM(preset(name))


def count(name):
    return sum(p.numel() for p in without_memory(name).parameters())


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("xlstm-125m-1:0", 163.8),
        ("xlstm-125m-7:1", 163.7),
        ("xlstm-350m-1:0", 409.3),
        ("xlstm-350m-7:1", 408.4),
        ("xlstm-760m-1:0", 840.4),
        ("xlstm-760m-7:1", 839.7),
        ("xlstm-1.3b-1:0", 1422.6),
        ("xlstm-1.3b-7:1", 1420.1),
    ],
)
def test_the_counts_that_the_paper_prints(name, millions):
    assert round(count(name) / 1e6, 1) == millions


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("xlstm-7b", 6_865_424_896),
        ("synthetic-1:0", 56_132),
        ("synthetic-0:1", 116_672),
        ("synthetic-1:1", 86_402),
        ("gpt3-356m", 355_919_872),
        ("llama-407m", 406_635_520),
        ("mamba-423m", 423_052_288),
        ("rwkv4-430m", 430_452_736),
        ("rwkv5-456m", 455_692_288),
        ("rwkv6-442m", 441_585_664),
        ("gla-412m", 411_962_368),
        ("hgrn2-411m", 411_378_688 + 23 * 1024),
        ("hgrn-411m", 411_378_688 + 23 * 1024),  # with a lower bound in all layers but the first
        ("h3-420m", 419_440_640 - 24 * 128 * 1024),  # less the vectors B of both state spaces
        ("hyena-435m", 434_144_768 - 24 * 33 * 2048),  # less the features of positions
        ("retnet-431m", 431_801_344),
        ("mamba-130m", 129_135_360),
        ("mamba-370m", 371_516_416),
        ("mamba-790m", 793_204_224),
        ("mamba-1.4b", 1_372_178_432),
        ("mamba-2.8b", 2_768_345_600),
        ("mamba2-130m", 128_989_632),
        ("mamba2-370m", 368_346_624),
        ("mamba2-780m", 780_161_280),
        ("mamba2-1.3b", 1_343_757_312),
        ("mamba2-2.7b", 2_702_599_680),
        ("rwkv4-169m", 169_342_464),
        ("rwkv4-1.5b", 1_515_106_304),
        ("rwkv4-3b", 2_984_627_200),
        ("rwkv4-7b", 7_392_649_216),
        ("rwkv4-14b", 14_148_597_760),
        ("rwkv5-0.4b", 461_721_600),
        ("rwkv6-1.6b", 1_599_873_024),
        ("gla-340m", 341_707_776),
        ("hyena-153m", 153_700_416 - 18 * 33 * 2048),
        ("recurrentgemma-2b", 2_682_862_080),
        ("recurrentgemma-9b", 8_579_977_216),
    ],
)
def test_exact_counts(name, parameters):
    assert count(name) == parameters


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_builds(name):
    config, model = preset(name), without_memory(name)
    assert len(model.blocks) == len(config.blocks)
    assert preset(name, vocab_size=11) == LMConfig(**{**vars(config), "vocab_size": 11})
    assert "\n" in model.summary()


@pytest.mark.parametrize("name", [name for name in PRESETS if name.startswith("laptop")])
def test_laptop_presets_run_on_a_laptop(name):
    model = LM(preset(name))
    logits, _ = model(torch.randint(model.config.vocab_size, (1, 5)))
    assert torch.isfinite(logits).all()
    assert sum(p.numel() for p in model.parameters()) < 50e6


def test_where_the_papers_models_have_their_slstm():
    def places(name):
        return [n for n, block in enumerate(preset(name).blocks) if isinstance(block.mixer, SLSTMConfig)]

    assert places("xlstm-125m-7:1") == [3, 20]
    for size in ("350m", "760m", "1.3b"):
        assert places(f"xlstm-{size}-7:1") == [3, 5, 7, 40, 42, 44]
        assert places(f"xlstm-{size}-1:0") == []
    assert len(places("xlstm-2.7b-7:1")) == 8
    assert [len(preset(f"synthetic-{ratio}").blocks) for ratio in ("1:0", "0:1", "1:1")] == [2, 2, 2]
    assert places("synthetic-1:1") == [1]
    assert places("synthetic-0:1") == [0, 1]


def test_the_7b():
    config = preset("xlstm-7b")
    assert set(config.blocks) == {
        BlockConfig(
            mixer=MLSTMLargeConfig(heads=8, key_factor=0.5, value_factor=1.0, gate_cap=15.0, norm_eps=1e-6),
            mlp=MLPConfig(hidden=10_944, activation="silu"),
        )
    }
    assert (config.width, len(config.blocks), config.vocab_size) == (4096, 32, 50_304)
    assert (config.norm, config.norm_eps, config.logit_cap, config.tie_embeddings) == ("rms", 1e-6, 30.0, False)
    with torch.device("meta"):
        assert LM(config).state_bytes(10**6) == 32 * 4 * (8 * 256 * 512 + 8 * 256 + 8)


def test_an_unknown_preset():
    with pytest.raises(
        ValueError, match=r"^there is no preset 'xlstm-8b'; choose one of xlstm-125m-1:0, .*laptop-tiny"
    ):
        preset("xlstm-8b")


@pytest.mark.parametrize(
    ("ratio", "depth", "slstm_at", "want"),
    [
        ("7:1", 8, None, "mmmmmmms"),
        ("7:1", 10, None, "mmmmmmmsmm"),
        ("1:0", 3, None, "mmm"),
        ("0:1", 3, None, "sss"),
        ("1:1", 4, None, "msms"),
        ("2:3", 7, None, "mmsssmm"),
        ("7:1", 4, (1, 3), "msms"),
        ("7:1", 4, (), "mmmm"),
    ],
)
def test_xlstm_pattern(ratio, depth, slstm_at, want):
    assert xlstm_pattern(ratio, depth, slstm_at=slstm_at) == want


@pytest.mark.parametrize("ratio", ["7", "7:1:1", "a:b", "", "-1:2", "0:0", "7:"])
def test_a_ratio_that_is_none(ratio):
    with pytest.raises(ValueError, match=r"is not of the form a:b; write e\.g\. 7:1"):
        xlstm_pattern(ratio, 8)


def test_a_place_outside_the_stack():
    for place in (4, -1):
        with pytest.raises(ValueError, match=f"slstm_at names block {place}, but the 4 blocks are numbered 0 to 3"):
            xlstm_pattern("7:1", 4, slstm_at=(1, place))


def test_patterns():
    """Each letter is a mixer and its MLP; norms are RMS where every block comes from the family that has them."""
    config = lm_from_pattern("msMal", vocab_size=7, width=96, heads=2)
    assert [type(block.mixer) for block in config.blocks] == [
        MLSTMConfig, SLSTMConfig, MLSTMLargeConfig, AttentionConfig, LSTMConfig,
    ]  # fmt: skip
    gated, swiglu = MLPConfig(hidden=128, activation="gelu"), MLPConfig(hidden=320, activation="silu")
    assert [block.mlp for block in config.blocks] == [None, gated, swiglu, swiglu, gated]
    assert all(block.mixer.heads == 2 for block in config.blocks[:4])
    assert (config.norm, config.norm_eps) == ("layer", 1e-5)
    for pattern in ("MM", "Ma", "aa"):
        config = lm_from_pattern(pattern, vocab_size=7, width=64)
        assert (config.norm, config.norm_eps) == ("rms", 1e-6)


def test_patterns_of_names():
    """Names and letters side by side, repeated; heads go to every mixer that has them."""
    config = lm_from_pattern("mlstm*2, attention,ss", vocab_size=7, width=64, heads=2)
    assert config.blocks == lm_from_pattern("mmass", vocab_size=7, width=64, heads=2).blocks
    assert lm_from_pattern("lstm", vocab_size=7, width=64, heads=2).blocks[0].mixer == LSTMConfig()


@pytest.mark.parametrize("name", MIXERS)
def test_every_mixer_makes_a_model(name):
    """With the MLP, or the partner, of its published models."""
    config = lm_from_pattern(f"{name}*2", vocab_size=7, width=64)
    style = MIXERS[name].style
    assert len(config.blocks) == (2 if style.partner is None else 4)
    assert config.norm == style.norm
    mlp = config.blocks[0].mlp
    assert (mlp is None) == (style.activation is None)
    if mlp is None:
        assert style.partner is not None or hasattr(config.blocks[0].mixer, "up_factor"), "nothing in it can be scaled"
    with torch.device("meta"):
        LM(config)


def test_a_partner_is_as_the_style_says(monkeypatch):
    """Its fields come from the style, then from the options; a field that it does not have is an error."""

    class Styled(RWKV4Config):
        style = BlockStyle(norm="layer", activation=None, partner=Partner("rwkv_channel", {"up_factor": 2.0}))

    options = {"up_factor": 3.0, "bend": 4.0, "heads": 2}
    mixer, partner = styled_blocks(Styled(), 64, options)
    assert type(mixer.mixer) is Styled
    assert mixer.mlp is partner.mlp is None
    assert partner.mixer == RWKVChannelConfig(up_factor=2.0, bend=4.0)
    monkeypatch.setattr(Styled, "style", BlockStyle(partner=Partner("rwkv_channel", {"up_facto": 2.0})))
    with pytest.raises(TypeError, match="up_facto"):
        styled_blocks(Styled(), 64)


@pytest.mark.parametrize("pattern", ["mxm", "", "m m", "m,,s", "mlstm*0", "mlstm*", "mlstm*-1", "mlstm*99999", "x*2"])
def test_a_pattern_that_is_none(pattern):
    with pytest.raises(ValueError, match=r"^the block pattern .*\.$") as error:
        lm_from_pattern(pattern, vocab_size=7, width=64)
    assert repr(pattern) in str(error.value)
