import json
from dataclasses import fields, replace

import pytest

from exlstm.train.config import INVOCATION, TrainConfig, from_json, resumed, to_json

OTHER = {
    "run": "runs/x",
    "data": ("books", "notes:0.3"),
    "binary": True,
    "tokenizer": "bpe:512",
    "preset": "laptop-tiny",
    "blocks": "ms",
    "steps": 7,
    "minutes": 1.5,
    "tokens": 999,
    "schedule": "wsd",
    "dtype": "bfloat16",
    "device": "cuda",
    "compile": True,
    "carry_state": True,
    "yardsticks": False,
}


def other_values() -> TrainConfig:
    """Every setting differs from its default, but for the two that exclude each other."""
    numbers = {
        field.name: field.default * 0.5 if isinstance(field.default, float) else field.default + 1
        for field in fields(TrainConfig)
        if isinstance(field.default, int | float) and not isinstance(field.default, bool)
    }
    return TrainConfig(**{**numbers, **OTHER})


def test_json_round_trip_keeps_every_setting() -> None:
    config = other_values()
    data = to_json(config)
    default = TrainConfig()
    assert all(data[name] != getattr(default, name) for name in data)
    assert set(data) == {field.name for field in fields(TrainConfig)} - set(INVOCATION)
    assert from_json(json.loads(json.dumps(data))) == replace(config, run=None)


def test_unknown_setting_in_json_is_named() -> None:
    with pytest.raises(ValueError, match="setting 'colour' that this version of exlstm lacks"):
        from_json({**to_json(TrainConfig()), "colour": "red"})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[(name, value) for name in ("steps", "minutes", "tokens") for value in (0, -1)],
        *[(name, 0) for name in ("batch", "length", "accumulate", "validation_tokens", "keep", "log_every")],
        *[
            (name, value)
            for name in ("lr", "eps", "clip", "save_minutes")
            for value in (0.0, float("inf"), float("nan"))
        ],
        *[(name, value) for name in ("warmup", "cooldown", "final_lr") for value in (-0.1, 1.1)],
        *[(name, value) for name in ("beta1", "beta2") for value in (-0.1, 1.0)],
        *[(name, -1) for name in ("weight_decay", "validations", "samples", "final_minutes", "seed")],
        ("minutes", float("inf")),
        ("seed", 2**64),
        ("schedule", "linear"),
        ("dtype", "float16"),
    ],
)
def test_impossible_values_name_the_flag_and_the_value(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"^--{name.replace('_', '-')} {value!r} cannot work; .*\\.$"):
        TrainConfig(**{name: value})


def test_impossible_combinations() -> None:
    with pytest.raises(ValueError, match=r"--warmup 0\.6 and --cooldown 0\.5 are more than the whole run"):
        TrainConfig(schedule="wsd", warmup=0.6, cooldown=0.5)
    with pytest.raises(ValueError, match="--resume continues the run, --overwrite deletes it"):
        TrainConfig(run="x", resume=True, overwrite=True)
    for flag in ("resume", "overwrite"):
        with pytest.raises(ValueError, match="add --run FOLDER"):
            TrainConfig(**{flag: True})


def test_resumed_takes_the_saved_settings_and_the_new_budget() -> None:
    saved = other_values()
    assert resumed(TrainConfig(run="r", resume=True), saved) == replace(saved, run="r", resume=True)
    asked = TrainConfig(run="r", resume=True, steps=70, keep=9, lr=saved.lr)
    assert resumed(asked, saved) == replace(saved, run="r", resume=True, steps=70, minutes=None, tokens=None, keep=9)


@pytest.mark.parametrize(("name", "value"), [("lr", 0.5), ("seed", 3), ("data", "other"), ("carry_state", True)])
def test_resumed_refuses_another_setting(name: str, value: object) -> None:
    saved = TrainConfig()
    with pytest.raises(ValueError, match=f"^--{name.replace('_', '-')} {value!r} differs from the .* start a new run"):
        resumed(TrainConfig(run="r", resume=True, **{name: value}), saved)
