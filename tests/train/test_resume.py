"""Bit for bit: two runs with one seed, and a run that was interrupted, killed or rolled back and then resumed."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import Settings, ctrl_c_at, numbers, optimizer, trainer_json, weights

from exlstm.mixers.slstm import SLSTMConfig
from exlstm.models.block import BlockConfig
from exlstm.models.lm import LMConfig
from exlstm.models.pattern import lm_from_pattern
from exlstm.train.config import More, TrainConfig
from exlstm.train.run import train
from exlstm.train.run_folder import open_run

# what a resumed step depends on beyond the weights: order of the data, schedule, dropout, carried state
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "carried state": {"carry_state": True, "batch": 3},
    "accumulated": {"accumulate": 3, "schedule": "wsd", "cooldown": 0.5},
    "accumulated and carried": {"accumulate": 2, "carry_state": True},
    "bfloat16": {"dtype": "bfloat16"},
    "tokens": {"steps": None, "tokens": 8 * 2 * 16 - 5},
}


def same(one: str, other: str, step: int = 8) -> None:
    assert numbers(one) == numbers(other)
    assert weights(one, step) == weights(other, step)
    assert optimizer(one, step) == optimizer(other, step)
    random = [trainer_json(run, step)["random"] for run in (one, other)]
    assert random[0] == random[1]


@pytest.mark.parametrize(
    "name",
    # by default what others contain is left out
    [pytest.param(name, marks=pytest.mark.slow if name in ("plain", "accumulated") else ()) for name in VARIANTS],
)
def test_interrupted_and_resumed_is_uninterrupted(
    name: str, settings: Settings, tiny: LMConfig, tmp_path: Path
) -> None:
    tiny = replace(tiny, dropout=0.2)
    config = settings(**VARIANTS[name], samples=8)
    train(replace(config, run=str(tmp_path / "whole")), model=tiny, sample=ctrl_c_at(99))
    stopped = train(config, model=tiny, sample=ctrl_c_at(3))
    assert (stopped.stopped, stopped.step, stopped.final) == ("signal", 3, None)
    resumed = train(TrainConfig(run=config.run, resume=True), sample=ctrl_c_at(99))
    assert (resumed.stopped, resumed.step) == ("budget", 8)
    same(str(tmp_path / "whole"), resumed.run)


@pytest.mark.breadth(1)
@pytest.mark.parametrize("carry_state", [False, True])
def test_a_run_on_several_sources_resumes(
    carry_state: bool, settings: Settings, tiny: LMConfig, text: Path, tmp_path: Path
) -> None:
    """Bit for bit, on the same files, and says what each source's share is."""
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/a.txt").write_text("".join(f"note {number}\n" for number in range(300)))
    (tmp_path / "notes/b.png").write_bytes(b"\0" * 99)
    config = settings(data=(str(text), f"{tmp_path / 'notes'}:0.3"), batch=3, samples=8, carry_state=carry_state)
    train(replace(config, run=str(tmp_path / "whole")), model=tiny, sample=ctrl_c_at(99))
    train(config, model=tiny, sample=ctrl_c_at(3))
    resumed = train(TrainConfig(run=config.run, resume=True), sample=ctrl_c_at(99))
    same(str(tmp_path / "whole"), resumed.run)
    alone = train(replace(config, run=str(tmp_path / "alone"), data=str(text)), model=tiny)
    assert numbers(alone.run)[0]["loss"] != numbers(resumed.run)[0]["loss"]
    share = 1 / 3 if carry_state else 0.3  # a row of three
    assert resumed.shares == {"text.txt": pytest.approx(1 - share), "notes": pytest.approx(share)}
    assert json.loads((tmp_path / "run/summary.json").read_text())["shares"] == resumed.shares
    assert f"{share:.1%} of the tokens from notes" in (tmp_path / "run/report.html").read_text()
    (tmp_path / "notes/c.txt").write_text("another note\n")
    with pytest.raises(ValueError, match=r"^the text of the run .* has changed since it began"):
        train(TrainConfig(run=config.run, resume=True))


def test_a_run_that_began_when_every_file_was_taken_goes_on(settings: Settings, tiny: LMConfig, tmp_path: Path) -> None:
    """Its config.json does not say so."""
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/a.txt").write_text("".join(f"note {number}\n" for number in range(300)))
    (tmp_path / "notes/b.png").write_bytes(b"\0\n" * 99)
    stopped = train(settings(data=str(tmp_path / "notes"), binary=True, samples=8), model=tiny, sample=ctrl_c_at(3))
    file = tmp_path / "run/config.json"
    content = json.loads(file.read_text())
    del content["train"]["binary"]
    del content["data"]["sources"]
    file.write_text(json.dumps(content))
    assert train(TrainConfig(run=stopped.run, resume=True)).step == 8


