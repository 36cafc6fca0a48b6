"""The studies themselves: no question rots, and what is committed answers the question that is asked now."""

import json
import re
import shutil
from dataclasses import replace
from functools import cache, lru_cache
from pathlib import Path
from types import SimpleNamespace

import pytest
from matplotlib.figure import Figure
from small_studies import Quiet

from exlstm.study import Claim, Lesson, Picture, ReportTable, Results, Training, body_parameters, report
from exlstm.study.aggregate import chosen, reported
from exlstm.study.arrays import ArrayRun
from exlstm.study.contract import SIZES, find_study, run_id, settings, studies, with_seed
from exlstm.study.control import ControlRun, ControlTiming, Recitation
from exlstm.study.forecasting import BaselineRun, NetworkRun
from exlstm.study.problems import problem_of
from exlstm.study.report import terminal_text, write_report, write_summary
from exlstm.study.results import ResultFile, load_results, provenance, report_path, result_path, result_row
from exlstm.study.timing import Timing

FOLDER = Path(__file__).parents[2] / "study"
NAMES = list(studies(FOLDER))
# studies of arrays, whose runs name a number of parameters
ARRAYS = ("images", "dynamics", "series_classes")
# each takes a second or two; the others take several
QUICK_ENOUGH = {"recall", "language", "extrapolation", "rare_tokens", "scaling", "speed", "ablations", "memories",
                "long_range", "state_tracking", "memory_control", "forecasting", *ARRAYS}  # fmt: skip
# a study has results of its own, or those of others and a page alone
COMMITTED = [
    (name, size)
    for name in NAMES
    for size in SIZES
    if result_path(FOLDER, name, size).exists() or report_path(FOLDER, name, size).exists()
]


@cache
def study_of(name):
    """The study, whose runs are listed once for all tests of it."""
    study = find_study(name, FOLDER)
    return replace(study, runs=lru_cache(study.runs))


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name in ("ablations", "long_range") else pytest.mark.slow) for name in NAMES],
)
@pytest.mark.parametrize("size", ["small", pytest.param("paper", marks=pytest.mark.slow)])
def test_models_of_a_comparison_have_equal_parameters(name, size):
    """Without embedding, head and tables of positions; a model that reads from both ends has its blocks twice."""
    found = {}
    for run in study_of(name).planned(size):
        if isinstance(run, Training):
            table = (run.architecture.positions or 0) * run.architecture.width
            own = (1 + run.lessons[0].both_ways) * (body_parameters(run.architecture) - table)
            found.setdefault((run.facets()["task"], run.architecture.width), set()).add(own)
    assert found or name in ("speed", "memory_control", "forecasting", *ARRAYS)  # these but the first have own tests
    assert all(max(sizes) <= 1.05 * min(sizes) for sizes in found.values()), found


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name == "recall" else pytest.mark.slow) for name in NAMES]
)
def test_runs_of_all_sizes_can_be(name):
    """They are named apart, their facets tell settings apart, and their models can be built."""
    study = study_of(name)
    assert study.question.endswith("?")
    assert "Expected:" in study.text
    assert "Paper:" in study.text
    for size in SIZES:
        runs = study_of(name).planned(size)
        assert len({run_id(run) for run in runs}) == len(runs)
        groups = list(settings(runs))
        assert len({tuple(group[0].facets().items()) for group in groups}) == len(groups), size
        for run in runs:
            assert run.seed == 0
            json.dumps(run.facets())
            if isinstance(run, Training):
                assert problem_of(run.lessons).lessons == run.lessons
                assert body_parameters(run.architecture) > 0  # it is built for that, once


