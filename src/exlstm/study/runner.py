"""The runner of a study: its open runs, on this machine's processes or on a Ray cluster, row by row into its file."""

import os
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch

from exlstm.runtime.machine import pick_device
from exlstm.study.contract import Row, Run, Size, Study, is_alone, load_study, run_id, with_seed
from exlstm.study.display import ProgressTable
from exlstm.study.pool import Event, Failed, Finished, PoolJob, ProgressReporter, RunProgress, Started, run_local
from exlstm.study.results import ResultFile, provenance, result_path, result_row, with_borrowed
from exlstm.study.schedule import Schedule
from exlstm.study.store import ModelStore

Only = Mapping[str, frozenset[str]]
MOST_SEEDS = 10_000
MOST_JOBS = 64  # of a small machine: a process takes 200 MB at its start


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Options of `run_study`.

    seeds: how many are reported. jobs: processes at a time, 0 for one per core or GPU. keep_models: keep language
    models that are trained, in the folder's results/models, which all machines of a cluster must see.
    """

    size: Size = "small"
    seeds: int = 5
    only: Only
    jobs: int = 0
    device: str = "auto"
    cluster: str | None = None
    resume: bool = False
    overwrite: bool = False
    keep_models: bool = False


@dataclass(frozen=True, kw_only=True)
class RunReport:
    """Numbers of wanted runs that are done, that failed, and that are left. error: last line of the first error."""

    done: int
    failed: int
    left: int
    error: str = ""


def only_of(words: str | None) -> Only:
    """The filter model=lstm,task=parity,task=s3; values of one name are alternatives. ValueError for other words."""
    found: dict[str, frozenset[str]] = {}
    for word in filter(None, (words or "").split(",")):
        name, equals, value = word.partition("=")
        if not (name and equals and value):
            raise ValueError(f"--only has {word!r}; write name=value, such as model=lstm,task=parity.")
        found[name] = found.get(name, frozenset()) | {value}
    return found


def selected(planned: Sequence[Run], only: Only) -> list[Run]:
    """The runs with these facets. ValueError for a name or a value that no run has."""
    for name, values in only.items():
        known = {run.facets().get(name) for run in planned} - {None}
        if not known:
            names = sorted({facet for run in planned for facet in run.facets()})
            raise ValueError(f"--only has {name!r}, and runs of this study have {', '.join(names)}; use one of these.")
        if strange := sorted(values - known):
            raise ValueError(f"--only has {name}={strange[0]}; there are {', '.join(sorted(filter(None, known)))}.")
    return [run for run in planned if all(run.facets().get(name) in values for name, values in only.items())]


def check_seeds(seeds: int) -> None:
    """ValueError unless the number of seeds is in its range."""
    if not 1 <= seeds <= MOST_SEEDS:
        raise ValueError(f"--seeds is {seeds}; use 1 to {MOST_SEEDS:,}.")


def run_study(study: Study, options: RunOptions, folder: Path, *, quiet: bool = False) -> RunReport:
    """Executes the runs that are not done yet. ValueError for options that cannot be followed.

    Failed runs are tried again. Every row is on the disk before the next is waited for, so a kill costs the runs at
    hand. A run that fails does not stop the others.
    """
    check_seeds(options.seeds)
    most = max(MOST_JOBS, 4 * (os.cpu_count() or 1))
    if not 0 <= options.jobs <= most:
        raise ValueError(f"--jobs is {options.jobs}; each is a process, so use 0 to {most} on this machine.")
    planned = selected(study.planned(options.size), options.only)
    file = ResultFile(result_path(folder, study.name, options.size))
    devices = [options.device] if options.cluster else _devices(options.device)
    jobs = options.jobs or (len(devices) if devices[0] != "cpu" else torch.get_num_threads())
    own, origin = file.start(resume=options.resume, overwrite=options.overwrite), provenance()
    rows = with_borrowed(own, study, options.size, folder)
    alone, others = [run for run in planned if is_alone(run)], [run for run in planned if not is_alone(run)]
    shares = [(runs, at_a_time) for runs, at_a_time in ((others, jobs), (alone, 1)) if runs]
    parts = [(Schedule(runs, rows, options.seeds), at_a_time) for runs, at_a_time in shares]
    models = ModelStore(folder.resolve() / "results" / "models", options.keep_models)
    with closing(ProgressTable(f"{study.name}, {options.size}", quiet=quiet)) as table:
        table.plan(sum(part.total for part, _ in parts))
        for schedule, at_a_time in parts:
            with closing(_execute(study, options, models, schedule, at_a_time, devices)) as events:
                for event in events:
                    row = _row(study, options.size, schedule.runs[event.id], event, origin)
                    if row is not None:
                        file.add(row)
                        rows[row["id"]] = row
                        schedule.ended(row["id"])
                        table.plan(sum(part.total for part, _ in parts))
                    table.show(event, schedule.runs[event.id])
    return _run_report([run for schedule, _ in parts for run in schedule.wanted()], rows)


def _row(study: Study, size: Size, run: Run, event: Event, origin: Row) -> Row | None:
    if isinstance(event, Finished):
        return result_row(study, size, run, {"status": "done", **event.row}, origin)
    if isinstance(event, Failed):
        return result_row(study, size, run, {"status": "failed", "error": event.error}, origin)
    assert isinstance(event, Started | RunProgress)
    return None


def _run_report(runs: Sequence[Run], rows: Mapping[str, Row]) -> RunReport:
    wanted = [run_id(run) for run in runs]
    ended = [rows[name] for name in wanted if name in rows]
    errors = [row["error"] for row in ended if row["status"] == "failed"]
    return RunReport(
        done=len(ended) - len(errors),
        failed=len(errors),
        left=len(wanted) - len(ended),
        error=errors[0].strip().splitlines()[-1] if errors else "",
    )


def _devices(name: str) -> list[str]:
    """All GPUs for "auto" if there are any, otherwise the device of that name."""
    if name == "auto" and torch.cuda.is_available():
        return [f"cuda:{number}" for number in range(torch.cuda.device_count())]
    return [str(pick_device(name))]


def _execute(
    study: Study, options: RunOptions, models: ModelStore, schedule: Schedule, jobs: int, devices: Sequence[str]
) -> Generator[Event, None, None]:
    def job(name: str) -> PoolJob:
        return PoolJob(
            name, work_on, Work(study.name, study.source, options.size, name, schedule.runs[name].seed, models)
        )

    work = (None if name is None else job(name) for name in schedule)
    if options.cluster is None:
        # one thread each, as on a cluster: last bits depend on it, and must not depend on the number of workers
        threads = 1 if devices[0] == "cpu" else None
        return run_local(work, workers=max(1, min(jobs, schedule.total)), threads=threads, devices=devices)
    from exlstm.study.cluster import run_on_ray

    return run_on_ray(work, address=options.cluster)


class Work(NamedTuple):
    """A run as it is sent to a worker: a study's text, and the id and the seed of one of its runs."""

    study: str
    source: str
    size: Size
    id: str
    seed: int
    models: ModelStore | None = None


def work_on(work: Work, report: ProgressReporter) -> dict[str, Any]:
    """The call of a worker: reads the study's text and executes the run of this id, a planned one with another seed."""
    report.models = work.models
    planned = _runs(work.study, work.source, work.size)
    found = next(run for run in planned if run_id(with_seed(run, work.seed)) == work.id)
    return with_seed(found, work.seed).execute(report)


@lru_cache(maxsize=1)
def _runs(name: str, source: str, size: Size) -> list[Run]:
    return load_study(name, source).planned(size)
