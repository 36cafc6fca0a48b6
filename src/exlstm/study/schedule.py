"""In which order a study's runs come: learning rates first, a setting's seeds as soon as its rate is chosen."""

import heapq
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from exlstm.study.aggregate import chosen, reported
from exlstm.study.contract import Run, run_id, settings

Row = dict[str, Any]


class Schedule:
    """What is left of an order, given the rows that there are, which the caller adds to and tells of with `ended`.

    Done runs are left out, failed ones come once more. First rates and first seeds of all settings come first.
    """

    def __init__(self, planned: Sequence[Run], rows: Mapping[str, Row], seeds: int) -> None:
        self.rows, self.seeds = rows, seeds
        self.groups = list(settings(planned))
        self.runs: dict[str, Run] = {}  # all that were ready at some time
        self.waiting: dict[int, set[str]] = {}  # settings whose rate is not chosen, with the runs that are to end first
        self._setting: dict[str, int] = {}
        self._ready: list[tuple[int, int, str]] = []
        for number, group in enumerate(self.groups):
            if len(group) > 1:
                left = [self._add(layer, number, run) for layer, run in enumerate(group)]
                self.waiting[number] = {name for name in left if name is not None}
            if not self.waiting.get(number):
                self._choose(number)

    @property
    def total(self) -> int:
        """How many runs there are in this order, as far as it is known."""
        return len(self.runs) + self.seeds * len(self.waiting)

    def __iter__(self) -> Iterator[str | None]:
        """Ids of runs as they are asked for; None: there may be more when a run has ended that is under way."""
        while self._ready or self.waiting:
            yield heapq.heappop(self._ready)[2] if self._ready else None

    def ended(self, name: str) -> None:
        """The row of a run is there."""
        number = self._setting[name]
        if number in self.waiting:
            self.waiting[number].discard(name)
            if not self.waiting[number]:
                self._choose(number)

    def wanted(self) -> list[Run]:
        """All runs that belong to the order, done or not, as far as it is known."""
        found: list[Run] = []
        for group in self.groups:
            run = chosen(group, self.rows)
            found += group if len(group) > 1 else []
            found += [] if run is None else reported(run, len(group), self.seeds)
        return found

    def _choose(self, number: int) -> None:
        self.waiting.pop(number, None)
        group = self.groups[number]
        run = chosen(group, self.rows)
        if run is not None:
            for layer, seed in enumerate(reported(run, len(group), self.seeds), len(group)):
                self._add(layer, number, seed)

    def _add(self, layer: int, number: int, run: Run) -> str | None:
        """Its id, if it is not done."""
        name = run_id(run)
        row = self.rows.get(name)
        if row is not None and row["status"] == "done":
            return None
        self.runs[name], self._setting[name] = run, number
        heapq.heappush(self._ready, (layer, number, name))
        return name
