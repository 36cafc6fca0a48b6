"""Tables of series: a column of times, and columns of numbers, from CSV or Parquet.

C columns  T rows
"""

import csv
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from exlstm.data.series.lines import error_at, number_of

Floats = NDArray[np.float64]
MISSING = ("", "?", "nan", "na", "null", "none")


@dataclass(frozen=True, kw_only=True)
class SeriesTable:
    """Columns of numbers [T, C], NaN where one is missing, and the time of each row.

    times: None where no column has times, and rows are taken as they come. time_name: the column that has them.
    skipped: columns that hold neither.
    """

    names: tuple[str, ...]
    values_TC: Floats
    times: tuple[datetime, ...] | None = None
    time_name: str | None = None
    skipped: tuple[str, ...] = ()

    def column(self, name: str) -> Floats:
        """The numbers of a column. ValueError, with the names that there are."""
        if name not in self.names:
            raise ValueError(f"there is no column of numbers {name!r}; there are {', '.join(self.names)}.")
        return self.values_TC[:, self.names.index(name)]


def read_table(file: str | Path) -> SeriesTable:
    """A .csv file with a line of names, or a .parquet file where pyarrow is installed.

    The first column whose values are all times in ISO 8601 is that of times. ValueError for what is no such table.
    """
    path = Path(file)
    if not path.is_file():
        raise ValueError(f"there is no file {str(file)!r}; give a .csv or .parquet file.")
    return _table(str(path), *(_parquet(path) if path.suffix == ".parquet" else _csv(path)))


def _csv(path: Path) -> tuple[list[str], list[list[str]], list[int]]:
    """Names, columns as texts, and the line of each row."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not text in UTF-8; give a .csv file, or a .parquet file by that name.") from error
    reader = csv.reader(text.splitlines(), delimiter=_delimiter(text.partition("\n")[0]))
    rows = [(reader.line_num, row) for row in reader if any(word.strip() for word in row)]
    if len(rows) < 2:
        raise ValueError(f"{path} has {len(rows)} lines; give a line of names and at least one of numbers.")
    names = [name.strip() for name in rows[0][1]]
    for number, row in rows[1:]:
        if len(row) != len(names):
            raise error_at(str(path), number, f"has {len(row)} values for {len(names)} columns", "check its commas")
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"{path} has two columns {twice[0]!r}; name every column once.")
    columns = [[row[index].strip() for _, row in rows[1:]] for index in range(len(names))]
    return names, columns, [number for number, _ in rows[1:]]


def _delimiter(head: str) -> str:
    return max(",;\t", key=head.count)


def _parquet(path: Path) -> tuple[list[str], list[list[str]], list[int]]:
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise ValueError(
            f"{path} is read by pyarrow, which is not installed; pip install pyarrow, or give CSV."
        ) from error
    found = parquet.read_table(path)
    columns = [["" if value is None else str(value) for value in column.to_pylist()] for column in found.columns]
    return list(found.column_names), columns, list(range(1, found.num_rows + 1))


def _table(place: str, names: list[str], columns: list[list[str]], lines: list[int]) -> SeriesTable:
    times, time_name = None, None
    kept: dict[str, Floats] = {}
    skipped = []
    for name, column in zip(names, columns, strict=True):
        numbers = [number_of(word, MISSING) for word in column]
        wrong = [index for index, number in enumerate(numbers) if number is None]
        if not wrong:
            kept[name] = np.array(numbers, dtype=np.float64)
        elif times is None and (found := _times(column)) is not None:
            times, time_name = found, name
        elif len(wrong) <= len(column) // 10:
            # a column of numbers with a slip, and not one of words
            word = column[wrong[0]]
            raise error_at(
                place, lines[wrong[0]], f"has {word[:20]!r} in column {name!r}", "write a number, or nothing"
            )
        else:
            skipped.append(name)
    if not kept:
        raise ValueError(f"{place} has no column of numbers; give one.")
    values_TC = np.stack(list(kept.values()), axis=1)
    return SeriesTable(names=tuple(kept), values_TC=values_TC, times=times, time_name=time_name, skipped=tuple(skipped))


def _times(column: list[str]) -> tuple[datetime, ...] | None:
    """Times in ISO 8601; None where a value is something else, or only some have a zone."""
    try:
        found = [datetime.fromisoformat(word) for word in column]
    except ValueError:
        return None
    return tuple(found) if len({time.tzinfo is None for time in found}) == 1 else None
