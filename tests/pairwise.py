"""Many combinations of options: each pair of values by default, all of them among the slow tests."""

from collections.abc import Callable, Sequence
from itertools import combinations, product
from typing import Any

import pytest


def every_pair(**axes: Sequence[Any]) -> Callable[..., Any]:
    """A parametrisation by all combinations of the axes' values, of which those beyond a covering of pairs are slow.

    A fault of two options together shows by default: any two values of two axes occur in one case.
    """
    rows = list(product(*(range(len(values)) for values in axes.values())))
    default = covering(rows)
    return pytest.mark.parametrize(
        tuple(axes),
        [
            pytest.param(
                *(values[n] for values, n in zip(axes.values(), row, strict=True)),
                marks=() if row in default else pytest.mark.slow,
                id="-".join(name_of(values[n]) for values, n in zip(axes.values(), row, strict=True)),
            )
            for row in rows
        ],
    )


def covering(rows: Sequence[tuple[int, ...]]) -> set[tuple[int, ...]]:
    """A subset of the rows that has every pair of values of the whole."""
    open_pairs = {pair for row in rows for pair in pairs(row)}
    chosen: set[tuple[int, ...]] = set()
    while open_pairs:
        # the first of those that cover most
        row = max(rows, key=lambda row: len(open_pairs & pairs(row)))
        open_pairs -= pairs(row)
        chosen.add(row)
    return chosen or set(rows)


def pairs(row: Sequence[int]) -> set[tuple[tuple[int, int], ...]]:
    """The pairs of (axis, value number) of a row; of a single axis its values."""
    places = list(enumerate(row))
    return set(combinations(places, min(2, len(places))))


def name_of(value: Any) -> str:
    return getattr(value, "__name__", str(value)).removeprefix("torch.")
