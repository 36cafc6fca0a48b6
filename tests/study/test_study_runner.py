"""A study from its options to its rows: rates before seeds, nothing twice, failures and kills cost what they must."""

import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from small_studies import COUNT, SLOW, count_study, lines_of, run_here

from exlstm.study import runner
from exlstm.study.contract import run_id, with_seed
from exlstm.study.results import result_path
from exlstm.study.runner import RunOptions, RunReport, only_of, selected

STUDY = count_study()


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder for a study to run in, in this process."""
    rounds = itertools.count()

    def counted(jobs, **how):
        assert next(rounds) < 20, "it goes on for ever"
        return run_here(jobs, **how)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(runner, "run_local", counted)
    return tmp_path


def go(folder, study=STUDY, **how):
    return runner.run_study(study, RunOptions(**{"only": {}, "seeds": 2, "device": "cpu", **how}), folder, quiet=True)


def ran(folder):
    """(model, rate, seed) of every run that was executed, in order."""
    words = [line.split() for line in (folder / "log.txt").read_text().splitlines()]
    return [(model, float(rate), int(seed)) for model, rate, seed, _ in words]


def rows_in(folder, size="small"):
    return lines_of(result_path(folder, "count", size))


RATES = [(model, rate, 0) for rate in (0.1, 0.2) for model in ("one", "two", "bad")]
SEEDS = [(model, rate, seed) for seed in (1, 2) for model, rate in (("one", 0.1), ("two", 0.2), ("bad", 0.2))]


def test_rates_on_seed_0_and_then_seeds_at_the_best(here):
    assert go(here) == RunReport(done=12, failed=0, left=0)
    assert ran(here) == RATES + SEEDS
    rows = rows_in(here)
    assert [(row["config"]["model"], row["config"]["lr"], row["seed"]) for row in rows] == RATES + SEEDS
    assert all(row["status"] == "done" and row["size"] == "small" and row["study"] == "count" for row in rows)
    planned = {run_id(with_seed(run, seed)) for run in STUDY.planned("small") for seed in range(3)}
    assert {row["id"] for row in rows} <= planned
    assert rows[-1]["metrics"]["tests"][0]["score"] == pytest.approx(0.202)


def test_one_rate_is_no_choice(here):
    study = count_study(COUNT.replace("for lr in (0.1, 0.2)]", "for lr in (0.1,)]"))
    assert go(here, study, seeds=3) == RunReport(done=9, failed=0, left=0)
    assert ran(here) == [(model, 0.1, seed) for seed in range(3) for model in ("one", "two", "bad")]


def test_what_is_done_is_not_done_again(here):
    go(here)
    before = rows_in(here)
    assert go(here, resume=True) == RunReport(done=12, failed=0, left=0)
    assert rows_in(here) == before
    assert len(ran(here)) == 12
    # more seeds are added to those that there are
    assert go(here, resume=True, seeds=3) == RunReport(done=15, failed=0, left=0)
    assert ran(here)[12:] == [("one", 0.1, 3), ("two", 0.2, 3), ("bad", 0.2, 3)]
    with pytest.raises(ValueError, match=r"has results of 15 runs; add to them with --resume"):
        go(here)
    go(here, overwrite=True)
    assert rows_in(here)[0]["seed"] == 0
    assert len(rows_in(here)) == 12


@pytest.mark.parametrize("kept_lines", range(0, 12, 3))
def test_wherever_it_is_cut_off_it_goes_on(here, kept_lines):
    go(here)
    file = result_path(here, "count", "small")
    whole = file.read_text().splitlines(keepends=True)
    file.write_text("".join(whole[:kept_lines]) + whole[kept_lines][:50])
    (here / "log.txt").unlink()
    assert go(here, resume=True) == RunReport(done=12, failed=0, left=0)
    assert ran(here) == (RATES + SEEDS)[kept_lines:]
    assert {line["id"]: line for line in rows_in(here)} == {line["id"]: line for line in lines_of(file)}
    assert len(rows_in(here)) == 12


def test_a_failure_is_recorded_and_stops_nobody(here):
    (here / "broken").touch()
    outcome = go(here)
    assert (outcome.done, outcome.failed, outcome.left) == (8, 2, 0)  # both rates of `bad`: its seeds need a choice
    assert outcome.error == "RuntimeError: no luck today"
    rows = rows_in(here)
    failed = [row for row in rows if row["status"] == "failed"]
    assert [(row["config"]["model"], row["seed"]) for row in failed] == [("bad", 0), ("bad", 0)]
    assert all(row["error"].endswith("RuntimeError: no luck today") and "metrics" not in row for row in failed)
    assert all(key in failed[0] for key in ("commit", "machine", "versions", "config"))
    # once more: failed ones are tried again, once, and where they do then, their seeds follow
    assert go(here, resume=True).failed == 2
    assert ran(here)[10:] == [("bad", 0.1, 0), ("bad", 0.2, 0)]
    (here / "broken").unlink()
    assert go(here, resume=True) == RunReport(done=12, failed=0, left=0)
    assert ran(here)[12:] == [("bad", 0.1, 0), ("bad", 0.2, 0), ("bad", 0.2, 1), ("bad", 0.2, 2)]


def test_a_rate_that_fails_is_not_chosen(here):
    study = count_study(COUNT.replace('if self.model == "bad" and', "if self.lr == 0.2 and self.seed == 0 and"))
    (here / "broken").touch()
    outcome = go(here, study)
    assert (outcome.done, outcome.failed) == (9, 3)
    assert {rate for _, rate, seed in ran(here) if seed} == {0.1}


def test_only_some(here):
    assert go(here, only=only_of("model=two")) == RunReport(done=4, failed=0, left=0)
    assert {model for model, _, _ in ran(here)} == {"two"}
    go(here, only=only_of("model=two,task=count,model=one"), resume=True)
    assert Counter(model for model, _, _ in ran(here)) == {"two": 4, "one": 4}


def test_filters():
    assert only_of(None) == only_of("") == {}
    assert only_of("a=1,b=x=y,a=2") == {"a": {"1", "2"}, "b": {"x=y"}}
    planned = STUDY.planned("small")
    assert selected(planned, {}) == planned
    assert selected(planned, only_of("model=bad,task=count")) == planned[4:]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("model", r"--only has 'model'; write name=value, such as model=lstm,task=parity\."),
        ("model=", r"--only has 'model='; write .*\."),
        ("=one", r"--only has '=one'; write .*\."),
        ("width=3", r"--only has 'width', and runs of this study have model, task; use one of these\."),
        ("model=ten,model=one", r"--only has model=ten; there are bad, one, two\."),
    ],
)
def test_wrong_filters_are_refused(words, message):
    with pytest.raises(ValueError, match=rf"^{message}$"):
        selected(STUDY.planned("small"), only_of(words))


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"seeds": 0}, r"--seeds is 0; use 1 to 10,000\."),
        ({"seeds": 10**12}, r"--seeds is 1000000000000; use 1 to 10,000\."),
        ({"jobs": -1}, r"--jobs is -1; each is a process, so use 0 to \d+ on this machine\."),
        ({"jobs": 10**9}, r"--jobs is 1000000000; each is a process, .*\."),
        ({"device": "gpu"}, r"--device 'gpu' is not on this machine; use 'cpu' or 'auto'\."),
        ({"size": "paper"}, r"study count has no runs of size paper; use another size\."),
        ({"resume": True, "overwrite": True}, r"--resume keeps the results, --overwrite deletes them; .*\."),
    ],
)
def test_options_that_cannot_be_followed_touch_nothing(here, how, message):
    with pytest.raises(ValueError, match=rf"^{message}$"):
        go(here, **how)
    assert list(here.iterdir()) == []


def test_runs_have_one_thread_however_many_run(here, monkeypatch):
    seen = []

    def spy(jobs, **how):
        seen.append((how["workers"], how["threads"], how["devices"]))
        return run_here(jobs, **how)

    monkeypatch.setattr(runner, "run_local", spy)
    go(here, jobs=4)
    go(here, jobs=1, overwrite=True)
    go(here, jobs=40, overwrite=True)
    assert seen == [(4, 1, ["cpu"]), (1, 1, ["cpu"]), (12, 1, ["cpu"])]


def test_a_row_is_in_the_file_before_the_next_run_begins(here, monkeypatch):
    lengths = []

    def spy(jobs, **how):
        for event in run_here(jobs, **how):
            if isinstance(event, runner.Started):
                file = result_path(here, "count", "small")
                lengths.append(len(lines_of(file)) if file.exists() else 0)
            yield event

    monkeypatch.setattr(runner, "run_local", spy)
    go(here)
    assert lengths == list(range(12))


def test_runs_may_hold_what_cannot_be_hashed(here):
    study = count_study(COUNT.replace("    seed: int = 0\n", "    seed: int = 0\n    more: object = None\n", 1).replace(
        "lr=lr) for", "lr=lr, more={'a': 1}) for"))  # fmt: skip
    assert go(here, study).done == 12


def test_runs_without_a_terminal_are_told_line_by_line(here, capsys):
    (here / "broken").touch()
    runner.run_study(STUDY, RunOptions(only=only_of("model=two,model=bad"), seeds=1, device="cpu"), here)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "[1/6] done    two, count, lr 0.1, seed 0: score 0.100, 0 s"
    assert lines[1] == "[2/6] failed  bad, count, lr 0.1, seed 0: RuntimeError: no luck today"
    assert len(lines) == 5


# -------------------------------------------------------------------------------------------- as programs, in processes


def alive(pid):
    """A process that has ended and that nobody has asked about yet is not alive."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_until(condition, seconds=90.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def start(folder, *words):
    folder.mkdir(exist_ok=True)
    (folder / "count.py").write_text(SLOW)
    command = [sys.executable, "-m", "exlstm", "study", "run", "count", "--folder", ".", "--seeds", "1", *words]
    return subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def lines_in(folder):
    file = result_path(folder, "count", "small")
    return file.read_text().count("\n") if file.exists() else 0


