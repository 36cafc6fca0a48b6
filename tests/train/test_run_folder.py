"""What is there already, what is damaged, what is kept."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from tiny_runs import TINY, Settings, settings_in, trainer_json, write_text

from exlstm.models.checkpoints.saving import save
from exlstm.models.lm import LM, LMConfig
from exlstm.models.pattern import lm_from_pattern
from exlstm.train.checkpoint import tidy
from exlstm.train.config import TrainConfig
from exlstm.train.loop import Trainer
from exlstm.train.run import train
from exlstm.train.run_folder import RunFolder, new_run_path, open_run
from exlstm.train.setup import set_up


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run with checkpoints of steps 4 and 8, and a carried state, which tests copy."""
    folder = write_text(tmp_path_factory.mktemp("finished")).parent
    train(settings_in(folder, carry_state=True), model=TINY)
    return folder


@pytest.fixture
def run(finished: Path, text: Path) -> RunFolder:
    """The test's own copy of the finished run, on the test's own text."""
    folder = text.parent
    shutil.copytree(finished / "run", folder / "run", symlinks=True)
    config = folder / "run/config.json"
    config.write_text(config.read_text().replace(str(finished), str(folder)))
    return open_run(folder / "run")


def contents(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def test_layout(run: RunFolder, tiny: LMConfig) -> None:
    names = {"config.json", "tokenizer.json", "metrics.jsonl", "loss.png", "report.html", "summary.json", "checkpoints"}
    assert {entry.name for entry in run.path.iterdir()} == names
    assert run.steps() == [4, 8]
    assert run.config()["format"] == 1
    assert run.model_config() == tiny
    assert run.tokenizer().vocab_size == 257
    assert run.train_config().steps == 8
    assert (run.checkpoints / "best").resolve() == run.checkpoint_at(run.step_of("best"))
    position = trainer_json(run.path, 8)
    assert (position["step"], position["tokens"], position["data_position"]) == (8, 8 * 32, 8)
    assert {path.name for path in run.checkpoint_at(8).iterdir()} == {
        *("config.json", "model.safetensors", "optimizer.safetensors", "state.safetensors", "trainer.json")
    }


def test_metrics_have_what_a_curve_needs(run: RunFolder) -> None:
    records = list(run.read_metrics())
    steps = [record for record in records if "loss" in record]
    assert [record["step"] for record in steps] == list(range(1, 9))
    assert set(steps[0]) == {"step", "tokens", "seconds", "loss", "bits_per_byte", "lr", "gradient_norm"}
    validations = [record for record in records if "validation_loss" in record]
    assert [(record["step"], record["tokens"]) for record in validations] == [(4, 128), (8, 256)]
    assert steps[0]["lr"] < steps[1]["lr"] > steps[-1]["lr"]


def test_an_existing_run_is_not_touched(run: RunFolder, settings: Settings, tiny: LMConfig) -> None:
    before = contents(run.path)
    with pytest.raises(ValueError, match="exists; continue it with --resume, or delete it with --overwrite"):
        train(settings(), model=tiny)
    assert contents(run.path) == before


def test_overwrite_starts_anew(run: RunFolder, settings: Settings, tiny: LMConfig) -> None:
    train(settings(overwrite=True, steps=2, validations=1), model=tiny)
    assert run.steps() == [2]
    assert [record["step"] for record in run.read_metrics() if "loss" in record] == [1, 2]


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_of_something_else_is_never_overwritten(
    overwrite: bool, run: RunFolder, settings: Settings, tiny: LMConfig
) -> None:
    (run.path / "thesis.txt").write_text("ten years of work")
    before = contents(run.path)
    with pytest.raises(ValueError, match=r"holds 'thesis\.txt', which no run writes; choose another folder"):
        train(settings(overwrite=overwrite), model=tiny)
    assert contents(run.path) == before


def test_a_file_in_the_way(settings: Settings, tiny: LMConfig, text: Path) -> None:
    with pytest.raises(ValueError, match=r"text\.txt is a file; choose another folder with --run"):
        train(settings(run=str(text)), model=tiny)


def test_an_empty_folder_is_free(settings: Settings, tiny: LMConfig, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    assert train(settings(steps=1), model=tiny).step == 1


def test_runs_without_a_name_are_numbered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert new_run_path("laptop-tiny") == Path("runs/laptop-tiny-001")
    Path("runs/laptop-tiny-001").mkdir(parents=True)
    assert new_run_path("laptop-tiny") == Path("runs/laptop-tiny-002")


def test_no_run_to_resume(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"there is no run at .*nowhere"):
        train(TrainConfig(run=str(tmp_path / "nowhere"), resume=True))
    with pytest.raises(ValueError, match=r"config\.json is missing"):
        train(TrainConfig(run=str(tmp_path), resume=True))


def test_another_text_is_not_continued(run: RunFolder, text: Path) -> None:
    before = contents(run.path)
    text.write_text(text.read_text() + "one more line\n")
    with pytest.raises(ValueError, match=r"the text of the run .* has changed since it began"):
        train(TrainConfig(run=str(run.path), resume=True))
    assert contents(run.path) == before


def test_another_architecture_is_not_continued(run: RunFolder, tiny: LMConfig) -> None:
    with pytest.raises(ValueError, match="has another architecture than the one given"):
        train(TrainConfig(run=str(run.path), resume=True), model=replace(tiny, width=32))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def foreign_model(path: Path) -> None:
    save(LM(lm_from_pattern("mm", vocab_size=257, width=16, heads=2)), path.parent / "other")
    for file in (path.parent / "other").iterdir():
        file.replace(path.parent / file.name)


def foreign_optimizer(path: Path) -> None:
    tensors = load_file(path)
    save_file({name.replace("head", "tail"): x for name, x in tensors.items()}, path)


def fewer_tensors(path: Path) -> None:
    save_file(dict(list(load_file(path).items())[1:]), path)


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("model.safetensors", truncate),
        ("config.json", truncate),
        ("optimizer.safetensors", truncate),
        ("state.safetensors", truncate),
        ("trainer.json", truncate),
        ("model.safetensors", Path.unlink),
        *[
            pytest.param(name, Path.unlink, marks=pytest.mark.slow)
            for name in ("config.json", "optimizer.safetensors", "trainer.json")
        ],
        ("model.safetensors", foreign_model),
        ("optimizer.safetensors", foreign_optimizer),
        ("optimizer.safetensors", fewer_tensors),
        pytest.param("state.safetensors", fewer_tensors, marks=pytest.mark.slow),
    ],
)
def test_a_damaged_checkpoint_names_itself_and_the_way_back(name: str, damage: Any, run: RunFolder) -> None:
    damage(run.checkpoint_at(8) / name)
    metrics = run.metrics.read_bytes()
    message = r"step-00000008 is damaged or of another model \(.*\); remove that folder to continue from step 4\.$"
    with pytest.raises(ValueError, match=message) as caught:
        train(TrainConfig(run=str(run.path), resume=True, steps=9))
    assert "\n" not in str(caught.value)
    assert run.metrics.read_bytes() == metrics
    shutil.rmtree(run.checkpoint_at(8))
    assert train(TrainConfig(run=str(run.path), resume=True, steps=9)).step == 9


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_a_damaged_run(name: str, run: RunFolder) -> None:
    truncate(run.path / name)
    with pytest.raises(ValueError, match=f"{name} is not JSON; it is damaged"):
        train(TrainConfig(run=str(run.path), resume=True))
    (run.path / name).write_text('{"format": 99}')
    with pytest.raises(ValueError):
        train(TrainConfig(run=str(run.path), resume=True))


