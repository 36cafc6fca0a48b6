"""A run that starts from a model on disk."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file
from tiny_runs import Settings, numbers, optimizer, weights

import exlstm
from exlstm.models.lm import LMConfig
from exlstm.models.states.fingerprint import fingerprint
from exlstm.train.config import TrainConfig
from exlstm.train.run import train
from exlstm.train.run_folder import open_run
from exlstm.train.setup import set_up


@pytest.fixture
def first(settings: Settings, tiny: LMConfig) -> str:
    """A run of two steps."""
    return train(settings(steps=2), model=tiny).run


def tuning(settings: Settings, first: str, tmp_path: Path, **changes: object) -> TrainConfig:
    """From the first run, with so low a rate that no weight changes."""
    return settings(**{"run": str(tmp_path / "tuned"), "from_model": first, "lr": 1e-30, "steps": 1, **changes})


@pytest.mark.parametrize("place", ["", "checkpoints/best", "checkpoints/step-00000002/model.safetensors"])
def test_weights_architecture_and_tokenizer_are_its_own(
    settings: Settings, first: str, tmp_path: Path, place: str
) -> None:
    done = train(tuning(settings, str(Path(first) / place), tmp_path))
    best = open_run(first).step_of("best")
    assert weights(done.run, 1) == weights(first, best)
    assert open_run(done.run).model_config() == open_run(first).model_config()
    assert (Path(done.run) / "tokenizer.json").read_bytes() == (Path(first) / "tokenizer.json").read_bytes()
    optimiser = load_file(open_run(done.run).checkpoint_at(1) / "optimizer.safetensors")
    assert optimiser["head.weight/step"] == 1


def test_the_run_and_its_report_name_what_it_started_from(settings: Settings, first: str, tmp_path: Path) -> None:
    done = train(tuning(settings, first, tmp_path))
    source = open_run(first)
    start = open_run(done.run).config()["from"]
    assert start == {
        "model": str(source.checkpoint_at(source.step_of("best")).resolve()),
        "fingerprint": fingerprint(source.load_model("best")),
        "step": source.step_of("best"),
    }
    report = (Path(done.run) / "report.html").read_text()
    assert start["model"] in report
    assert start["fingerprint"] in report
    # what it started from may go when there is a checkpoint
    shutil.rmtree(first)
    assert train(TrainConfig(run=done.run, resume=True, steps=2)).step == 2


@pytest.mark.slow
def test_killed_before_the_first_checkpoint_it_starts_there_again(
    settings: Settings, first: str, tmp_path: Path
) -> None:
    config = tuning(settings, first, tmp_path, lr=1e-2)
    done = train(config)
    logged, found, averages = numbers(done.run), weights(done.run, 1), optimizer(done.run, 1)

    shutil.rmtree(Path(done.run) / "checkpoints")
    train(TrainConfig(run=done.run, resume=True))
    assert (numbers(done.run), weights(done.run, 1), optimizer(done.run, 1)) == (logged, found, averages)

    shutil.rmtree(Path(done.run) / "checkpoints")
    train(settings(steps=2, overwrite=True, seed=5), model=open_run(done.run).model_config())
    with pytest.raises(
        ValueError, match="has changed since the run that starts from it began; put it back, or start a"
    ):
        train(TrainConfig(run=done.run, resume=True))


@pytest.mark.parametrize("name", ["preset", "blocks", "tokenizer"])
def test_what_it_decides_cannot_be_given(settings: Settings, first: str, tmp_path: Path, name: str) -> None:
    """Not even the default: it would be ignored."""
    config = tuning(settings, first, tmp_path, **{name: getattr(TrainConfig(), name)})
    with pytest.raises(ValueError, match=f"^--{name} .* cannot be used with --from-model, which has its own; leave it"):
        set_up(config, None)
    assert not (tmp_path / "tuned").exists()


def test_models_that_cannot_be_started_from(settings: Settings, first: str, tiny: LMConfig, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="both given; leave one of them out"):
        set_up(tuning(settings, first, tmp_path), tiny)
    with pytest.raises(ValueError, match=r"--overwrite would delete .* to start from; choose another folder"):
        set_up(tuning(settings, first, tmp_path, run=first, overwrite=True), None)
    with pytest.raises(ValueError, match="there is no run or model at"):
        set_up(tuning(settings, str(tmp_path / "nowhere"), tmp_path), None)
    model = open_run(first).load_model()
    exlstm.save(exlstm.quantize(model, "int8"), tmp_path / "small")
    with pytest.raises(ValueError, match=r"is quantised \(int8\) and has no gradients; start from its full weights"):
        set_up(tuning(settings, str(tmp_path / "small"), tmp_path), None)
    exlstm.save(model, tmp_path / "bare")
    with pytest.raises(ValueError, match=r"has no tokenizer\.json beside it; name a file"):
        set_up(tuning(settings, str(tmp_path / "bare"), tmp_path), None)
    assert set_up(tuning(settings, str(tmp_path / "bare"), tmp_path, tokenizer="bytes"), None).start is not None


def test_an_architecture_and_a_model_to_start_from_take_each_others_place() -> None:
    named = TrainConfig(preset="laptop-tiny", tokenizer="bpe:300", lr=0.5)
    started = named.but(from_model="m")
    assert started.given == {"from_model", "lr"}
    assert started.but(blocks="mm") == TrainConfig(blocks="mm", lr=0.5)
    assert replace(named, steps=3).given > started.given
