"""The order of a study's runs: learning rates first, a setting's seeds as soon as its rate is chosen."""

import heapq
from collections.abc import Iterator, Mapping, Sequence

from exlstm.study.aggregate import chosen, reported
from exlstm.study.contract import Row, Run, run_id, settings


class Schedule:
    """The queue of runs that are not done. The caller adds a row to `rows` and then calls `ended`.

    Failed runs come once more. First rates and first seeds of all settings come first.
    """

    def __init__(self, planned: Sequence[Run], rows: Mapping[str, Row], seeds: int) -> None:
        self.rows, self.seeds = rows, seeds
        self.groups = list(settings(planned))
        self.runs: dict[str, Run] = {}  # all runs that were ready at some time
        self.waiting: dict[int, set[str]] = {}  # settings whose rate is not chosen, with the runs that it waits for
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
        """Number of runs in this queue, as far as it is known."""
        return len(self.runs) + self.seeds * len(self.waiting)

    def __iter__(self) -> Iterator[str | None]:
        """Ids of runs in order. None: there is none until one of the running runs has ended."""
        while self._ready or self.waiting:
            yield heapq.heappop(self._ready)[2] if self._ready else None

    def ended(self, name: str) -> None:
        """Takes note that the row of a run is there, which may choose a rate."""
        number = self._setting[name]
        if number in self.waiting:
            self.waiting[number].discard(name)
            if not self.waiting[number]:
                self._choose(number)

    def wanted(self) -> list[Run]:
        """All runs of the settings, done or not, as far as they are known."""
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
        """Adds a run that is not done; returns its id, None for a done one."""
        name = run_id(run)
        row = self.rows.get(name)
        if row is not None and row["status"] == "done":
            return None
        self.runs[name], self._setting[name] = run, number
        heapq.heappush(self._ready, (layer, number, name))
        return name
