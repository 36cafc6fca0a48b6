"""Results by setting, for tables and claims: medians over seeds, failures, and runs that are missing.

A learning rate is chosen per setting by the validation score of seed 0. Reported are test scores of seeds 1, 2, ... at
that rate, which had no part in the choice. If only one rate is tried, seed 0 is reported as well.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from types import MappingProxyType

from exlstm.study.contract import Row, Run, Size, Study, run_id, settings, with_seed
from exlstm.study.report_items import ReportTable

_COSTS = {
    "parameters": "parameters",
    "state_bytes": "state bytes at the longest test",
    "flops": "FLOPs of training",
    "seconds": "seconds of training",
}


def chosen(group: Sequence[Run], rows: Mapping[str, Row]) -> Run | None:
    """The run of a setting with the best validation score of seed 0, among runs that differ in their learning rate.

    None until all of them have ended, and if all have failed.
    """
    if len(group) == 1:
        return group[0]
    found = [rows.get(run_id(run)) for run in group]
    if any(row is None for row in found):
        return None
    scores = [
        row["metrics"]["validation"] if row is not None and row["status"] == "done" else -math.inf for row in found
    ]
    best = max(range(len(group)), key=lambda index: scores[index])
    return group[best] if scores[best] > -math.inf else None


def reported(run: Run, tried: int, seeds: int) -> list[Run]:
    """The runs whose tests are reported for a setting. tried: number of its learning rates."""
    return [with_seed(run, run.seed + number + (tried > 1)) for number in range(seeds)]


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One setting: its facets, the chosen run, the rows that are reported, and their planned number.

    If all learning rates have failed on seed 0, these are the failed runs, and no more are planned.
    """

    facets: dict[str, str]
    run: Run | None
    tried: int
    rows: tuple[Row, ...]
    failed: tuple[Row, ...]
    planned: int

    @property
    def missing(self) -> int:
        """Number of runs that have not ended."""
        return self.planned - len(self.rows) - len(self.failed)

    @property
    def open(self) -> bool:
        """True if runs have not ended or have failed, so that nothing can be claimed."""
        return bool(self.missing or self.failed)

    def tests(self, test: int = 0) -> list[Row]:
        """The entries of one test, one per seed."""
        return [row["metrics"]["tests"][test] for row in self.rows]

    def scores(self, test: int = 0, key: str = "score") -> list[float]:
        """One number of one test, per seed."""
        return [float(entry[key]) for entry in self.tests(test)]

    def median(self, test: int = 0, key: str = "score") -> float | None:
        """The median over seeds; None without any."""
        found = self.scores(test, key)
        return median(found) if found else None

    def median_of(self, key: str) -> float | None:
        """The median over seeds of a number of the whole run, such as "parameters"; None without any."""
        found = [float(row[key]) for row in self.rows]
        return median(found) if found else None

    def solved(self, least: float = 0.99, test: int = 0, key: str = "score") -> int:
        """Number of seeds that reach a score."""
        return sum(score >= least for score in self.scores(test, key))

    def status(self, test: int = 0) -> str:
        """The state: "not run", "failed", "at chance" (most seeds no better than guessing), or "learned"."""
        if not self.rows:
            return "failed" if self.failed else "not run"
        lost = sum(bool(entry.get("at_chance")) for entry in self.tests(test))
        return "at chance" if 2 * lost > len(self.rows) else "learned"

    def text(self, test: int = 0, least: float = 0.99) -> str:
        """A cell of a table: the median, seeds that solved the task of those that ran, and what is missing."""
        state = self.status(test)
        if state in ("not run", "failed"):
            return state
        marks = [f"{self.solved(least, test)}/{len(self.rows)}"]
        marks += [f"{len(self.failed)} failed"] * bool(self.failed) + [f"{self.missing} not run"] * bool(self.missing)
        value = self.median(test)
        assert value is not None
        return f"{value:.2f} ({', '.join(marks)}{', at chance' * (state == 'at chance')})"

    def spread(self, key: str, test: int = 0, form: str = ".3f") -> str:
        """A number of a test as a cell of a table: the median over seeds and their range, and what is missing."""
        found = self.scores(test, key)
        if not found:
            return self.status(test)
        count = f"{len(found)} of {self.planned} seeds" if self.open else f"{len(found)} seed{'s' * (len(found) > 1)}"
        return f"{median(found):{form}} ({min(found):{form}} to {max(found):{form}}, {count})"