@pytest.fixture(scope="module")
def origin():
    return provenance()


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK_ENOUGH else pytest.mark.slow) for name in NAMES]
)
def test_quick_runs_run_and_the_report_is_made_of_them(name, origin, tmp_path):
    study, runs, rows = study_of(name), study_of(name).planned("quick"), {}
    results = Results(study, "quick", rows, 1)

    def execute(run):
        try:
            outcome = {"status": "done", **json.loads(json.dumps(run.execute(Quiet()), allow_nan=False))}
        except ValueError as error:
            if "lower the learning rate" not in str(error):  # what diverges is a finding, too
                raise
            outcome = {"status": "failed", "error": str(error)}
        rows[run_id(run)] = result_row(study, "quick", run, outcome, origin)

    for run in runs:
        execute(run)
    for group in settings(runs):
        best = chosen(group, rows)
        for run in [] if best is None else reported(best, len(group), 1):
            if run_id(run) not in rows:
                execute(run)
    assert not any(cell.missing for cell in results.cells())
    assert sum(cell.status() == "failed" for cell in results.cells()) <= len(results.cells()) // 20
    parts = list(study.report(results))
    text = write_report(results, tmp_path).read_text()
    assert all(part.title in text for part in parts if not isinstance(part, Claim))
    pictures = [part.name for part in parts if isinstance(part, Picture)]
    assert len(set(pictures)) == len(pictures)
    assert any(isinstance(part, ReportTable) for part in parts)
    assert study.question in terminal_text(results)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "state", ["nothing ran", *(pytest.param(name, marks=pytest.mark.slow) for name in ("all failed", "one failed"))]
)
def test_a_report_of_what_did_not_run_claims_nothing(name, state, origin):
    study, rows = study_of(name), {}
    failed = {"status": "failed", "error": "RuntimeError: no luck"}
    groups = list(settings(study.planned("small")))[: {"nothing ran": 0, "all failed": None, "one failed": 1}[state]]
    for group in groups:
        for run in group if len(group) > 1 else reported(group[0], 1, 5):
            rows[run_id(run)] = result_row(study, "small", run, failed, origin)
    parts = list(study.report(Results(study, "small", rows, 5)))
    assert [part.text for part in parts if isinstance(part, Claim) and part.holds is not None] == []
    for part in parts:
        if isinstance(part, ReportTable):
            assert all(len(row) == len(part.columns) for row in part.rows)
            assert all(isinstance(cell, str) for row in part.rows for cell in row)
        if isinstance(part, Picture) and state == "nothing ran":
            part.draw(Figure(figsize=part.size))


def test_claims_on_answers_are_those_of_the_means(origin):
    """Accuracy is a mean over tasks, with acc_norm where there are endings; PALOMA's loss a mean over its sources."""
    study, rows = study_of("downstream"), {}
    for group in settings(study.planned("paper")):
        for run in [*group, *reported(group[0], len(group), 3)]:
            ours = run.model == "xlstm[7:1]"
            asked = {
                "hellaswag": {"acc": 0.9, "acc_norm": 0.4 + 0.1 * ours},
                "piqa": {"acc": 0.7},
                "paloma_a": {"bits_per_byte": 1.0},
                "paloma_b": {"bits_per_byte": 2.0 if run.model == "mamba" else 3.0},
            }
            tests = [{"score": 0.0, "bits_per_byte": 1.0}]
            metrics = {"validation": 0.0, "tests": tests, "downstream": asked}
            costs = dict.fromkeys(("parameters", "state_bytes", "flops", "seconds"), 1.0)
            rows[run_id(run)] = result_row(study, "paper", run, {"status": "done", "metrics": metrics, **costs}, origin)
    accuracy, loss = (part for part in study.report(Results(study, "paper", rows, 3)) if isinstance(part, Claim))
    assert accuracy.holds
    assert "xlstm[1:0] 55.0, xlstm[7:1] 60.0" in accuracy.evidence
    assert loss.holds is False
    assert "mamba 1.500 bits per byte" in loss.evidence


@pytest.mark.parametrize(("name", "size"), COMMITTED)
def test_committed_results_are_of_this_study(name, size):
    runs, rows = study_of(name).planned(size), ResultFile(result_path(FOLDER, name, size)).read()
    seeds = {row["seed"] for row in rows.values()}
    known = {run_id(with_seed(run, seed)) for run in runs for seed in seeds}
    assert [row["config"] for row in rows.values() if row["id"] not in known] == []
    assert all((row["study"], row["size"]) == (name, size) for row in rows.values())
    assert all(row["commit"] and row["machine"]["cpu"] and row["versions"]["torch"] for row in rows.values())


