"""The local pool: nothing is lost, a failure costs one run, and no process outlives its use."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pool_jobs
import pytest
import torch

from exlstm.study.pool import Failed, Finished, PoolJob, ProgressReporter, RunProgress, Started, run_local


def outcome(events):
    """Name -> row or error, once it is checked that each run began once, ended once, and in this order."""
    stages, ends = {}, {}
    for event in events:
        stages.setdefault(event.id, []).append(type(event))
        if isinstance(event, Finished | Failed):
            ends[event.id] = event.row if isinstance(event, Finished) else event.error
    for name, kinds in stages.items():
        assert [k for k in kinds if k is not RunProgress] == [Started, type_of_end(ends[name])], name
        assert kinds[0] is Started, name
        assert kinds[-1] is not RunProgress, name
    return ends


def type_of_end(end):
    return Finished if isinstance(end, dict) else Failed


def alive(pid):
    """A process that has ended and that nobody has asked about yet is not alive."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_until(condition, seconds=60.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def pids(folder):
    return [int(path.stem) for path in folder.glob("*.pid")]


@pytest.fixture(scope="module")
def day(tmp_path_factory):
    """What one worker lived through: what was taken and what was told, in order; and a folder."""
    folder = tmp_path_factory.mktemp("day")
    log = []

    def jobs():
        for job in listed():
            log.append(job.id)
            yield job

    def listed():
        yield PoolJob("1", pool_jobs.who, None)
        yield from pool_jobs.mixed_jobs()
        yield PoolJob("changes threads", pool_jobs.change_threads, 3)
        yield PoolJob("sys.exit", pool_jobs.leave_by_sys_exit, 5)
        yield PoolJob("unpicklable", pool_jobs.unpicklable, None)
        with pytest.MonkeyPatch.context() as patch:  # a worker has the sys.path of its beginning
            (folder / "only_here.py").write_text("def call(argument, report): return {}")
            patch.syspath_prepend(folder)
            import only_here

            yield PoolJob("unreadable", only_here.call, None)
        yield PoolJob("chatter", pool_jobs.chatter, 20_000)
        yield PoolJob("2", pool_jobs.who, None)
        yield PoolJob("exit", pool_jobs.leave, 3)
        yield PoolJob("3", pool_jobs.who, None)
        yield PoolJob("killed", pool_jobs.leave_a_child_behind, str(folder))
        yield PoolJob("4", pool_jobs.who, None)

    # not extend: what is taken has its place between the events
    for event in run_local(jobs(), workers=1, threads=2):
        log.append(event)  # noqa: PERF402
    (folder / "let go").touch()
    return log, folder


def test_a_failure_costs_its_own_run_only(day):
    log, folder = day
    ends = outcome(event for event in log if not isinstance(event, str))
    assert list(ends) == [entry for entry in log if isinstance(entry, str)]
    assert "pool_jobs.py" in ends["raises"]
    assert ends["raises"].endswith("RuntimeError: first line\nsecond line")
    assert ends["sys.exit"].endswith("SystemExit: 5")
    assert "lambda" in ends["unpicklable"]
    assert "ModuleNotFoundError" in ends["unreadable"]
    assert ends["exit"] == "the worker ended with exit code 3."
    assert "SIGKILL" in ends["killed"]
    assert not (folder / "never let go").exists(), "the pool waited for a process that is not its own"
    one, two, three, four = (ends[name]["process"] for name in "1234")
    assert one == two, "what raises leaves its worker alive"
    assert len({two, three, four, os.getpid()}) == 4


