"""The models of a comparison: equal in what they are said to be equal in, and open to whoever joins."""

from dataclasses import replace

import pytest
import torch

from exlstm.mixers import MIXERS
from exlstm.mixers.attention import AttentionConfig
from exlstm.mixers.lstm import LSTMConfig
from exlstm.mixers.mlstm import MLSTMConfig
from exlstm.mixers.rwkv4 import RWKV4Config
from exlstm.mixers.rwkv_channel import RWKVChannelConfig
from exlstm.mixers.slstm import SLSTMConfig
from exlstm.models.lm import LM
from exlstm.study import FORMAL, body_parameters, compared_models, stack, with_parameters, xlstm
from exlstm.study.models import builders, rival_names, with_state_bytes

OURS = ["xlstm[1:0]", "xlstm[0:1]", "xlstm[1:1]", "lstm", "lstm(block)", "attention"]


def mixers_of(config):
    return [block.mixer for block in config.blocks]


def counted(config):
    """Parameters of the blocks, one by one."""
    model = LM(config)
    return sum(weight.numel() for name, weight in model.named_parameters() if not name.startswith(("embed", "head")))


@pytest.mark.parametrize(("width", "heads", "slstm"), [(16, 1, FORMAL), (32, 4, None)])
def test_contestants_have_equal_parameters(width, heads, slstm):
    found = compared_models(width=width, heads=heads, slstm=slstm)
    assert list(found)[: len(OURS)] == OURS
    sizes = {name: counted(config) for name, config in found.items()}
    assert sizes == {name: body_parameters(config) for name, config in found.items()}
    largest = max(body_parameters(make(width)) for make in builders(heads=heads, slstm=slstm).values())
    assert all(abs(size - largest) <= 0.05 * largest for size in sizes.values()), sizes
    assert {config.width for config in found.values()} == {width}
    kinds = {name: [type(mixer) for mixer in mixers_of(found[name])] for name in OURS}
    assert kinds == {
        "xlstm[1:0]": [MLSTMConfig] * 2,
        "xlstm[0:1]": [SLSTMConfig] * 2,
        "xlstm[1:1]": [MLSTMConfig, SLSTMConfig],
        "lstm": [LSTMConfig] * 2,
        "lstm(block)": [LSTMConfig] * 2,
        "attention": [AttentionConfig] * 2,
    }
    # the block-diagonal LSTM has blocks, the other has none
    assert {mixer.heads for mixer in mixers_of(found["lstm(block)"])} == {heads}
    assert {mixer.heads for mixer in mixers_of(found["lstm"])} == {1}


def test_a_target_and_a_depth():
    found = compared_models(width=16, heads=2, depth=3, target=60_000, rivals=["rwkv4", "mamba"])
    assert all(abs(body_parameters(config) - 60_000) <= 3_000 for config in found.values())
    assert {len(found[name].blocks) for name in OURS} == {3}
    assert len(found["rwkv4"].blocks) == 6  # with its partner


def test_formal_is_for_the_slstm_only():
    plain, formal = compared_models(width=16, heads=2), compared_models(width=16, heads=2, slstm=FORMAL)
    for name, config in formal.items():
        for mixer, before in zip(mixers_of(config), mixers_of(plain[name]), strict=True):
            if isinstance(mixer, SLSTMConfig):
                assert (mixer.conv_width, mixer.recurrent_init) == (0, "uniform")
                assert mixer == replace(before, conv_width=0, recurrent_init="uniform")
            else:
                # only what makes up for parameters may differ
                same = {"up_factor": 1.0, "up_multiple": 1} if isinstance(mixer, MLSTMConfig) else {}
                assert replace(mixer, **same) == replace(before, **same)


def test_a_new_mixer_joins_by_being_there(monkeypatch):
    class Newcomer(LSTMConfig):
        pass

    monkeypatch.setitem(MIXERS, "newcomer", Newcomer)
    assert rival_names()[-1] == "newcomer"
    found = compared_models(width=16, heads=2, rivals=["newcomer"])
    assert list(found) == [*OURS, "newcomer"]
    assert [type(mixer) for mixer in mixers_of(found["newcomer"])] == [Newcomer] * 2
    assert all(block.mlp is not None for block in found["newcomer"].blocks)
    assert body_parameters(found["newcomer"]) == pytest.approx(body_parameters(found["lstm"]), rel=0.05)


def test_a_partner_is_no_model_of_its_own():
    """It comes with the mixer whose half it is, and is what is scaled."""
    assert "rwkv4" in rival_names()
    assert "rwkv_channel" not in rival_names()
    found = builders(heads=2, rivals=["rwkv4"])
    config = with_parameters(found["rwkv4"](32), 60_000)
    assert [type(mixer) for mixer in mixers_of(config)] == [RWKV4Config, RWKVChannelConfig] * 2
    assert counted(config) == pytest.approx(60_000, rel=0.05)
    assert mixers_of(config)[1].up_factor > 4


def test_a_model_whose_sequences_end_is_asked_for_by_name():
    """Its parameters are by length, which a study has to choose."""
    assert "linformer" not in rival_names()
    assert "linformer" in builders(rivals=["linformer"])


def test_rivals_leave_the_others_as_they_are():
    alone, together = (compared_models(width=64, rivals=names) for names in ((), rival_names()))
    assert {name: together[name] for name in alone} == alone
    sizes = [body_parameters(config) for config in together.values()]
    assert max(sizes) <= 1.1 * min(sizes)


def test_blocks_are_those_of_the_paper():
    config = xlstm("1:1", width=16, heads=2, mlstm={"conv_width": 3}, slstm={"heads": 4})
    assert [mixer.heads for mixer in mixers_of(config)] == [2, 4]
    assert mixers_of(config)[0].conv_width == 3
    assert [block.mlp is None for block in config.blocks] == [True, False]
    assert [block.mlp is None for block in stack((AttentionConfig(heads=2), LSTMConfig()), width=16).blocks] == [
        False
    ] * 2


def test_a_size_that_cannot_be_is_refused():
    config = xlstm("0:1", width=16, heads=2)
    message = (
        r"^a model of SLSTM blocks and width 16 cannot have 10 parameters, the nearest is [\d,]+; choose another .*\.$"
    )
    with pytest.raises(ValueError, match=message):
        with_parameters(config, 10)
    with pytest.raises(ValueError, match=r"cannot have 1,000,000,000 parameters, the nearest is"):
        with_parameters(config, 10**9)


@pytest.mark.parametrize("ratio", ["1:0", "1:1"])
def test_the_nearest_size_is_taken(ratio):
    config = xlstm(ratio, width=16, heads=2)
    for factor in (0.9, 1.7):
        target = round(factor * body_parameters(config))
        found = with_parameters(config, target)
        assert body_parameters(found) == pytest.approx(target, rel=0.05)
        assert LM(replace(found, vocab_size=5))(torch.ones(1, 3, dtype=torch.long))[0].shape == (1, 3, 5)


@pytest.mark.parametrize("name", OURS)
def test_equal_state_bytes(name):
    make, length = builders(heads=2)[name], 64
    target = LM(make(24)).state_bytes(length) + 17
    found = LM(with_state_bytes(make, target, length)).state_bytes(length)
    others = [LM(make(width)).state_bytes(length) for width in range(4, 64, 4)]
    assert found in others
    assert abs(found - target) == min(abs(other - target) for other in others)
