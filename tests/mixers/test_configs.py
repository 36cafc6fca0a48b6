"""Configs of mixers: plain values, costs, widths that are rounded, and errors."""

import json
from dataclasses import FrozenInstanceError, asdict, fields

import pytest
from mixer_cases import CONFIGS, WIDTH, build, every

from exlstm.mixers.assoc_lstm import AssocLSTMConfig
from exlstm.mixers.attention import AttentionConfig
from exlstm.mixers.deltanet import DeltaNetConfig
from exlstm.mixers.elman import ElmanConfig
from exlstm.mixers.gated_deltanet import GatedDeltaNetConfig
from exlstm.mixers.gru import GRUConfig
from exlstm.mixers.matrix_rnn import MatrixRNNConfig
from exlstm.mixers.mlstm import MLSTMConfig
from exlstm.mixers.mlstm_large import MLSTMLargeConfig
from exlstm.mixers.mult_lstm import MultLSTMConfig
from exlstm.mixers.rglru import RGLRUConfig
from exlstm.mixers.rwkv7 import RWKV7Config
from exlstm.mixers.slstm import SLSTMConfig
from exlstm.mixers.state import leaves


def test_the_backend_is_no_part_of_what_is_saved():
    for name in CONFIGS:
        assert not any("backend" in key for key in build(name).state_dict())


@every
def test_configs_are_frozen_plain_values(name):
    config = CONFIGS[name]
    assert type(config)(**json.loads(json.dumps(asdict(config)))) == config
    assert hash(config) == hash(type(config)(**asdict(config)))
    with pytest.raises(FrozenInstanceError):
        setattr(config, fields(config)[0].name, 1)
    with pytest.raises(TypeError):
        type(config)(3)


@every
def test_costs_are_counted(name):
    """A constant state costs the same at any length; a cache pays for what it can see."""
    mixer = build(name)
    for mode in ("prefill", "decode"):
        assert mixer.cell_flops(mode, 100) > 0
    grows = mixer.state_bytes(5000) > mixer.state_bytes(1000)
    assert (mixer.cell_flops("decode", 5000) > mixer.cell_flops("decode", 1000)) == grows
    # only a cache, which is empty at first, may grow
    assert not grows or any(x.numel() == 0 for x in leaves(mixer.zero_state(1)))


@pytest.mark.parametrize(
    ("factor", "multiple", "inner"),
    [(2.0, 64, 64), (1.3, 64, 64), (2.01, 64, 128), (1.3, 1, 42), (1.3, 4, 44), (1.25, 1, 40), (1.25, 12, 48)],
)
def test_the_inner_width_is_rounded_up(factor, multiple, inner):
    """1: to the next whole number; a width that is a multiple stays."""
    mixer = MLSTMConfig(heads=2, qkv_block=2, up_factor=factor, up_multiple=multiple).build(WIDTH)
    assert mixer.inner == mixer.skip.numel() == inner
    assert mixer.up.out_features == 2 * inner


@pytest.mark.parametrize(
    ("config", "width", "message"),
    [
        (MLSTMConfig(heads=5), 32, "heads is 5; it must divide the inner width 64"),
        (MLSTMConfig(qkv_block=3), 32, "qkv_block is 3; it must divide the inner width 64"),
        (MLSTMConfig(up_factor=1.35, up_multiple=1), 30, "heads is 4; it must divide the inner width 41"),
        (MLSTMLargeConfig(heads=3), 32, "heads is 3; it must divide the width 16 of the keys"),
        (MLSTMLargeConfig(heads=16, value_factor=0.75), 32, "heads is 16; it must divide the width 24 of the values"),
        (MLSTMLargeConfig(key_factor=0.01), 32, "heads is 4; it must divide the width 0 of the keys"),
        (SLSTMConfig(heads=3), 32, "heads is 3; it must divide the width 32"),
        (DeltaNetConfig(heads=3), 32, "heads is 3; it must divide the width 32"),
        (GatedDeltaNetConfig(heads=5), 32, "heads is 5; it must divide the width 24 of the keys"),
        (GatedDeltaNetConfig(key_factor=0.01), 32, "heads is 4; it must divide the width 0 of the keys"),
        (RWKV7Config(heads=5), 32, "heads is 5; it must divide the width 32"),
        (GRUConfig(heads=3), 32, "heads is 3; it must divide the width 32"),
        (ElmanConfig(heads=3), 32, "heads is 3; it must divide the width 32"),
        (MultLSTMConfig(heads=3), 32, "heads is 3; it must divide the width 32"),
        (MatrixRNNConfig(heads=3), 32, "heads is 3; it must divide the width 32"),
        (AssocLSTMConfig(), 33, "width is 33; it must be even"),
        (AttentionConfig(heads=3), 32, "heads is 3; it must cut the width 32 into heads of even width"),
        (AttentionConfig(heads=32), 32, "heads is 32; it must cut the width 32 into heads of even width"),
        (AttentionConfig(kv_heads=3), 32, "kv_heads is 3; it must divide heads, which is 4"),
        (RGLRUConfig(heads=3), 32, "heads is 3; it must divide the inner width 32"),
        (AttentionConfig(heads=3, rope_base=None), 32, "heads is 3; it must cut the width 32 into heads"),
        (AttentionConfig(head_width=7), 32, "rope_share is 1.0; of heads of 7 channels it must rotate an even number"),
        (AttentionConfig(rope_share=0.1), 32, "rope_share is 0.1; of heads of 8 channels it must rotate an even numb"),
    ],
)
def test_errors(config, width, message):
    with pytest.raises(ValueError, match=message):
        config.build(width)