@pytest.mark.parametrize(("name", "size"), [each for each in COMMITTED if each[1] == "small"])
def test_committed_pages_are_what_the_results_give(name, size, tmp_path, monkeypatch):
    monkeypatch.setattr(report, "png", lambda draw, size: b"")  # the letters count here; other tests draw
    monkeypatch.setattr(report, "pdf", lambda draw, size: b"")
    there = result_path(FOLDER, name, size)
    here = result_path(tmp_path, name, size)
    here.parent.mkdir(parents=True)
    if there.with_name("found.md").exists():
        shutil.copy(there.with_name("found.md"), here.parent)
    study = study_of(name)
    page = write_report(load_results(study, size, FOLDER, study.seeds), tmp_path)
    assert report_path(FOLDER, name, size).read_text() == page.read_text(), f"run: exlstm study report {name}"
    for kind in ("png", "pdf"):
        pictures = {path.name for path in there.parent.glob(f"{size}-*.{kind}")}
        assert {path.name for path in here.parent.glob(f"*.{kind}")} == pictures


def test_the_committed_summary_is_what_the_results_give(tmp_path):
    chosen = [study_of(name) for name, size in COMMITTED if size == "small"]
    every = [load_results(study, "small", FOLDER, study.seeds) for study in chosen]
    (tmp_path / "results").mkdir()
    page = write_summary(every, tmp_path)
    assert (FOLDER / "results" / "small.md").read_text() == page.read_text(), "run: exlstm study report"


LATER = (
    "language",
    "scaling",
    "ablations",
    "extrapolation",
    "rare_tokens",
    "speed",
    "long_range",
    "memories",
    "downstream",
    "state_tracking",
    "memory_control",
    "forecasting",
    *ARRAYS,
)


def finished(run, number):
    """What a run would give, with numbers of its own: enough for every report."""
    bits = 2 + number / 100
    row = {
        "parameters": 1000 * (1 + number),
        "state_bytes": 64,
        "flops": 1e9 * (1 + number),
        "seconds": 1.0,
        "steps": 10,
    }
    test = {"score": 1 - bits / 8, "bits_per_byte": bits, "loss": bits, "accuracy": 0.5, "at_chance": False}
    test["by_domain"] = {"code": bits, "english": bits}
    test["by_count"] = [[10, 100, 5, 5 * bits, 9], [100, 1000, 7, 7 * bits, 9]]
    if isinstance(run, NetworkRun | BaselineRun):
        test |= {"score": 1 - bits, "crps": bits, "mase": bits, "wql": bits / 10, "covered": 0.8}
        last = {name: [bits, bits] for name in ("low", "middle", "high", "past", "truth")}
        return {**row, "points": 100 + number, "last": last, "metrics": {"validation": number, "tests": [test]}}
    if isinstance(run, ArrayRun):
        errors = dict.fromkeys(("error_1", "error_25", "valid_time", "energy_drift"), bits)
        return {**row, "curve": [], "metrics": {"validation": number, "tests": [{**test, **errors, "asked": 9}]}}
    if isinstance(run, ControlTiming):
        return {**row, "metrics": {"acting": 900.0, "learning": 700.0, "tests": [{**test, "score": 400.0}]}}
    if isinstance(run, ControlRun | Recitation):
        curve = [{"frames": frames, "return": bits} for frames in (5, 10)]
        return {**row, "curve": curve, "metrics": {"validation": number, "tests": [test]}}
    if isinstance(run, Timing):
        measured = {
            "reading_seconds": 0.1,
            "token_seconds": 1e-3 * bits,
            "flops": 1e6,
            "state_bytes": 64,
        }
        places = [{"context": T, "rows": rows, "replayed": rows < 64, **measured} for T, rows in run.places]
        return {**row, "metrics": {"step_seconds": bits, "generation": places, "tests": [{**test, "score": 900.0}]}}
    ends = [high for lesson in run.lessons for _, high in lesson.test]
    places = [[[0, 16, 16, 20 * bits, 30], [16, high, high - 16, 90 * bits, 99]] for high in ends]
    tests = [{**test, "high": high, "by_position": place} for high, place in zip(ends, places, strict=True)]
    answers = {"downstream": {task: {"acc": 0.3 + number / 1000} for task in getattr(run, "asked", ())}}
    curve = [{"step": step, "loss": bits, "validation": 1 - bits / 8} for step in (5, 10)]
    return {**row, "curve": curve, "metrics": {"validation": number, "tests": tests, **answers}}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name == "scaling" else pytest.mark.slow) for name in LATER]
)
def test_a_report_of_all_runs_decides_every_claim(name, origin, tmp_path, monkeypatch):
    """Hours of runs shall not end in a report that cannot be made."""
    monkeypatch.setattr(report, "png", lambda draw, size: draw(Figure(figsize=size)) or b"")
    monkeypatch.setattr(report, "pdf", lambda draw, size: b"")
    study, rows = study_of(name), {}
    for number, group in enumerate(settings(study.planned("small"))):
        runs = [*group, *(with_seed(run, seed) for run in group for seed in (1, 2, 3))]
        for place, run in enumerate(runs):
            outcome = {"status": "done", **finished(run, number % 40 + place / 100)}
            rows[run_id(run)] = result_row(study, "small", run, outcome, origin)
    results = Results(study, "small", rows, 3)
    assert not any(cell.open for cell in results.cells())
    text = write_report(results, tmp_path).read_text()
    assert text.count("**not decided**") == (name == "downstream"), "what PALOMA's texts would say"
    assert "not run" not in text.partition("## Claims")[2]
    assert any(isinstance(part, Claim) for part in study.report(results))
    assert bool(re.search(r"\d\* \|", text)) == (name == "speed"), "steps of 64 rows are marked: they were called"