def test_what_was_left_out_is_said(
    settings: Settings, tiny: LMConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/a.txt").write_text("".join(f"note {number}\n" for number in range(300)))
    (tmp_path / "notes/b.png").write_bytes(b"\0" * 99)
    train(settings(data=str(tmp_path / "notes"), steps=1), model=tiny)
    assert "\n1 of 2 files does not look like text: b.png (--binary takes them)\n" in capsys.readouterr().out
    assert open_run(tmp_path / "run").config()["data"]["documents"] == 1
    train(settings(data=str(tmp_path / "notes"), steps=1, binary=True, overwrite=True), model=tiny)
    assert "not look like text" not in capsys.readouterr().out
    assert open_run(tmp_path / "run").config()["data"]["documents"] == 2


@pytest.mark.slow
def test_workers_share_a_batch_and_stay_in_step(settings: Settings, tiny: LMConfig, tmp_path: Path) -> None:
    """Unequal parts, a carried state: bit for bit when resumed, and the numbers of one worker but for rounding."""
    config = settings(workers=2, batch=3, carry_state=True, accumulate=2, samples=8)
    alone = train(replace(config, run=str(tmp_path / "alone"), workers=1), model=tiny)
    train(replace(config, run=str(tmp_path / "whole")), model=tiny, sample=ctrl_c_at(99))
    train(config, model=tiny, sample=ctrl_c_at(3))
    resumed = train(TrainConfig(run=config.run, resume=True), sample=ctrl_c_at(99))
    same(str(tmp_path / "whole"), resumed.run)
    for key in ("loss", "gradient_norm"):
        one, two = ([r[key] for r in numbers(run) if key in r] for run in (alone.run, resumed.run))
        assert one == pytest.approx(two, rel=1e-4), key


def test_dropout_and_workers_do_not_go_together(settings: Settings, tiny: LMConfig) -> None:
    """Threads would draw from one generator in an order that differs from run to run."""
    with pytest.raises(ValueError, match=r"^--workers 2 cannot be used with dropout, .*; leave --workers out\.$"):
        train(settings(workers=2), model=replace(tiny, dropout=0.1))
    with pytest.raises(ValueError, match=r"^--workers 2 cannot be used with a learned graph, .*; leave --workers out"):
        train(settings(workers=2), model=with_learned_graph(tiny))


def with_learned_graph(config: LMConfig) -> LMConfig:
    mixer = SLSTMConfig(heads=2, recurrence="learned", recurrence_blocks=1, recurrent_init="uniform")
    return replace(config, blocks=(*config.blocks, BlockConfig(mixer=mixer)))


@pytest.mark.slow
def test_a_learned_graph_resumes(
    settings: Settings, tiny: LMConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its noise goes on where it was, and there is one worker whatever the machine would allow."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    model = with_learned_graph(tiny)
    train(settings(run=str(tmp_path / "whole"), steps=4, samples=4), model=model, sample=ctrl_c_at(99))
    config = settings(steps=4, samples=4)
    train(config, model=model, sample=ctrl_c_at(1))
    resumed = train(TrainConfig(run=config.run, resume=True), sample=ctrl_c_at(99))
    assert open_run(resumed.run).train_config().workers == 1
    same(str(tmp_path / "whole"), resumed.run, step=4)


@pytest.mark.slow
def test_all_mixers_resume(settings: Settings, tmp_path: Path) -> None:
    """With a state of every kind in the checkpoint (attention's grows, so it cannot be carried)."""
    model = lm_from_pattern("msMl", vocab_size=257, width=16, heads=2)
    config = settings(steps=4, length=4, carry_state=True, samples=4)
    train(replace(config, run=str(tmp_path / "whole")), model=model, sample=ctrl_c_at(99))
    train(config, model=model, sample=ctrl_c_at(1))
    resumed = train(TrainConfig(run=config.run, resume=True), sample=ctrl_c_at(99))
    same(str(tmp_path / "whole"), resumed.run, step=4)


def test_one_seed_one_run(settings: Settings, tiny: LMConfig, tmp_path: Path) -> None:
    for name in ("a", "b"):
        train(settings(run=str(tmp_path / name)), model=tiny)
    train(settings(run=str(tmp_path / "c"), seed=1), model=tiny)
    same(str(tmp_path / "a"), str(tmp_path / "b"))
    assert numbers(tmp_path / "a")[0]["loss"] != numbers(tmp_path / "c")[0]["loss"]


def test_looking_changes_nothing(settings: Settings, tiny: LMConfig, tmp_path: Path) -> None:
    """Validations, samples (which draw random numbers) and checkpoints leave the steps as they were."""
    tiny = replace(tiny, dropout=0.2)

    def draw(model: object, tokenizer: object) -> str:
        return str(torch.rand(3))

    train(settings(run=str(tmp_path / "a"), validations=0), model=tiny)
    train(settings(run=str(tmp_path / "b"), validations=8, samples=8, save_minutes=1e-9), model=tiny, sample=draw)
    steps = [[record for record in numbers(tmp_path / name) if "loss" in record] for name in "ab"]
    assert len(steps[0]) == 8
    assert steps[0] == steps[1]
    assert weights(tmp_path / "a", 8) == weights(tmp_path / "b", 8)


def test_lines_after_the_checkpoint_are_taken_again(settings: Settings, tiny: LMConfig, tmp_path: Path) -> None:
    """As after a kill: steps were logged that no checkpoint holds, and the last line is torn."""
    run = tmp_path / "run"
    train(settings(), model=tiny)
    shutil.copytree(run, tmp_path / "whole")
    shutil.rmtree(run / "checkpoints" / "step-00000008")
    with (run / "metrics.jsonl").open("a") as metrics:
        metrics.write('{"step": 9, "tok')
    train(TrainConfig(run=str(run), resume=True))
    same(str(tmp_path / "whole"), str(run))


def test_killed_before_the_first_checkpoint(settings: Settings, tiny: LMConfig, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(settings(), model=tiny)
    shutil.copytree(run, tmp_path / "whole")
    shutil.rmtree(run / "checkpoints")
    train(TrainConfig(run=str(run), resume=True))
    same(str(tmp_path / "whole"), str(run))


def test_a_finished_run_can_be_given_a_longer_budget(settings: Settings, tiny: LMConfig) -> None:
    first = train(settings(), model=tiny)
    files = sorted(Path(first.run).rglob("*"))
    for budget in ({}, {"steps": 8}, {"steps": 3}):
        with pytest.raises(
            ValueError, match=r"has used up its budget after 8 steps .*; give it more, for example --st"
        ):
            train(TrainConfig(run=first.run, resume=True, **budget))
    assert sorted(Path(first.run).rglob("*")) == files
    longer = train(TrainConfig(run=first.run, resume=True, steps=10))
    assert longer.step == 10
    longer = train(TrainConfig(run=first.run, resume=True, steps=More(2)), sample=ctrl_c_at(1))
    assert longer.step == 12
    assert [record["step"] for record in numbers(first.run) if "loss" in record] == list(range(1, 13))
    # the budget is the run's from now on: one that is stopped in it goes on to its end
    assert open_run(first.run).train_config().steps == 12


def test_a_finished_run_may_lack_its_final_evaluation(settings: Settings, tiny: LMConfig) -> None:
    """As after a kill while it went on: there is nothing to train, and that to do."""
    first = train(settings(), model=tiny)
    (Path(first.run) / "summary.json").unlink()
    assert train(TrainConfig(run=first.run, resume=True)).final == first.final


def test_a_run_and_its_working_directory_may_move(
    settings: Settings, tiny: LMConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    train(settings(run="run", data="text.txt"), model=tiny)
    assert open_run("run").train_config().data == str(tmp_path / "text.txt")
    (tmp_path / "elsewhere").mkdir()
    shutil.move("run", "elsewhere/moved")
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert train(TrainConfig(run="moved", resume=True, data="../elsewhere/../text.txt", steps=9)).step == 9


def test_accumulated_small_batches_are_one_large_batch(settings: Settings, tiny: LMConfig, tmp_path: Path) -> None:
    train(settings(run=str(tmp_path / "a"), batch=4), model=tiny)
    train(settings(run=str(tmp_path / "b"), batch=2, accumulate=2), model=tiny)
    large, small = ([r for r in numbers(tmp_path / name) if "loss" in r] for name in "ab")
    for key in ("loss", "bits_per_byte", "gradient_norm", "tokens"):
        assert [r[key] for r in large] == pytest.approx([r[key] for r in small], rel=1e-4), key
