"""Claims, tables and pictures: the items of a report, as values."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A sentence that is true or false of the results. holds: None while runs that decide it are missing."""

    text: str
    holds: bool | None
    evidence: str = ""

    @property
    def verdict(self) -> str:
        """`holds` in words."""
        return {True: "holds", False: "does not hold", None: "not decided"}[self.holds]


@dataclass(frozen=True, kw_only=True)
class ReportTable:
    """Rows of text under a heading. note: what is equal in the comparison, and what the numbers mean."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A picture. draw: draws on an empty matplotlib figure of `size` inches. name: of its file. note: stands below."""

    name: str
    title: str
    draw: Callable[[Any], None]
    size: tuple[float, float] = (9.0, 4.5)
    note: str = ""


ReportItem = Claim | ReportTable | Picture
