"""Two sets of results side by side: another commit, machine or size, or the same study before and after a change."""

from collections.abc import Iterable
from pathlib import Path
from statistics import mean, median

from exlstm.models.explain import aligned
from exlstm.study.contract import SIZES, Row
from exlstm.study.results import ResultFile, result_path

Key = tuple[tuple[str, str], ...]


def result_rows(name: str, folder: Path) -> list[Row]:
    """Finished rows of NAME, NAME@SIZE or a file of results. ValueError where there are none."""
    study, _, size = name.partition("@")
    path = Path(name)
    if path.suffix != ".jsonl":
        if (size or "small") not in SIZES:
            raise ValueError(f"{name!r} has a size that does not exist; use one of {', '.join(SIZES)}.")
        path = result_path(folder, study, size or "small")  # type: ignore[arg-type]
    rows = [row for row in ResultFile(path).read().values() if row["status"] == "done"]
    if not rows:
        raise ValueError(f"there are no results in {path}; name a study that has run, NAME@SIZE, or a .jsonl file.")
    return rows


def comparison(name_a: str, a: Iterable[Row], name_b: str, b: Iterable[Row]) -> str:
    """A line per setting (facets and learning rate) of both: medians of all tests over seeds, and the difference.

    The last line counts settings that only one of them has.
    """
    found_a, found_b = _settings(a), _settings(b)
    both = [key for key in found_a if key in found_b]
    heading = ("setting", name_a, name_b, "difference")
    rows = [heading, *(_line(key, found_a[key], found_b[key]) for key in both)]
    lines = aligned(rows)
    only_a, only_b = len(found_a) - len(both), len(found_b) - len(both)
    lines.append(f"{len(both)} settings in both, {only_a} only in {name_a}, {only_b} only in {name_b}")
    return "\n".join(lines)


def _settings(rows: Iterable[Row]) -> dict[Key, list[Row]]:
    found: dict[Key, list[Row]] = {}
    for row in rows:
        rate = {"lr": f"{row['config']['lr']:g}"} if "lr" in row["config"] else {}
        found.setdefault(tuple({**row["facets"], **rate}.items()), []).append(row)
    return found


def _line(key: Key, a: list[Row], b: list[Row]) -> tuple[str, str, str, str]:
    middle_a, middle_b = _median(a), _median(b)
    return (
        ", ".join(f"{name}={value}" if name == "lr" else value for name, value in key),
        f"{middle_a:.3f} ({len(a)})",
        f"{middle_b:.3f} ({len(b)})",
        f"{middle_b - middle_a:+.3f}",
    )


def _median(rows: list[Row]) -> float:
    return float(median(mean(test["score"] for test in row["metrics"]["tests"]) for row in rows))