def test_step_of(run: RunFolder) -> None:
    assert run.step_of("last") == 8
    assert run.step_of(4) == 4
    with pytest.raises(ValueError, match=r"no checkpoint of step 5; it has \[4, 8\], 'best' and 'last'"):
        run.step_of(5)
    shutil.rmtree(run.checkpoints)
    with pytest.raises(ValueError, match="has no checkpoint yet"):
        run.step_of("best")


def checkpoints_with(path: Path, scores: dict[int, float | None]) -> RunFolder:
    run = RunFolder(path)
    for step, score in scores.items():
        run.checkpoint_at(step).mkdir(parents=True)
        (run.checkpoint_at(step) / "trainer.json").write_text(json.dumps({"validation_bits_per_byte": score}))
    return run


@pytest.mark.parametrize(
    ("scores", "keep", "kept", "best"),
    [
        ({1: 3.0, 2: 1.0, 3: 2.0, 4: 2.5, 5: None}, 2, [2, 4, 5], 2),
        ({1: 3.0, 2: 1.0, 3: 1.0, 4: 2.5}, 1, [3, 4], 3),  # of two equally good ones, the later
        ({1: 3.0, 2: 1.0}, 5, [1, 2], 2),
        ({1: None, 2: None, 3: None}, 2, [2, 3], 3),
    ],
)
def test_the_newest_and_the_best_are_kept(
    scores: dict[int, float | None], keep: int, kept: list[int], best: int, tmp_path: Path
) -> None:
    run = checkpoints_with(tmp_path, scores)
    (run.checkpoints / ".saving-abc").mkdir()
    tidy(run, keep)
    assert run.steps() == kept
    assert run.step_of("best") == best
    assert (run.checkpoints / "best").readlink() == Path(f"step-{best:08d}")
    assert not list(run.checkpoints.glob(".*"))