def test_a_job_is_taken_when_a_worker_is_free(day):
    """After the event that freed it: the caller may decide late."""
    log = [e if isinstance(e, str) else (type(e).__name__, e.id) for e in day[0] if not isinstance(e, RunProgress)]
    assert log[::3] == [entry for entry in log if isinstance(entry, str)]
    assert [kind for kind, _ in log[1::3]] == ["Started"] * (len(log) // 3)
    assert {kind for kind, _ in log[2::3]} == {"Finished", "Failed"}


def test_threads_are_set_before_every_run(day):
    ends = outcome(event for event in day[0] if not isinstance(event, str))
    assert [ends[name]["threads"] for name in "1234"] == [2, 2, 2, 2]


def test_progress_reaches_the_caller_and_is_no_flood(day):
    events = [event for event in day[0] if not isinstance(event, str) and event.id == "chatter"]
    assert events[:2] == [Started("chatter"), RunProgress("chatter", 0.0, "x" * 1000)]
    assert len(events) < 1000
    assert events[-1] == Finished("chatter", {"times": 20_000})


@pytest.mark.slow
def test_two_at_a_time_with_a_device_each(day, tmp_path, monkeypatch):
    """After an error away from the CPU, where errors may stay in a process, there is a new one. Rows are the same."""

    def both(call, one, two):
        return [PoolJob(one, call, (str(tmp_path), one, two)), PoolJob(two, call, (str(tmp_path), two, one))]

    monkeypatch.setattr(torch, "get_num_threads", lambda: 5)
    mixed = pool_jobs.mixed_jobs()
    jobs = [*both(pool_jobs.meet, "a", "b"), *both(pool_jobs.meet_and_fail, "c", "d"), *both(pool_jobs.meet, "e", "f")]
    ends = outcome(run_local([*jobs, *mixed[::-1]], workers=2, devices=["cpu", "cuda:7", "cuda:8"]))
    alone = outcome(event for event in day[0] if not isinstance(event, str))
    assert {job.id: ends[job.id] for job in mixed} == {job.id: alone[job.id] for job in mixed}
    assert ends["square 3"] == {"square": 9}
    assert ends["a"]["device"] == "cpu"
    assert ends["b"]["device"] == "cuda:7"
    assert {ends[name].splitlines()[-1] for name in "cd"} == {"RuntimeError: cpu", "RuntimeError: cuda:7"}
    before, after = ({ends[name]["device"]: ends[name]["process"] for name in pair} for pair in ("ab", "ef"))
    assert before["cpu"] == after["cpu"]
    assert before["cuda:7"] != after["cuda:7"]
    assert {ends[name]["threads"] for name in "abef"} == {2}


def test_devices_go_round():
    workers = run_local([], workers=3, devices=["cuda:0", "cuda:1"]).gi_frame.f_locals["slots"]
    assert [worker.device for worker in workers] == ["cuda:0", "cuda:1", "cuda:0"]


def test_no_more_processes_than_jobs_and_none_when_they_are_done():
    with contextlib.closing(run_local(iter([PoolJob("a", pool_jobs.who, None)]), workers=500)) as events:
        ends = outcome(events)
    assert ends["a"]["threads"] == 1
    assert not alive(ends["a"]["process"])


def test_closing_early_ends_a_busy_worker(tmp_path):
    events = run_local([PoolJob(str(k), pool_jobs.forever, str(tmp_path)) for k in range(3)], workers=1)
    assert next(events) == Started("0")
    wait_until(lambda: pids(tmp_path))
    (worker,) = pids(tmp_path)
    assert alive(worker)
    events.close()
    assert not alive(worker)
    assert pids(tmp_path) == [worker]


def test_an_error_in_the_jobs_ends_the_workers(tmp_path):
    def jobs():
        yield PoolJob("0", pool_jobs.forever, str(tmp_path))
        wait_until(lambda: pids(tmp_path))
        raise LookupError("no such job")

    with pytest.raises(LookupError, match="no such job"):
        list(run_local(jobs(), workers=2))
    assert not any(map(alive, pids(tmp_path)))


PARENT = """
import sys
import pool_jobs
from exlstm.study.pool import PoolJob, run_local
if __name__ == "__main__":
    for event in run_local([PoolJob("a", pool_jobs.forever, sys.argv[1])], workers=1):
        print(event, flush=True)
"""


@pytest.fixture
def parent(tmp_path):
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    process = subprocess.Popen(
        [sys.executable, script, tmp_path],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    yield process
    with contextlib.suppress(ProcessLookupError):  # whatever is left of the group
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


@pytest.mark.slow
def test_a_parent_that_is_killed_takes_its_workers_along(tmp_path, parent):
    wait_until(lambda: pids(tmp_path))
    parent.kill()
    wait_until(lambda: not any(map(alive, pids(tmp_path))), seconds=30.0)


def test_ctrl_c_is_for_the_parent(parent):
    """It reaches the whole group, here while the worker is starting. One process speaks of it, and none remains."""
    assert "Started" in parent.stdout.readline()
    os.killpg(parent.pid, signal.SIGINT)
    errors = parent.communicate(timeout=60)[1]  # a worker has this pipe too: it ends when they are all gone
    assert errors.count("Traceback") == errors.count("\nKeyboardInterrupt") == 1


def test_reports_are_few():
    now, sent = 100.0, []
    report = ProgressReporter("run", "cpu", sent.append, lambda: now)
    for k in range(1000):
        now = 100.0 + k / 500  # two seconds
        report(k / 1000, "text")
    assert [event.fraction for event in sent] == [k / 8 for k in range(8)]
    assert sent[1] == RunProgress("run", 0.125, "text")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"workers": 0}, "workers is 0"),
        ({"workers": 1, "threads": 0}, "threads is 0"),
        ({"workers": 1, "devices": []}, "devices is empty"),
    ],
)
def test_options_that_make_no_sense_are_refused_at_once(options, text):
    with pytest.raises(ValueError, match=text):
        run_local([], **options)


def test_no_jobs_no_events():
    assert list(run_local([], workers=2)) == []


def test_a_job_may_not_be_there_yet():
    """None puts the question off until something has happened; nobody spins, and nobody stops too early."""
    asked, ended, found = [], set(), {}

    def jobs():
        yield PoolJob("first", pool_jobs.square, 2)
        while not ended:
            asked.append("not yet")
            yield None
        yield PoolJob("second", pool_jobs.square, 3)

    with contextlib.closing(run_local(jobs(), workers=2)) as events:
        for event in events:
            if isinstance(event, Finished):
                ended.add(event.id)
                found[event.id] = event.row
    assert list(found) == ["first", "second"]
    assert 1 <= len(asked) < 100
