"""Simulated physical systems: trajectories in float64, noise, partial observation, Lyapunov exponents.

Trajectory i of a split is a function of (system, seed, split, i) alone, as rows of tasks are. Equations are integrated
by methods of the fourth order with a fixed step, so the same numbers come out everywhere up to rounding. The systems
are chaotic: two machines that round differently agree for some Lyapunov times only.

B trajectories  T samples  D variables of the state  C channels that are observed
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from exlstm.data.tasks.contract import Numbers, SplitName, numbers_for

Floats = NDArray[np.float64]
_LIMIT = 1e-12  # a distance below it is rounding


@dataclass(frozen=True, kw_only=True)
class DynamicalSystem:
    """A system of ordinary differential equations, and how it is sampled.

    step: time between two samples. substeps: steps of integration in it. transient: samples that are left out at the
    beginning. start: `start(numbers)` makes initial states [B, D]. advance: `advance(x_BD)` is the state one step of
    integration later. channels: `channels(x)` makes what can be observed, [..., C], of states [..., D].
    exponent: the largest Lyapunov exponent per unit of time. exponent_is: "published", or "estimated" by
    `largest_exponent`. source: where it is from.
    """

    name: str
    about: str
    step: float
    substeps: int
    transient: int
    start: Callable[[Numbers], Floats]
    advance: Callable[[Floats], Floats]
    channels: Callable[[Floats], Floats]
    exponent: float
    exponent_is: Literal["published", "estimated"]
    source: str

    @property
    def lyapunov_steps(self) -> float:
        """Samples of one Lyapunov time, in which a small error grows by a factor of e."""
        return 1 / (self.exponent * self.step)


def trajectories(
    system: DynamicalSystem, *, steps: int, seed: int = 0, split: SplitName = "train", first: int = 0, size: int = 1
) -> Floats:
    """States [B, T, D] of trajectories `first` to `first + size` of a split, behind their transients."""
    if steps < 1:
        raise ValueError(f"steps={steps} is no trajectory; use 1 or more.")
    x_BD = system.start(numbers_for(system.name, seed=seed, split=split, first=first, size=size))
    for _ in range(system.transient):
        x_BD = next_sample(system, x_BD)
    found = [x_BD]
    for _ in range(steps - 1):
        x_BD = next_sample(system, x_BD)
        found.append(x_BD)
    return np.stack(found, axis=1)


def next_sample(system: DynamicalSystem, x_BD: Floats) -> Floats:
    """The states one sample later."""
    for _ in range(system.substeps):
        x_BD = system.advance(x_BD)
    return x_BD


def observed(
    system: DynamicalSystem,
    x_BTD: Floats,
    *,
    noise: float = 0.0,
    only: Sequence[int] | None = None,
    seed: int = 0,
    split: SplitName = "train",
    first: int = 0,
) -> Floats:
    """What is seen of states: channels [B, T, C] with normal noise.

    noise: its deviation in deviations of the channel, which are taken over all that is given. only: the channels that
    are seen, such as (0,) for x of the Lorenz system; None: all. Raises ValueError for channels that there are not.
    """
    if not 0 <= noise < math.inf:
        raise ValueError(f"noise={noise} is no deviation; use 0 or more.")
    y_BTC = system.channels(x_BTD)
    B, T, C = y_BTC.shape
    if only is not None and (wrong := [c for c in only if not 0 <= c < C]):
        raise ValueError(f"only={tuple(only)} names channel {wrong[0]} of {system.name}; use 0 to {C - 1}.")
    numbers = numbers_for(f"{system.name} noise", seed=seed, split=split, first=first, size=B)
    y_BTC = y_BTC + noise * y_BTC.std((0, 1)) * normals(numbers, "noise", T * C).reshape(B, T, C)
    seen: Floats = y_BTC if only is None else y_BTC[..., list(only)]
    return seen


def normals(numbers: Numbers, purpose: str, count: int) -> Floats:
    """[B, count] standard normal numbers (Box & Muller 1958), the same in every version of numpy."""
    radius = np.sqrt(-2 * np.log1p(-numbers.uniform(f"{purpose} radius", count)))
    found: Floats = radius * np.cos(2 * np.pi * numbers.uniform(f"{purpose} angle", count))
    return found


def runge_kutta(slope: Callable[[Floats], Floats], step: float) -> Callable[[Floats], Floats]:
    """The classical method of the fourth order (Kutta 1901): a function from a state to the one a step later."""

    def advance(x_BD: Floats) -> Floats:
        k1 = slope(x_BD)
        k2 = slope(x_BD + step / 2 * k1)
        k3 = slope(x_BD + step / 2 * k2)
        k4 = slope(x_BD + step * k3)
        after_BD: Floats = x_BD + step / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        return after_BD

    return advance


def largest_exponent(
    system: DynamicalSystem, *, steps: int, seed: int = 0, size: int = 8, distance: float = 1e-8
) -> tuple[float, float]:
    """The largest Lyapunov exponent, and the standard error of its mean over trajectories (Benettin et al. 1980).

    A second trajectory begins at a small distance from each, and is drawn back to that distance after every sample; the
    exponent is the mean logarithm of the growth. The first tenth of the samples is left out: the direction of the
    difference has to settle.
    """
    numbers = numbers_for(f"{system.name} exponent", seed=seed, split="train", first=0, size=size)
    x_BD = system.start(numbers)
    for _ in range(system.transient):
        x_BD = next_sample(system, x_BD)
    away_BD = normals(numbers, "direction", x_BD.shape[1])
    growth = []
    for _ in range(steps):
        away_BD = away_BD * (distance / np.maximum(np.linalg.norm(away_BD, axis=1, keepdims=True), _LIMIT * distance))
        both_BD = next_sample(system, np.concatenate([x_BD, x_BD + away_BD]))
        x_BD, away_BD = both_BD[:size], both_BD[size:] - both_BD[:size]
        growth.append(np.log(np.linalg.norm(away_BD, axis=1) / distance))
    rates_B = np.mean(growth[len(growth) // 10 :], axis=0) / system.step
    return float(rates_B.mean()), float(rates_B.std(ddof=1) / math.sqrt(size)) if size > 1 else math.nan
