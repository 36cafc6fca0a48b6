"""The list of runs below a folder."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_runs import Settings, ctrl_c_at, numbers

from exlstm.models.lm import LMConfig
from exlstm.train.config import TrainConfig
from exlstm.train.run import train
from exlstm.train.run_folder import open_run
from exlstm.train.run_folder.runs import list_runs, table


@pytest.fixture
def done(settings: Settings, tiny: LMConfig, tmp_path: Path) -> Path:
    """A finished run, two folders down."""
    return Path(train(settings(run=str(tmp_path / "runs/a/done"), steps=2), model=tiny).run)


def test_states_and_numbers(done: Path, settings: Settings, tiny: LMConfig, tmp_path: Path) -> None:
    stopped = train(settings(run=str(tmp_path / "runs/stopped"), samples=8), model=tiny, sample=ctrl_c_at(5)).run
    (tmp_path / "runs/notes").mkdir()
    (tmp_path / "runs/notes/config.json").write_text("{}")
    one, two = list_runs(tmp_path / "runs")
    assert (one.run, one.state, one.steps) == (str(done), "finished", 2)
    assert one.bits_per_byte == json.loads((done / "summary.json").read_text())["validation"]["bits_per_byte"]
    assert one.loss == [r["loss"] for r in numbers(done) if "loss" in r][-1]
    assert (two.run, two.state, two.steps) == (stopped, "stopped", 5)
    assert two.bits_per_byte == min(r["validation_bits_per_byte"] for r in numbers(stopped) if "validation_loss" in r)
    heading, *lines = table([one, two]).splitlines()
    assert heading.split() == ["run", "state", "steps", "loss", "bits/byte", "when"]
    assert lines[0].split()[:4] == [str(done), "finished", "2", f"{one.loss:.4f}"]
    assert list_runs(done) == [one]


def test_a_run_is_running_while_a_process_has_it(settings: Settings, tiny: LMConfig) -> None:
    """No other one may train or delete it then."""
    config = settings(samples=8)

    def look(*_: object) -> str:
        (line,) = list_runs(str(config.run))
        with pytest.raises(ValueError, match="is being trained by another process"):
            train(TrainConfig(run=config.run, resume=True))
        with pytest.raises(ValueError, match="is being trained by another process"):
            train(config.but(overwrite=True), model=tiny)
        return line.state

    train(config, model=tiny, sample=look)
    assert [r["sample"] for r in numbers(str(config.run)) if "sample" in r] == ["running"] * 8
    assert list_runs(str(config.run))[0].state == "finished"


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-10])


@pytest.mark.parametrize("harm", [truncate, Path.unlink])
@pytest.mark.parametrize(
    "name", ["config.json", "tokenizer.json", "checkpoints/step-00000002/model.safetensors",
             "checkpoints/step-00000002/trainer.json"],
)  # fmt: skip
def test_a_damaged_run_is_told(done: Path, name: str, harm: Callable[[Path], None]) -> None:
    harm(done / name)
    (line,) = list_runs(done.parent)
    assert line.state == "damaged"
    assert line.problem


def test_a_torn_last_line_is_no_damage_and_long_files_are_read_from_their_end(done: Path) -> None:
    records = numbers(done)
    (done / "metrics.jsonl").write_text(
        "x" * 100_000 + "\n" + json.dumps({"step": 7, "loss": 2.5}) + '\n{"step": 8, "lo'
    )
    assert records[-1]["step"] == 2
    (line,) = list_runs(done)
    assert (line.state, line.steps, line.loss) == ("finished", 7, 2.5)


def test_a_run_without_a_step(done: Path, tmp_path: Path) -> None:
    (done / "metrics.jsonl").unlink()
    (done / "summary.json").unlink()
    shutil.rmtree(done / "checkpoints/step-00000002")
    (done / "checkpoints/best").unlink()
    shutil.rmtree(done / "checkpoints/step-00000001", ignore_errors=True)
    assert open_run(done).steps() == []
    (line,) = list_runs(done)
    assert (line.state, line.steps, line.loss, line.bits_per_byte) == ("stopped", 0, None, None)
    with pytest.raises(ValueError, match="there is no folder"):
        list_runs(tmp_path / "nowhere")
    assert list_runs(tmp_path / "runs") == [line]
