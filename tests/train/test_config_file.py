"""--config: settings from a file, of which the config.json of a run is one."""

import json
from pathlib import Path

import pytest
from tiny_runs import Settings

from exlstm.models.lm import LMConfig
from exlstm.train.config import TrainConfig
from exlstm.train.config_file import read_config
from exlstm.train.run import train
from exlstm.train.run_folder import open_run


def test_the_config_of_a_run_makes_the_run_again(settings: Settings, tmp_path: Path) -> None:
    run = open_run(train(settings(preset="laptop-tiny", blocks="m", workers=1, steps=1)).run)
    found = read_config(str(run.path / "config.json"))
    again = open_run(train(found.but(run=str(tmp_path / "again"), seed=4)).run)
    assert again.config()["train"] == {**run.config()["train"], "seed": 4}
    assert again.model_config() == run.model_config()


def test_that_of_a_model_from_python_is_refused(settings: Settings, tiny: LMConfig) -> None:
    run = train(settings(steps=1), model=tiny).run
    with pytest.raises(ValueError, match="is not the one that its preset and blocks make, for it was given in Python"):
        read_config(f"{run}/config.json")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "it is not JSON"),
        ("[]", "holds no settings"),
        ('{"train": 3}', "lacks settings or a model"),
        ('{"bathc": 3}', "has a setting 'bathc' that this version of exlstm lacks"),
        ('{"batch": "3"}', "has '3' as the setting 'batch', which is of another type"),
        ('{"batch": 0}', "--batch 0 cannot work"),
        (None, "No such file"),
    ],
)
def test_a_file_that_cannot_be_used(tmp_path: Path, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / "c.json").write_text(text)
    with pytest.raises(ValueError, match=message) as found:
        read_config(str(tmp_path / "c.json"))
    assert str(found.value).endswith(".")


def test_settings_alone(tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text(json.dumps({"batch": 16, "lr": 1}))
    found = read_config(str(tmp_path / "c.json"))
    assert (found, found.given) == (TrainConfig(lr=1.0), {"batch", "lr"})
