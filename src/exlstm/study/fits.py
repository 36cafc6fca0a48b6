"""Power laws through the results of several sizes, with bands from the seeds: y = a x^b in the range of x that was run.

The band is that of fits to resampled seeds (a bootstrap), 95 % of them. It shows the spread of seeds alone: whether a
power law is the right curve is not in it.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

_LEAST = 3  # sizes; through fewer any line goes
_COVERED = (2.5, 97.5)  # percentiles of the band


class PowerLaw(NamedTuple):
    """y = factor * x ** exponent. low, high: of the exponent. lines_RP: fits to resampled seeds, (exponent, log)."""

    exponent: float
    factor: float
    low: float
    high: float
    lines_RP: NDArray[np.float64]

    def at(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        """The fit and its band at some places, [3, X]: the fit, below, above."""
        resampled = np.exp(self.lines_RP[:, :1] * np.log(x) + self.lines_RP[:, 1:])
        low, high = np.percentile(resampled, _COVERED, axis=0)
        found: NDArray[np.float64] = np.stack([self.factor * x**self.exponent, low, high])
        return found


def power_law(points: Sequence[tuple[float, Sequence[float]]], *, resamples: int = 400) -> PowerLaw | None:
    """The least squares fit in logarithms through the medians of (x, values of several seeds).

    None for fewer than three places, or one place several times.
    """
    found = [(x, np.asarray(values, dtype=float)) for x, values in points if len(values)]
    x = np.log([x for x, _ in found])
    if len(set(x.tolist())) < _LEAST:
        return None
    exponent, log = np.polyfit(x, np.log([np.median(values) for _, values in found]), 1)
    chance = np.random.default_rng(0)
    medians_XR = [np.median(chance.choice(values, (resamples, len(values))), axis=1) for _, values in found]
    lines_RP = np.polyfit(x, np.log(medians_XR), 1).T
    low, high = np.percentile(lines_RP[:, 0], _COVERED)
    return PowerLaw(float(exponent), float(np.exp(log)), float(low), float(high), lines_RP)


def draw_fit(axes: Any, law: PowerLaw, low: float, high: float, *, color: str) -> None:
    """The fit and its band between two places, and nothing beyond them."""
    x = np.geomspace(low, high, 50)
    middle, below, above = law.at(x)
    axes.plot(x, middle, color=color, linewidth=1.2)
    axes.fill_between(x, below, above, color=color, alpha=0.15, linewidth=0)
