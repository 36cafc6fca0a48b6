"""The history of a series: order, gaps, missing values, calendars, and what is no series."""

from datetime import datetime, timedelta

import numpy as np
import pytest

from exlstm.data.series import SeriesTable
from exlstm.forecast.history import TimeStep, history_of

START = datetime(2024, 1, 31)


def table(values, times=None, names=("load",)):
    columns = np.array(values, dtype=float).reshape(len(values), len(names))
    return SeriesTable(names=names, values_TC=columns, times=times and tuple(times), time_name=times and "date")


def hours(*numbers):
    return [START + timedelta(hours=number) for number in numbers]


def test_rows_are_put_in_order_and_gaps_are_missing():
    """Hours 4, 0, 1, 5: sorted, with 2 and 3 missing; a value of 1 is missing in its own row."""
    found = history_of(table([40, 0, np.nan, 50], hours(4, 0, 1, 5)), "load")
    np.testing.assert_array_equal(found.values_T, [0, np.nan, np.nan, np.nan, 40, 50])
    assert found.notes == (
        "rows were not in the order of date, and are sorted",
        "2 steps of 1:00:00 have no row, and count as missing",
        "1 of 4 values are missing",
    )
    assert found.time(7) == START + timedelta(hours=7)
    assert found.step.season == 24


def test_months_of_the_calendar_are_even_steps():
    times = [datetime(2023 + month // 12, 1 + month % 12, 1) for month in (0, 1, 3, 4, 13)]
    found = history_of(table([0, 1, 3, 4, 13], times))
    np.testing.assert_array_equal(np.flatnonzero(np.isfinite(found.values_T)), [0, 1, 3, 4, 13])
    assert str(found.step) == "month"
    assert found.time(14) == datetime(2024, 3, 1)
    assert found.step.season == 12
    assert TimeStep(months=3).season == 4
    assert TimeStep(span=timedelta(days=1)).season == 7
    assert TimeStep(span=timedelta(seconds=7)).season == 1


def test_rows_without_times_are_steps():
    found = history_of(table([1, np.nan, 3]))
    assert found.notes == ("rows count as steps: no times", "1 of 3 values are missing")
    assert found.time(5) == 5


@pytest.mark.parametrize(("made", "column", "fragment"), [
    (lambda: table([1, 2], hours(0, 0)), None, "2024-01-31 00:00:00 of column 'date' occurs twice"),
    (lambda: table([1, 2, 3, 4], hours(0, 1, 2, 3.5)), None, "2024-01-31 03:30:00 .* not on the grid of steps of 1:00"),
    (lambda: table([1, 2, 3, 4], hours(0, 1, 2, 99)), None, "96 steps of 1:00:00 between 4 rows have no row"),
    (lambda: table([1], hours(0)), None, "a single time"),
    (lambda: table([[1, 2]], names=("a", "b")), None, r"2 columns of numbers \(a, b\); name one"),
    (lambda: table([1]), "cost", "no column of numbers 'cost'; there are load"),
    (lambda: table([np.nan]), "load", "column 'load' has no number"),
])  # fmt: skip
def test_what_is_no_series_is_refused(made, column, fragment):
    with pytest.raises(ValueError, match=fragment):
        history_of(made(), column)