def test_without_links_the_best_is_still_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise OSError("no links here")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    run = checkpoints_with(tmp_path, {1: 1.0, 2: 2.0})
    tidy(run, 1)
    assert run.step_of("best") == 1
    assert run.steps() == [1, 2]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"length": 100_000}, "give more text"),
        ({"batch": 5000, "carry_state": True}, "give more text"),
        ({"data": "/nowhere/at/all.txt"}, "there is no file or folder '/nowhere/at/all.txt'"),
        ({"tokenizer": "words"}, "the tokenizer 'words' is unknown"),
        ({"preset": "desktop"}, "there is no preset 'desktop'; choose one of .*laptop-tiny"),
        ({"blocks": "mxm"}, "the block pattern 'mxm'"),
        ({"device": "cuda:99"}, "--device 'cuda:99' is not on this machine"),
        ({"device": "abacus"}, "--device 'abacus' is not on this machine"),
        ({"device": "meta"}, "--device 'meta' is not on this machine"),
        (
            {"batch": 10**9},
            r"1,000,000,000 rows of 16 tokens need at least [\d,]+ GB of memory and cpu has ",
        ),
        ({"accumulate": 10**12}, r"--accumulate 1000000000000 makes a step of [\d,]+ tokens and the text has [\d,]+; "),
    ],
)
def test_nothing_is_written_when_a_run_cannot_begin(
    changes: dict[str, Any], message: str, settings: Settings, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        train(settings(**{"preset": "laptop-tiny", **changes}))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_run_that_fails_in_its_first_step_leaves_nothing(
    settings: Settings, tiny: LMConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_memory(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(Trainer, "_gradients", no_memory)
    with pytest.raises(MemoryError):
        train(settings(), model=tiny)
    assert not (tmp_path / "run").exists()


def test_a_run_that_fails_later_keeps_what_it_has(
    run: RunFolder, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_memory(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(Trainer, "_gradients", no_memory)
    before = contents(run.checkpoints)
    with pytest.raises(MemoryError):
        train(TrainConfig(run=str(run.path), resume=True, steps=12))
    assert contents(run.checkpoints) == before


def test_the_vocabulary_must_hold_the_tokenizer(settings: Settings, tiny: LMConfig, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="vocabulary of 100, the tokenizer one of 257; make it at least 257"):
        train(settings(), model=replace(tiny, vocab_size=100))
    assert not (tmp_path / "run").exists()


def test_blocks_override_the_preset_at_its_width(settings: Settings) -> None:
    setup = set_up(settings(preset="laptop-tiny", blocks="mM"), None)
    assert setup.model == lm_from_pattern("mM", vocab_size=257, width=32)


def test_carrying_a_growing_state_is_refused(settings: Settings) -> None:
    model = lm_from_pattern("ma", vocab_size=257, width=64)
    with pytest.raises(ValueError, match="--carry-state needs a state of fixed size"):
        train(settings(carry_state=True), model=model)