class Results:
    """Results of a study at a size: its planned settings, and the rows of runs that have ended.

    benchmarks: measurements by name, of those cases of its `benchmarks` that have been measured.
    """

    def __init__(
        self,
        study: Study,
        size: Size,
        rows: Mapping[str, Row],
        seeds: int,
        benchmarks: Mapping[str, Mapping[str, Row]] = MappingProxyType({}),
    ) -> None:
        self.study, self.size, self.rows, self.seeds, self.benchmarks = study, size, rows, seeds, benchmarks
        self.planned = study.planned(size)
        self._settings = [(group[0].facets(), group) for group in settings(self.planned)]

    def cells(self, keep: Callable[[dict[str, str]], bool] = lambda facets: True) -> list[Cell]:
        """Settings for whose facets `keep` is true, in the study's order."""
        return [self._cell(facets, group) for facets, group in self._settings if keep(facets)]

    def ended(self) -> list[Row]:
        """Rows of all runs that have ended, those that chose a learning rate included."""
        found: dict[str, Row] = {}
        for _, group in self._settings:
            run = chosen(group, self.rows)
            wanted = [*group, *([] if run is None else reported(run, len(group), self.seeds))]
            found |= {name: self.rows[name] for name in map(run_id, wanted) if name in self.rows}
        return list(found.values())

    def cell(self, **facets: str) -> Cell:
        """The only setting with these facets. AssertionError if there is none or more than one."""
        found = self.cells(lambda own: facets.items() <= own.items())
        assert len(found) == 1, f"{len(found)} settings have {facets}"
        return found[0]

    def values(self, facet: str) -> list[str]:
        """The values of a facet, in the study's order."""
        return list(dict.fromkeys(facets[facet] for facets, _ in self._settings if facet in facets))

    def costs(self, by: str = "model", **facets: str) -> ReportTable:
        """Costs of the compared settings, for every value of the facet `by`: medians over seeds and tasks.

        facets: of the settings that count.
        """
        rows = []
        for value in self.values(by):
            wanted = {**facets, by: value}.items()
            found = [row for facets_, group in self._settings if wanted <= facets_.items()
                     for row in self._cell(facets_, group).rows]  # fmt: skip
            if found:
                middle = [median(row[key] for row in found) for key in _COSTS]
                rows.append((value, *(f"{number:,.0f}" if number < 1e7 else f"{number:.1e}" for number in middle)))
        where = "".join(f", {name} {value}" for name, value in facets.items())
        return ReportTable(title=f"What a run costs{where}", columns=(by, *_COSTS.values()), rows=rows)

    def _cell(self, facets: dict[str, str], group: Sequence[Run]) -> Cell:
        run = chosen(group, self.rows)
        if run is None:
            tried = [self.rows[run_id(r)] for r in group if run_id(r) in self.rows]
            lost = len(tried) == len(group)  # all rates have failed, so no seeds will follow
            ended, planned = (tried, len(tried)) if lost else ([], self.seeds)
        else:
            wanted = reported(run, len(group), self.seeds)
            ended, planned = [self.rows[run_id(r)] for r in wanted if run_id(r) in self.rows], self.seeds
        return Cell(
            facets=facets,
            run=run,
            tried=len(group),
            rows=tuple(row for row in ended if row["status"] == "done"),
            failed=tuple(row for row in ended if row["status"] == "failed"),
            planned=planned,
        )
