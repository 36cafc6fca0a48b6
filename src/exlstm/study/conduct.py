"""Runs a study: what is left of it, on this machine's processes or on a Ray cluster, row by row into its file."""

import os
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from exlstm.study.contract import Run, Size, Study, load_study, run_id, with_seed
from exlstm.study.display import Board
from exlstm.study.pool import Event, Failed, Finished, Job, Progress, Report, Started, run_local
from exlstm.study.results import ResultFile, Row, provenance, result_path, result_row
from exlstm.study.schedule import Schedule
from exlstm.runtime.machine import pick_device

Only = Mapping[str, frozenset[str]]
MOST_SEEDS = 10_000
MOST_JOBS = 64  # of a small machine: a process takes 200 MB before it has begun


@dataclass(frozen=True, kw_only=True)
class Order:
    """How a study is to be run. seeds: how many are reported. jobs: processes, 0 for one per core or GPU."""

    size: Size = "small"
    seeds: int = 5
    only: Only
    jobs: int = 0
    device: str = "auto"
    cluster: str | None = None
    resume: bool = False
    overwrite: bool = False


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Runs of this order that are done, that failed (with the last line of the first error), and that are left."""

    done: int
    failed: int
    left: int
    error: str = ""


def only_of(words: str | None) -> Only:
    """model=lstm,task=parity,task=s3 as a filter: values of one name are alternatives. ValueError for other words."""
    found: dict[str, frozenset[str]] = {}
    for word in filter(None, (words or "").split(",")):
        name, equals, value = word.partition("=")
        if not (name and equals and value):
            raise ValueError(f"--only has {word!r}; write name=value, such as model=lstm,task=parity.")
        found[name] = found.get(name, frozenset()) | {value}
    return found


def kept(planned: Sequence[Run], only: Only) -> list[Run]:
    """The runs with these facets. ValueError where a name or a value is no run's."""
    for name, values in only.items():
        known = {run.facets().get(name) for run in planned} - {None}
        if not known:
            names = sorted({facet for run in planned for facet in run.facets()})
            raise ValueError(f"--only has {name!r}, and runs of this study have {', '.join(names)}; use one of these.")
        if strange := sorted(values - known):
            raise ValueError(f"--only has {name}={strange[0]}; there are {', '.join(sorted(filter(None, known)))}.")
    return [run for run in planned if all(run.facets().get(name) in values for name, values in only.items())]


def check_seeds(seeds: int) -> None:
    """ValueError for a number of seeds that no study can have."""
    if not 1 <= seeds <= MOST_SEEDS:
        raise ValueError(f"--seeds is {seeds}; use 1 to {MOST_SEEDS:,}.")


def conduct(study: Study, order: Order, folder: Path, *, quiet: bool = False) -> Outcome:
    """Runs what is left of an order. ValueError for an order that cannot be carried out.

    Runs that are done are not repeated, failed ones are. Every row is on the disk before the next is waited for, so a
    kill costs the runs at hand. A run that fails does not stop the others.
    """
    check_seeds(order.seeds)
    most = max(MOST_JOBS, 4 * (os.cpu_count() or 1))
    if not 0 <= order.jobs <= most:
        raise ValueError(f"--jobs is {order.jobs}; each is a process, so use 0 to {most} on this machine.")
    planned = kept(study.planned(order.size), order.only)
    file = ResultFile(result_path(folder, study.name, order.size))
    devices = [order.device] if order.cluster else _devices(order.device)
    jobs = order.jobs or (len(devices) if devices[0] != "cpu" else torch.get_num_threads())
    rows, origin = file.start(resume=order.resume, overwrite=order.overwrite), provenance()
    schedule = Schedule(planned, rows, order.seeds)
    with closing(Board(f"{study.name}, {order.size}", quiet=quiet)) as board:
        board.plan(schedule.total)
        with closing(_execute(study, order, schedule, jobs, devices)) as events:
            for event in events:
                row = _row(study, order.size, schedule.runs[event.id], event, origin)
                if row is not None:
                    file.add(row)
                    rows[row["id"]] = row
                    schedule.ended(row["id"])
                    board.plan(schedule.total)
                board.show(event, schedule.runs[event.id])
    return _outcome(schedule)


def _row(study: Study, size: Size, run: Run, event: Event, origin: Row) -> Row | None:
    if isinstance(event, Finished):
        return result_row(study, size, run, {"status": "done", **event.row}, origin)
    if isinstance(event, Failed):
        return result_row(study, size, run, {"status": "failed", "error": event.error}, origin)
    assert isinstance(event, Started | Progress)
    return None


def _outcome(schedule: Schedule) -> Outcome:
    wanted = [run_id(run) for run in schedule.wanted()]
    ended = [schedule.rows[name] for name in wanted if name in schedule.rows]
    errors = [row["error"] for row in ended if row["status"] == "failed"]
    return Outcome(
        done=len(ended) - len(errors),
        failed=len(errors),
        left=len(wanted) - len(ended),
        error=errors[0].strip().splitlines()[-1] if errors else "",
    )


def _devices(name: str) -> list[str]:
    """One per GPU if there are any and none is named, else the one."""
    if name == "auto" and torch.cuda.is_available():
        return [f"cuda:{number}" for number in range(torch.cuda.device_count())]
    return [str(pick_device(name))]


def _execute(
    study: Study, order: Order, schedule: Schedule, jobs: int, devices: Sequence[str]
) -> Generator[Event, None, None]:
    def job(name: str) -> Job:
        return Job(name, work_on, (study.name, study.source, order.size, name, schedule.runs[name].seed))

    work = (None if name is None else job(name) for name in schedule)
    if order.cluster is None:
        # one thread each, as on a cluster: last bits depend on it, and must not depend on how many run at a time
        threads = 1 if devices[0] == "cpu" else None
        return run_local(work, workers=max(1, min(jobs, schedule.total)), threads=threads, devices=devices)
    from exlstm.study.cluster import run_on_ray

    return run_on_ray(work, address=order.cluster)


def work_on(argument: tuple[str, str, Size, str, int], report: Report) -> dict[str, Any]:
    """What a worker does: reads the study's text and executes the run of this id, which is one of its with a seed."""
    name, source, size, wanted, seed = argument
    found = next(run for run in _runs(name, source, size) if run_id(with_seed(run, seed)) == wanted)
    return with_seed(found, seed).execute(report)


@lru_cache(maxsize=1)
def _runs(name: str, source: str, size: Size) -> list[Run]:
    return load_study(name, source).planned(size)
