"""Numbers of several seeds as text: mean, deviation and worst, as comparisons with published means need them."""

from statistics import mean, stdev

from exlstm.study.aggregate import Cell


def mean_of(cell: Cell, key: str = "score") -> float:
    """The mean over seeds of a number of the test."""
    return mean(cell.scores(key=key))


def deviation_of(cell: Cell, key: str = "score") -> float:
    """The deviation over seeds, 0 of a single one."""
    found = cell.scores(key=key)
    return stdev(found) if len(found) > 1 else 0.0


def seeds_text(cell: Cell, key: str = "score", *, form: str = ".3f", large: bool = True) -> str:
    """Mean and deviation, and the worst in brackets. large: a large number is a good one."""
    if not cell.rows:
        return cell.status()
    found = cell.scores(key=key)
    missing = f", {len(found)} of {cell.planned} seeds" if cell.open else ""
    worst = min(found) if large else max(found)
    return f"{mean_of(cell, key):{form}} ± {deviation_of(cell, key):{form}} ({worst:{form}}{missing})"


def decided(cells: list[Cell]) -> bool:
    """True if all runs of these settings have ended well, so that something can be claimed."""
    return bool(cells) and not any(cell.open for cell in cells)
