"""`exlstm study`: list, run, report, compare."""

import shlex
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

if TYPE_CHECKING:
    from exlstm.study.aggregate import Results
    from exlstm.study.contract import Study

Name = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="NAME")]
MaybeName = Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="NAME")]
First = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="A")]
Second = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="B")]
SizeName = Literal["quick", "small", "paper"]


@dataclass(frozen=True, kw_only=True)
class StudyList:
    """Options of `exlstm study list`."""

    folder: str = "study"  # folder of study files; their results are in its folder results/


@dataclass(frozen=True, kw_only=True)
class StudyRun:
    """Options of `exlstm study run`."""

    name: Name  # of a study, as in `exlstm study list`
    size: SizeName = "small"  # small: two cores of a CPU; paper: the paper's settings, for GPUs; quick: seconds, a test
    only: str | None = None  # some of the runs, such as model=lstm,task=parity; values of one name are alternatives
    seeds: int | None = None  # how many are reported for every setting; left out: those of the study, and 1 for quick
    jobs: int = 0  # runs at a time, each in a process of its own; 0 is one per core or GPU
    device: str = "auto"  # "auto" (GPUs if there are any), "cpu", "cuda", "cuda:1", ...
    cluster: str | None = None  # a Ray cluster: "auto", or "ray://HOST:PORT"; left out: this machine
    resume: bool = False  # go on with what there is: runs that are done are kept, failed ones are tried again
    overwrite: bool = False  # delete the results first
    keep_models: bool = False  # keep trained language models in results/models, for `exlstm eval` and other studies
    folder: str = "study"  # folder of study files; results go to its folder results/


@dataclass(frozen=True, kw_only=True)
class StudyPlan:
    """Options of `exlstm study plan`."""

    name: Name  # of a study, as in `exlstm study list`
    size: SizeName = "paper"  # which of its sizes
    seeds: int | None = None  # how many are reported for every setting; left out: those of the study
    tflops: float = 200.0  # what a device sustains, in 10^12 FLOPs a second: 200 is a fifth of an H100 in bfloat16
    folder: str = "study"  # folder of study files


@dataclass(frozen=True, kw_only=True)
class StudyReport:
    """Options of `exlstm study report`."""

    name: MaybeName = None  # of a study, as in `exlstm study list`; left out: a summary of all that have results
    size: SizeName = "small"  # which of its results
    seeds: int | None = None  # how many were to be reported; left out: those of the study
    folder: str = "study"  # folder of study files


@dataclass(frozen=True, kw_only=True)
class StudyCompare:
    """Options of `exlstm study compare`."""

    a: First  # results: NAME or NAME@SIZE of a study, or a file of results
    b: Second  # the results to compare them with
    folder: str = "study"  # folder of study files


def study_list(options: StudyList) -> None:
    """`exlstm study list`."""
    from rich.console import Console
    from rich.table import Table

    from exlstm.study.contract import SIZES, find_study, studies
    from exlstm.study.results import result_path

    table = Table(box=None, pad_edge=False, caption="settings done, of all; –: not run", caption_justify="left")
    table.add_column("study", no_wrap=True)
    for size in SIZES:
        table.add_column(size, no_wrap=True, justify="right")
    table.add_column("question")
    folder = Path(options.folder)
    for name in studies(folder):
        question, counts = find_study(name, folder).question, []
        for size in SIZES:
            if not result_path(folder, name, size).exists():
                counts.append("–")  # its runs, which take seconds to list, are not needed
                continue
            cells = _results(name, size, None, options.folder).cells()
            counts.append(f"{sum(not cell.missing for cell in cells)} of {len(cells)}")
        table.add_row(name, *counts, question)
    Console(highlight=False, markup=False).print(table)


def study_run(options: StudyRun) -> None:
    """`exlstm study run`: runs, then reports. Raises ValueError at the end if a run has failed."""
    from exlstm.study.contract import find_study
    from exlstm.study.runner import RunOptions, only_of, run_study

    folder = Path(options.folder)
    study = find_study(options.name, folder)
    how = RunOptions(
        size=options.size,
        seeds=_seeds(study, options.size, options.seeds),
        only=only_of(options.only),
        jobs=options.jobs,
        device=options.device,
        cluster=options.cluster,
        resume=options.resume,
        overwrite=options.overwrite,
        keep_models=options.keep_models,
    )
    try:
        report = run_study(study, how, folder)
    except KeyboardInterrupt:
        print(f"\nstopped; go on with: {_resume(options)}")
        raise
    study_report(StudyReport(name=options.name, size=options.size, seeds=options.seeds, folder=options.folder))
    if report.failed:
        raise ValueError(
            f"{report.failed} of {report.done + report.failed + report.left} runs failed, one with "
            f"{report.error!r}; try them again with: {_resume(options)}."
        )


def study_plan(options: StudyPlan) -> None:
    """`exlstm study plan`: parameters, FLOPs and hours, without running anything."""
    from exlstm.study.contract import find_study
    from exlstm.study.plan import plan, table

    if not 0 < options.tflops < 1e9:
        raise ValueError(f"--tflops is {options.tflops:g}; give what the device sustains, such as 200.")
    study = find_study(options.name, Path(options.folder))
    costs, others = plan(study, options.size, _seeds(study, options.size, options.seeds))
    print(f"{study.question}\n\n{table(costs, others, tflops=options.tflops)}")


def study_report(options: StudyReport) -> None:
    """`exlstm study report`: prints claims and tables, writes a page with pictures beside the results."""
    from exlstm.study.contract import studies
    from exlstm.study.report import terminal_text, write_report, write_summary
    from exlstm.study.results import report_path

    folder = Path(options.folder)
    if options.name is None:
        told = [name for name in studies(folder) if report_path(folder, name, options.size).exists()]
        if not told:
            raise ValueError(f"no study in {folder} has a report of size {options.size}; run: exlstm study run NAME.")
        every = [_results(name, options.size, options.seeds, options.folder) for name in told]
        print(f"All claims and pictures: {write_summary(every, folder)}")
        return
    results = _results(options.name, options.size, options.seeds, options.folder)
    page = write_report(results, Path(options.folder))
    print(terminal_text(results))
    print(f"\nThe report with its pictures: {page}")


def study_compare(options: StudyCompare) -> None:
    """`exlstm study compare`."""
    from exlstm.study.compare import comparison, result_rows

    folder = Path(options.folder)
    print(comparison(options.a, result_rows(options.a, folder), options.b, result_rows(options.b, folder)))


def _resume(options: StudyRun) -> str:
    """The command that resumes this one."""
    words = ["exlstm", "study", "run", options.name]
    for field in fields(options):
        value = getattr(options, field.name)
        if value != field.default and field.name not in ("name", "resume", "overwrite"):
            words += [f"--{field.name.replace('_', '-')}", *([] if value is True else [str(value)])]
    return shlex.join([*words, "--resume"])


def _seeds(study: "Study", size: str, seeds: int | None) -> int:
    from exlstm.study.runner import check_seeds

    if seeds is None:
        return 1 if size == "quick" else study.seeds
    check_seeds(seeds)
    return seeds


def _results(name: str, size: SizeName, seeds: int | None, folder: str) -> "Results":
    from exlstm.study.contract import find_study
    from exlstm.study.results import load_results

    study = find_study(name, Path(folder))
    return load_results(study, size, Path(folder), _seeds(study, size, seeds))
