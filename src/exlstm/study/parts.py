"""What a report is made of: values that pages and terminals show in their own way."""

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
        """For people."""
        return {True: "holds", False: "does not hold", None: "not decided"}[self.holds]


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of text under a heading; `note` says what is equal in it and what numbers mean."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Picture:
    """`draw` draws on an empty matplotlib figure of `size` inches; `name` is that of its file, `note` stands below."""

    name: str
    title: str
    draw: Callable[[Any], None]
    size: tuple[float, float] = (9.0, 4.5)
    note: str = ""


Part = Claim | Table | Picture


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of text as lines, in columns as wide as they need."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