def workers_of(folder):
    return {int(line.split()[-1]) for line in (folder / "log.txt").read_text().splitlines()}


def interrupt(folder, *words, after, end):
    """Starts the study, ends it when so many lines are there, and gives what it left behind."""
    process = start(folder, *words)
    wait_until(lambda: lines_in(folder) >= after or process.poll() is not None)
    assert process.poll() is None, process.communicate()
    end(process)
    out, err = process.communicate(timeout=60)
    wait_until(lambda: not any(map(alive, workers_of(folder))))
    return process.returncode, out, err, result_path(folder, "count", "small").read_bytes()


@pytest.fixture(scope="module")
def story(tmp_path_factory):
    """A study that is interrupted, killed, and ended by two processes; and the same without a break by one."""
    broken, whole = tmp_path_factory.mktemp("broken"), tmp_path_factory.mktemp("whole")
    found = {
        "interrupt": interrupt(
            broken, "--jobs", "2", "--keep-models", after=2, end=lambda p: os.killpg(p.pid, signal.SIGINT)
        ),
        "kill": interrupt(broken, "--jobs", "2", "--resume", after=7, end=lambda p: p.kill()),
    }
    for folder, words in ((broken, ("--jobs", "2", "--resume")), (whole, ("--jobs", "1"))):
        process = start(folder, *words)
        found[folder.name.rstrip("0123456789")] = (*process.communicate(timeout=240), process.returncode)
    return {**found, "broken folder": broken, "whole folder": whole}


