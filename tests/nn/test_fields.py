"""Every field of every config is checked, whatever its value came from."""

import json
import math
from dataclasses import fields, replace
from typing import Annotated, Any, Literal, get_args, get_origin

import pytest

import exlstm
from exlstm.hf import ExlstmConfig
from exlstm.infer.sampling import SamplingConfig
from exlstm.mixers import MIXERS
from exlstm.models.block import BlockConfig, MLPConfig
from exlstm.models.checkpoints.own import config_from_json, config_to_json
from exlstm.models.lm import LMConfig
from exlstm.nn.fields import Range, annotations, check_fields

BLOCK = BlockConfig(mixer=MIXERS["mlstm"](), mlp=MLPConfig(hidden=8))
LM = LMConfig(vocab_size=5, width=32, blocks=(BLOCK,))
CONFIGS = [*(cls() for cls in MIXERS.values()), MLPConfig(hidden=8), BLOCK, LM, SamplingConfig()]
FIELDS = [
    pytest.param(config, field.name, id=f"{type(config).__name__}.{field.name}")
    for config in CONFIGS
    for field in fields(config)
]
STRANGE = ["nosuch", "1", b"1", math.nan, math.inf, -math.inf, 10**400, -1e-9, -3, 0.5, [1], {}, int, 1j, None, True]


def members(kind: Any) -> list[Any]:
    """The types of a union, without their ranges."""
    if get_origin(kind) is Annotated:
        return members(get_args(kind)[0])
    if get_origin(kind) in (Literal, tuple) or not get_args(kind):
        return [kind]
    return [one for part in get_args(kind) for one in members(part)]


def may_be(value: Any, kind: Any) -> bool:
    """Whether a value is of the kind at all: an own, rougher reading of the annotation than the one that is tested."""
    for one in members(kind):
        if get_origin(one) is Literal and isinstance(value, str | int) and value in get_args(one):
            return True
        if value is None or isinstance(value, bool):
            if one is type(value):
                return True
        elif isinstance(one, type) and one in (int, float, bool, str) and isinstance(value, one):
            return True
    return isinstance(value, int) and not isinstance(value, bool) and float in members(kind)


@pytest.mark.parametrize(("config", "name"), FIELDS)
def test_a_value_of_another_kind_is_refused(config, name):
    kind = annotations(type(config))[name]
    refused = 0
    for value in STRANGE:
        if may_be(value, kind) and not (isinstance(value, float) and not math.isfinite(value)):
            continue
        refused += 1
        with pytest.raises(ValueError, match=rf"^{name} \S") as error:
            replace(config, **{name: value})
        assert str(error.value).count(". ") == 0
        assert "\n" not in str(error.value)
    assert refused >= 8


@pytest.mark.parametrize(("config", "name"), FIELDS)
def test_every_number_has_a_range(config, name):
    """A number whose annotation says no more than int or float is one that -3 gets through."""
    if not isinstance(config, SamplingConfig):  # has sentences of its own
        kind = annotations(type(config))[name]
        parts = [kind] if get_origin(kind) is Annotated else [*get_args(kind), kind]
        assert not {int, float} & {part for part in parts if isinstance(part, type)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"norm": "nosuch"}, "norm is 'nosuch'; it must be one of layer, rms."),
        ({"norm_eps": -1}, "norm_eps is -1; it must be a number above 0."),
        ({"norm_eps": 0.0}, "norm_eps is 0.0; it must be a number above 0."),
        ({"logit_cap": -3}, "logit_cap is -3; it must be a number above 0 or None."),
        ({"width": "32"}, "width is '32'; it must be a whole number from 1 to 2147483647."),
        ({"width": 32.0}, "width is 32.0; it must be a whole number from 1 to 2147483647."),
        ({"tie_embeddings": "false"}, "tie_embeddings is 'false'; it must be True or False."),
        ({"dropout": math.nan}, "dropout is nan; it must be a number of at least 0 and below 1."),
    ],
    ids=str,
)
def test_what_is_said(change, message):
    data = {**config_to_json(LM), **change}
    with pytest.raises(ValueError, match="must be") as error:
        config_from_json(json.loads(json.dumps(data)))
    assert str(error.value) == message
    with pytest.raises(ValueError, match=next(iter(change))):
        ExlstmConfig.from_dict(data)


def test_presets_and_what_they_are_made_of_pass():
    for name in exlstm.PRESETS:
        config = exlstm.preset(name)
        check_fields(config)
        assert config_from_json(json.loads(json.dumps(config_to_json(config)))) == config
    assert replace(LM, norm_eps=1).norm_eps == 1  # an int is a number


def test_ends_of_a_range():
    half_open = Range(least=0, below=1)
    assert [half_open.holds(x) for x in (-0.1, 0, 0.5, 1, 2, math.nan)] == [False, True, True, False, False, False]
    assert [Range(above=0).holds(x) for x in (0, 1e-300, 10**400, math.inf)] == [False, True, True, False]
