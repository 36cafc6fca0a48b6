"""The history of a series: a column of a table, in order of time, with one row for every step.

T points  E points of the grid, missing ones too
"""

from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from exlstm.data.series import SeriesTable

Floats = NDArray[np.float64]
_MOST_GAPS = 3  # rows that are filled in for each one that there is
_SEASONS = {3600: 24, 1800: 48, 900: 96, 600: 144, 86_400: 7, 7 * 86_400: 52}  # points of one, by seconds of a step


@dataclass(frozen=True, kw_only=True)
class TimeStep:
    """The time between two rows: whole months of the calendar, or a span of time."""

    months: int = 0
    span: timedelta = timedelta()

    def after(self, time: datetime, count: int) -> datetime:
        """The time some steps later."""
        if not self.months:
            return time + count * self.span
        month = time.year * 12 + time.month - 1 + count * self.months
        return time.replace(year=month // 12, month=month % 12 + 1)

    def between(self, first: datetime, second: datetime) -> float:
        """How many steps one time is behind another; whole where it is on the grid."""
        if not self.months:
            return (second - first) / self.span
        if (second.day, second.time()) != (first.day, first.time()):
            return 0.5
        return _months(first, second) / self.months

    @property
    def season(self) -> int:
        """Points of the season that is usual for such steps: a day of hours, a week of days, a year of months; or 1."""
        if self.months:
            return 12 // self.months if 12 % self.months == 0 else 1
        return _SEASONS.get(int(self.span.total_seconds()), 1)

    def __str__(self) -> str:
        if self.months:
            return "month" if self.months == 1 else f"{self.months} months"
        return str(self.span)


@dataclass(frozen=True, kw_only=True)
class SeriesHistory:
    """Values [T], NaN where one is missing; the time of the first, and the step. notes: what was found and done."""

    name: str
    values_T: Floats
    start: datetime | None = None
    step: TimeStep | None = None
    notes: tuple[str, ...] = field(default=())

    def time(self, index: int) -> datetime | int:
        """The time of a row, which may lie behind the last; the number of the row where there are no times."""
        return index if self.start is None or self.step is None else self.step.after(self.start, index)


def history_of(table: SeriesTable, column: str | None = None) -> SeriesHistory:
    """The history of a column. ValueError where it is not clear which, and for times that no grid fits."""
    if column is None and len(table.names) > 1:
        raise ValueError(f"there are {len(table.names)} columns of numbers ({', '.join(table.names[:9])}); name one.")
    name = table.names[0] if column is None else column
    values_T = table.column(name)
    if np.isnan(values_T).all():
        raise ValueError(f"column {name!r} has no number; name another one.")
    if table.times is None:
        notes = [] if np.isfinite(values_T).all() else [_missing(values_T)]
        return SeriesHistory(name=name, values_T=values_T, notes=("rows count as steps: no times", *notes))
    return _on_grid(name, values_T, list(table.times), str(table.time_name))


def _missing(values_T: Floats) -> str:
    return f"{int(np.isnan(values_T).sum())} of {len(values_T)} values are missing"


def _on_grid(name: str, values_T: Floats, times: list[datetime], time_name: str) -> SeriesHistory:
    notes = []
    order = sorted(range(len(times)), key=lambda index: times[index])
    if order != list(range(len(times))):
        notes.append(f"rows were not in the order of {time_name}, and are sorted")
        times, values_T = [times[index] for index in order], values_T[order]
    for before, after in pairwise(times):
        if before == after:
            raise ValueError(f"the time {before} of column {time_name!r} occurs twice; keep one row of each time.")
    if len(times) < 2:
        raise ValueError(f"column {time_name!r} has a single time; give at least two rows.")
    step = _step(times)
    places = [step.between(times[0], time) for time in times]
    wrong = next((time for time, place in zip(times, places, strict=True) if abs(place - round(place)) > 1e-6), None)
    if wrong is not None:
        raise ValueError(
            f"the time {wrong} of column {time_name!r} is not on the grid of steps of {step} from {times[0]}; "
            "resample the series to even steps."
        )
    count = round(places[-1]) + 1
    if count > (1 + _MOST_GAPS) * len(times):
        raise ValueError(
            f"{count - len(times)} steps of {step} between {len(times)} rows have no row; resample the series."
        )
    on_grid_E = np.full(count, np.nan)
    on_grid_E[[round(place) for place in places]] = values_T
    if count > len(times):
        notes.append(f"{count - len(times)} steps of {step} have no row, and count as missing")
    if np.isnan(values_T).any():
        notes.append(_missing(values_T))
    return SeriesHistory(name=name, values_T=on_grid_E, start=times[0], step=step, notes=tuple(notes))


def _step(times: list[datetime]) -> TimeStep:
    """The most frequent step, the shortest of several; months of the calendar if all rows have one day and hour."""
    if len({(time.day, time.time()) for time in times}) == 1 and times[0].day <= 28:
        months = Counter(_months(before, after) for before, after in pairwise(times))
        if min(months) > 0:
            return TimeStep(months=max(months, key=lambda step: (months[step], -step)))
    spans = Counter(after - before for before, after in pairwise(times))
    return TimeStep(span=max(spans, key=lambda span: (spans[span], -span)))


def _months(first: datetime, second: datetime) -> int:
    return (second.year - first.year) * 12 + second.month - first.month
