"""The form of a study: a Python file with a question, a list of runs, and a report of their results.

    study/NAME.py
        '''The question in one line.

        Expected: what the paper, or we, expect.
        Paper: where it says so.
        '''
        def runs(size):         ...     -> a list of runs, frozen dataclasses with a method `execute`
        def report(results):    ...     -> Claims, ReportTables and Pictures, made of results only
        SEEDS = 3                       perhaps: how many are reported, where it is not five
        USES = ("NAME", ...)            perhaps: other studies, whose results count where a run is one of theirs, too
        BENCHMARKS = ("CASE", ...)      perhaps: cases of `make bench-cpu`, measured beside the software of others

Runs that differ in their learning rate only are one setting: the rate is chosen on the validation score of seed 0, and
the setting is reported for other seeds (see `aggregate`). Sizes are "small" (two cores of a CPU), "paper" (the paper's,
for GPUs) and "quick" (seconds, so that no study rots; its numbers mean nothing).
"""

import ast
import hashlib
import json
import sys
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol

from exlstm.models.checkpoints.own import config_to_json
from exlstm.models.lm import LMConfig
from exlstm.nn.fields import without_defaults
from exlstm.study.pool import ProgressReporter
from exlstm.study.report_items import ReportItem

Size = Literal["quick", "small", "paper"]
SIZES: tuple[Size, ...] = ("quick", "small", "paper")
Row = dict[str, Any]  # a line of results
DEFAULT_SEEDS = 5


class Run(Protocol):
    """A frozen dataclass of plain values: everything that its result depends on.

    A class attribute `alone = True` is for runs that measure time: they come last, one at a time.
    """

    @property
    def seed(self) -> int:
        """The seed of everything random."""

    def facets(self) -> dict[str, str]:
        """Names and values for tables and `--only`; runs that share them differ in learning rate and seed only."""

    def execute(self, report: ProgressReporter) -> dict[str, Any]:
        """Runs, and returns plain data for a row of results. An exception is recorded as the run's error.

        Needed are {"metrics": {"tests": [{"score": ...}, ...]}, "seconds": ...} and, where learning rates are chosen,
        metrics.validation. The rest is for the study's own report.
        """


@dataclass(frozen=True, kw_only=True)
class Study:
    """A study file that has been read. source: its text, which other processes and machines run as well."""

    name: str
    source: str
    question: str
    text: str  # the docstring after the question
    runs: Callable[[Size], Sequence[Any]]
    report: Callable[[Any], Sequence[ReportItem]]
    seeds: int = DEFAULT_SEEDS  # how many are reported of every setting
    uses: tuple[str, ...] = ()  # other studies, whose rows of the same runs are taken
    benchmarks: tuple[str, ...] = ()  # cases of `benchmarks/`, whose measurements are reported beside its own

    def planned(self, size: Size) -> list[Run]:
        """The runs of a size. ValueError for entries that are not runs, duplicates, and seeds of one run."""
        found: list[Run] = list(self.runs(size))
        if strange := [run for run in found if not is_dataclass(run)]:
            raise ValueError(
                f"study {self.name} lists {strange[0]!r}, which is no run; list dataclasses as `Training` is."
            )
        seen: set[str] = set()
        for run in found:
            if (name := run_id(run)) in seen:
                raise ValueError(f"study {self.name} lists a run twice ({run.facets()}); list every run once.")
            seen.add(name)
        if not found:
            raise ValueError(f"study {self.name} has no runs of size {size}; use another size.")
        for group in settings(found):
            if len({run.seed for run in group}) > 1:
                raise ValueError(
                    f"study {self.name} lists seeds of a setting ({group[0].facets()}); list one, --seeds adds others."
                )
        return found


def load_study(name: str, source: str) -> Study:
    """Reads a study from its text. ValueError if it cannot be executed, or lacks a part."""
    module = types.ModuleType(f"exlstm_study_{name}")
    sys.modules[module.__name__] = module  # dataclasses look up annotations there that are text
    try:
        text = (ast.get_docstring(ast.parse(source)) or "").strip()
        exec(compile(source, f"{name}.py", "exec"), module.__dict__)
    except Exception as error:
        raise ValueError(f"study {name} cannot be read ({type(error).__name__}: {error}); mend its file.") from error
    missing = [part for part in ("runs", "report") if not callable(getattr(module, part, None))]
    if missing or not text:
        raise ValueError(f"study {name} has no {missing[0] if missing else 'docstring'}; see `exlstm.study.contract`.")
    question, _, rest = text.partition("\n")
    return Study(
        name=name,
        source=source,
        question=question,
        text=rest.strip(),
        runs=module.runs,
        report=module.report,
        seeds=getattr(module, "SEEDS", DEFAULT_SEEDS),
        uses=tuple(getattr(module, "USES", ())),
        benchmarks=tuple(getattr(module, "BENCHMARKS", ())),
    )


def studies(folder: Path) -> dict[str, Path]:
    """Study files of a folder, by name. ValueError if there is no such folder, or none in it."""
    found = {path.stem: path for path in sorted(folder.glob("*.py")) if not path.stem.startswith("_")}
    if not found:
        raise ValueError(
            f"there are no studies in {folder.absolute()}; go to a clone of exlstm, or name a folder with --folder."
        )
    return found


def find_study(name: str, folder: Path) -> Study:
    """The study of this name. ValueError if there is none."""
    found = studies(folder)
    if name not in found:
        raise ValueError(f"there is no study {name!r} in {folder}; there are {', '.join(found)}.")
    return load_study(name, found[name].read_text(encoding="utf-8"))


def to_json(value: Any) -> Any:
    """Plain data of a config: dataclasses by field, architectures as in saved models."""
    if isinstance(value, LMConfig):
        return config_to_json(value)
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_json(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {key: to_json(item) for key, item in value.items()}
    return [to_json(item) for item in value] if isinstance(value, tuple | list) else value


def is_alone(run: Run) -> bool:
    """True for a run that measures time, so that no other may run beside it."""
    return bool(getattr(run, "alone", False))


def run_id(run: Run) -> str:
    """A hash of a config as its name, the same for the same values in any order.

    Fields that have their default do not count, so that a field that is added later leaves old names as they are.
    """
    return hashlib.sha256(json.dumps(without_defaults(run), sort_keys=True).encode()).hexdigest()[:16]


def with_seed(run: Run, seed: int) -> Run:
    """The same run with another seed."""
    return replace(run, seed=seed)  # type: ignore[type-var]


def setting_id(run: Run) -> str:
    """A hash of a run's config without seed and learning rate. Runs that share it are one setting."""
    return run_id(replace(with_seed(run, 0), lr=0.0) if hasattr(run, "lr") else with_seed(run, 0))  # type: ignore[type-var]


def settings(runs: Iterable[Run]) -> Iterator[list[Run]]:
    """Runs grouped by setting, in the order of the first run of each."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(setting_id(run), []).append(run)
    yield from groups.values()