@pytest.mark.slow
def test_ctrl_c_leaves_whole_lines_and_says_how_to_go_on(story):
    code, out, err, left = story["interrupt"]
    assert code == 130
    assert "\nstopped; go on with: exlstm study run count --seeds 1 --jobs 2 --keep-models --folder . --resume\n" in out
    assert "Traceback" not in out + err
    assert left.endswith(b"\n")
    assert 2 <= left.count(b"\n") < 12


@pytest.mark.slow
def test_a_kill_leaves_what_was_done(story):
    code, _, _, left = story["kill"]
    assert code == -signal.SIGKILL
    assert left.startswith(story["interrupt"][-1])
    assert left.count(b"\n") >= 7


@pytest.mark.slow
def test_broken_and_resumed_or_whole_the_numbers_are_the_same(story):
    for name in ("broken", "whole"):
        out, err, code = story[name]
        assert (code, err) == (0, "")
        assert "Which number is" in out
    rows = {}
    for name in ("broken folder", "whole folder"):
        found = lines_of(result_path(story[name], "count", "small"))
        # the checkout may get another commit meanwhile
        rows[name] = {row["id"]: {key: row[key] for key in row if key not in ("seconds", "commit")} for row in found}
        assert len(found) == len(rows[name]) == 12  # 2 + 6 rates, a seed of 4 settings
    assert rows["broken folder"] == rows["whole folder"]
    trained = [row for row in rows["whole folder"].values() if row["facets"]["model"] == "attention"]
    assert len(trained) == 3
    assert len({row["metrics"]["loss"] for row in trained}) == 3


@pytest.mark.slow
def test_nothing_that_was_done_was_done_again(story):
    folder = story["broken folder"]
    times = Counter(ran(folder))
    assert set(times) == set(ran(story["whole folder"]))
    again = [run for run, count in times.items() if count > 1]
    assert len(again) <= 4  # two were running at each of two ends
    rows = map(json.loads, story["kill"][-1].splitlines())
    done = [row for row in rows if row["facets"]["model"] != "attention"]
    late = ran(folder)[-(len(ran(story["whole folder"])) - len(done)) :]
    assert not {(row["config"]["model"], row["config"]["lr"], row["seed"]) for row in done} & set(late)


@pytest.mark.slow
def test_a_report_follows_a_run(story):
    folder = result_path(story["whole folder"], "count", "small").parent
    files = {"small.jsonl", "small.md", "small-rise.png", "small-rise.pdf"}
    assert {path.name for path in folder.iterdir()} == files
    assert re.search(r"\[holds\] a claim that holds", story["whole"][0])
