"""Measured seconds: of what was asked, one run at a time, behind all others."""

import json
from dataclasses import replace

import pytest
import torch
from small_studies import COUNT, Quiet, count_study, run_here

from exlstm.mixers.attention import AttentionConfig
from exlstm.mixers.lstm import LSTMConfig
from exlstm.models.lm import LM
from exlstm.study import runner, stack
from exlstm.study.contract import is_alone, run_id
from exlstm.study.results import ResultFile, load_results, result_path
from exlstm.study.runner import RunOptions
from exlstm.study.timing import Timing

TINY = Timing(
    model="lstm", architecture=stack((LSTMConfig(),), width=8), vocabulary=11, batch=2, length=6,
    places=((3, 1), (3, 2), (1030, 1), (1030, 2)), tokens=2, repeats=2,
)  # fmt: skip


def test_every_context_and_every_number_of_rows_is_measured():
    report = Quiet()
    row = json.loads(json.dumps(TINY.execute(report), allow_nan=False))
    found = row["metrics"]["generation"]
    assert [(entry["context"], entry["rows"]) for entry in found] == [(3, 1), (3, 2), (1030, 1), (1030, 2)]
    assert all(entry["token_seconds"] > 0 and entry["reading_seconds"] > 0 for entry in found)
    assert all(entry["state_bytes"] == row["state_bytes"] for entry in found)
    assert row["metrics"]["step_seconds"] > 0
    assert row["metrics"]["tests"][0]["score"] == pytest.approx(12 / row["metrics"]["step_seconds"])
    assert TINY.facets() == {"model": "lstm", "task": "time"}
    assert [text for _, text in report.told] == [
        "context 3, 1 rows",
        "context 3, 2 rows",
        "context 1030, 1 rows",
        "context 1030, 2 rows",
    ]


def test_a_first_call_is_not_counted(monkeypatch):
    """It may compile kernels. Here the clock moves in calls of the model alone, and far in the first."""
    moments, real = [0.0], LM.forward

    def forward(self, *arguments):
        moments.append(moments[-1] + (100.0 if len(moments) == 1 else 1.0))
        return real(self, *arguments)

    monkeypatch.setattr(LM, "forward", forward)
    monkeypatch.setattr("exlstm.study.timing.time.perf_counter", lambda: moments[-1])
    model = LM(replace(TINY.architecture, vocab_size=11))
    assert TINY.generation(model, 3, 1, torch.device("cpu"))["reading_seconds"] == 1.0


def test_the_cost_of_attention_grows_with_the_context():
    run = replace(TINY, model="attention", architecture=stack((AttentionConfig(heads=1),), width=8))
    short, *_, long = run.execute(Quiet())["metrics"]["generation"]
    assert long["flops"] > 3 * short["flops"]
    assert long["state_bytes"] > 100 * short["state_bytes"]


def test_a_table_of_positions_is_not_read_beyond_its_end():
    config = replace(stack((AttentionConfig(heads=1, rope_base=None),), width=8), positions=40)
    found = replace(TINY, architecture=config, places=((3, 1), (34, 1), (35, 1))).execute(Quiet())["metrics"][
        "generation"
    ]
    assert {entry["context"] for entry in found} == {3, 34}  # six tokens follow each


def source():
    """The counting study with a run that has the machine alone, listed first."""
    text = COUNT.replace(
        "WAIT = 0.0\n",
        "WAIT = 0.0\n\n\n@dataclass(frozen=True, kw_only=True)\nclass Clock(Count):\n    alone = True\n",
    )
    return (
        text.replace("    return [Count(", "    return [Clock(model='one', lr=0.1), *(Count(")
        .replace("for lr in (0.1, 0.2)]", "for lr in (0.1, 0.2))]")
        .replace('"task": "count"}', '"task": type(self).__name__}')
    )


def test_runs_that_measure_come_last_and_one_at_a_time(tmp_path, monkeypatch):
    study, calls = count_study(source()), []

    def pool(jobs, *, workers, **how):
        calls.append(workers)
        return run_here(jobs, workers=workers, **how)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(runner, "run_local", pool)
    report = runner.run_study(study, RunOptions(only={}, seeds=2, jobs=2, device="cpu"), tmp_path, quiet=True)
    assert (report.done, report.failed, report.left) == (14, 0, 0)
    assert calls == [2, 1]
    rows = list(ResultFile(result_path(tmp_path, "count", "small")).read().values())
    assert [row["facets"]["task"] for row in rows] == ["Count"] * 12 + ["Clock"] * 2
    assert [is_alone(run) for run in study.planned("small")] == [True, *[False] * 6]


def test_a_study_takes_the_runs_of_another_that_it_uses(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(runner, "run_local", run_here)
    options = RunOptions(only={}, seeds=2, device="cpu")
    runner.run_study(count_study(), options, tmp_path, quiet=True)
    second = count_study(COUNT + '\nUSES = ("count",)\nSEEDS = 3\n', name="second")
    assert (second.uses, second.seeds) == (("count",), 3)
    report = runner.run_study(second, options, tmp_path, quiet=True)
    assert (report.done, report.left) == (12, 0)
    assert ResultFile(result_path(tmp_path, "second", "small")).read() == {}
    runner.run_study(second, replace(options, seeds=3), tmp_path, quiet=True)
    own = ResultFile(result_path(tmp_path, "second", "small")).read()
    assert {row["seed"] for row in own.values()} == {3}
    assert all(run_id(run) not in own for run in second.planned("small"))


def test_a_failure_in_a_study_that_is_used_is_known(tmp_path):
    """The rate at which a run diverged there is not chosen, and does not leave the choice open."""
    first, second = count_study(), count_study(COUNT + '\nUSES = ("count",)\n', name="second")
    runs = [run for run in first.planned("small") if run.model == "one"]
    for study, run, status in ((first, runs[0], "done"), (first, runs[1], "failed"), (second, runs[0], "failed")):
        row = {"format": 1, "id": run_id(run), "status": status, "metrics": {"validation": 1.0}}
        file = ResultFile(result_path(tmp_path, study.name, "small"))
        file.start(resume=True, overwrite=False)
        file.add(row)
    cell = load_results(second, "small", tmp_path, 3).cell(model="one")
    assert run_id(cell.run) == run_id(runs[0]), "what is done there counts more than a failure here"