def test_memories_are_asked_with_the_runs_of_other_studies():
    """The settings are said in two files, and are the same. At the paper's size rivals are not in `recall`."""
    study = study_of("memories")
    known = {run_id(run) for other in study.uses for run in study_of(other).planned("small")}
    own = {run.model for run in study.planned("small") if run_id(run) not in known}
    assert own == {"matrix_rnn(elman)", "matrix_rnn(no mixing)", "matrix_rnn(elman, no mixing)"}


@pytest.mark.parametrize("name", ["extrapolation", "speed", "scaling", "ablations"])
def test_studies_of_language_take_its_runs(name):
    study = study_of(name)
    known = {run_id(run) for run in study_of("language").planned("small")}
    own = [run_id(run) for run in study.planned("small")]
    shared = sum(run in known for run in own)
    assert shared == len(own) if name in ("extrapolation", "speed") else 6 <= shared < len(own)


def test_positions_are_of_the_shortest_test_that_reaches_them():
    """A model that reads further has two windows there; near the start it has those of the others."""
    lesson = Lesson(task="email/300", train=(256, 256), test=((256, 256), (512, 512), (1024, 1024)))
    tests = [
        [[0, 256, 1, 1.0, 9]],
        [[0, 256, 1, 2.0, 9], [256, 512, 1, 3.0, 9]],
        [[0, 256, 1, 4.0, 9], [256, 512, 1, 5.0, 9], [512, 1024, 1, 6.0, 9]],
    ]
    cell = SimpleNamespace(
        rows=[{}], run=SimpleNamespace(lessons=(lesson,)), tests=lambda test: [{"by_position": tests[test]}]
    )
    found = study_of("extrapolation").report.__globals__["positions"](cell)
    assert found == [(0, 256, [(1.0, 9)]), (256, 512, [(3.0, 9)]), (512, 1024, [(6.0, 9)])]


def test_measurements_of_benchmarks_are_found_beside_the_studies(tmp_path):
    """Of those that have been made; a study without benchmarks has none."""
    there = tmp_path / "benchmarks" / "results" / "cpu"
    there.mkdir(parents=True)
    (there / "decode.json").write_text(json.dumps({"measured": {"160m": {"milliseconds": {"ours": 1}}}}))
    study = replace(study_of("speed"), benchmarks=("decode", "train_step"))
    found = load_results(study, "quick", tmp_path / "study", 1).benchmarks
    assert found == {"decode": {"160m": {"milliseconds": {"ours": 1}}}}
    assert load_results(study_of("recall"), "quick", tmp_path / "study", 1).benchmarks == {}


@pytest.mark.parametrize("name", ARRAYS)
def test_committed_nets_on_arrays_have_the_parameters_they_ask_for(name):
    """Within 5 %, but for linear maps; every cell has its five seeds at one rate."""
    rows = ResultFile(result_path(FOLDER, name, "small")).read().values()
    for row in rows:
        wanted = row["config"]["parameters"]
        assert row["facets"]["model"] == "linear" or abs(row["parameters"] - wanted) <= 0.05 * wanted
    results = load_results(study_of(name), "small", FOLDER, 5)
    assert not rows or not any(cell.missing for cell in results.cells())
