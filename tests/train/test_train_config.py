import copy
import json
import pickle
from dataclasses import fields, replace
from typing import Any

import pytest

from exlstm.train.config import BUDGET, CHANGEABLE, INVOCATION, More, TrainConfig, from_json, resumed, to_json

OTHER = {
    "run": "runs/x",
    "data": ("books", "notes:0.3"),
    "binary": True,
    "tokenizer": "bpe:512",
    "from_model": "runs/y",
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
    "tensorboard": True,
}


def other_values(**changes: object) -> TrainConfig:
    """Every setting differs from its default, but for those that exclude another one."""
    numbers = {
        field.name: field.default * 0.5 if isinstance(field.default, float) else field.default + 1
        for field in fields(TrainConfig)
        if isinstance(field.default, int | float) and not isinstance(field.default, bool)
    }
    return TrainConfig(**{**numbers, **OTHER, **changes})


def test_json_round_trip_keeps_every_setting() -> None:
    different = set()
    for config in (other_values(), other_values(compile=False, gradient_checkpointing=True)):
        data = to_json(config)
        different |= {name for name in data if data[name] != getattr(TrainConfig(), name)}
        assert set(data) == {field.name for field in fields(TrainConfig)} - set(INVOCATION)
        assert from_json(json.loads(json.dumps(data))) == replace(config, run=None)
    assert different == set(data)


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
    with pytest.raises(ValueError, match=r"^--gradient-checkpointing and --compile were both given; leave one .*\.$"):
        TrainConfig(gradient_checkpointing=True, compile=True)
    with pytest.raises(ValueError, match=r"--warmup 0\.6 and --cooldown 0\.5 are more than the whole run"):
        TrainConfig(schedule="wsd", warmup=0.6, cooldown=0.5)
    with pytest.raises(ValueError, match="--resume continues the run, --overwrite deletes it"):
        TrainConfig(run="x", resume=True, overwrite=True)
    for flag in ("resume", "overwrite"):
        with pytest.raises(ValueError, match="add --run FOLDER"):
            TrainConfig(**{flag: True})


def test_another_type_in_json_is_named() -> None:
    for name, value in {"batch": "16", "lr": None, "compile": 1, "schedule": "linear", "steps": 2.5}.items():
        with pytest.raises(ValueError, match=f"^x.json has .* as the setting '{name}', which is of another type; "):
            from_json({name: value}, where="x.json")
    assert from_json({"lr": 1, "steps": None}) == TrainConfig(lr=1.0)


def test_what_is_given_is_known_even_where_it_equals_the_default() -> None:
    config = TrainConfig(batch=16)
    assert config.given == {"batch"}
    assert config.but(steps=3).given == {"batch", "steps"}
    assert config == TrainConfig()
    assert copy.deepcopy(config).given == pickle.loads(pickle.dumps(config)).given == {"batch"}


def resume(saved: TrainConfig, used: int = 0, seconds: float = 0.0, **given: Any) -> TrainConfig:
    return resumed(TrainConfig(run="r", resume=True, **given), saved, steps=used, seconds=seconds)


def test_resumed_takes_the_saved_settings_and_the_new_budget() -> None:
    saved = other_values()
    assert resume(saved) == replace(saved, run="r", resume=True)
    expected = replace(saved, run="r", resume=True, steps=70, minutes=None, tokens=None, keep=9)
    assert resume(saved, steps=70, keep=9, lr=saved.lr) == expected


def test_a_budget_may_be_on_top_of_what_was_used() -> None:
    saved = TrainConfig(steps=100, batch=2, length=8)
    longer = resume(saved, minutes=More(10), tokens=More(5), used=30, seconds=90.0)
    assert (longer.steps, longer.minutes, longer.tokens) == (None, 11.5, 30 * 16 + 5)
    assert resume(saved, minutes=More(10), seconds=90.0).minutes == 11.5
    with pytest.raises(ValueError, match=r"^--steps \+5 adds to a run; add --run FOLDER --resume, or leave out"):
        TrainConfig(steps=More(5))


@pytest.mark.parametrize("name", [field.name for field in fields(TrainConfig) if field.name not in INVOCATION])
def test_resumed_refuses_the_default_where_the_run_has_another_value(name: str) -> None:
    """Given and left out differ for every setting, whichever its default is."""
    saved, default = other_values(), getattr(TrainConfig(), name)
    if name in CHANGEABLE or name == "workers":  # 0 workers: as many as the run has
        assert resume(saved, **{name: default}).run == "r"
        return
    with pytest.raises(ValueError, match=f"^--{name.replace('_', '-')} .* differs from the .* start a new run"):
        resume(saved, **{name: default})


def test_resumed_takes_the_runs_own_values() -> None:
    saved = other_values()
    given = {name: value for name, value in to_json(saved).items() if name not in BUDGET}
    assert resume(saved, **given) == replace(saved, run="r", resume=True)


@pytest.mark.parametrize(("name", "value"), [("lr", 0.5), ("seed", 3), ("data", "other"), ("carry_state", True)])
def test_resumed_refuses_another_setting(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"^--{name.replace('_', '-')} {value!r} differs from the .* start a new run"):
        resume(TrainConfig(), **{name: value})
