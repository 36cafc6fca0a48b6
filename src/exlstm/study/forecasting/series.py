"""The series of a study and their tasks: a season, a horizon, and windows at the end.

T points
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType

import numpy as np

from exlstm.data.series.carried import CARRIED, carried_series
from exlstm.forecast.contract import Floats

MADE = "waves"


@dataclass(frozen=True, kw_only=True)
class SeriesTask:
    """A series by its name, what it is, points of a season (1 for none), and points that are forecast."""

    name: str
    about: str
    season: int
    horizon: int

    def values(self) -> Floats:
        """The series [T]. ValueError, with how to get it, where it is not there."""
        return _values(self.name)


_HORIZONS = {
    "airline": 12,
    "lynx": 10,
    "nile": 5,
    "sunspots": 11,
    "gdp": 8,
    "unemployment": 8,
    "co2": 26,
    "equipment": 12,
    "seatbelts": 12,
    "seattle_days": 14,
    "seattle_hours": 48,
}
TASKS: Mapping[str, SeriesTask] = MappingProxyType(
    {
        MADE: SeriesTask(name=MADE, about="a day and a week of sines in noise, made here", season=24, horizon=24),
        **{
            name: SeriesTask(name=name, about=CARRIED[name].about, season=CARRIED[name].season, horizon=horizon)
            for name, horizon in _HORIZONS.items()
        },
    }
)


def task_of(name: str) -> SeriesTask:
    """The task of this name. ValueError for a name that there is not."""
    if name not in TASKS:
        raise ValueError(f"there is no series {name!r}; use one of {', '.join(TASKS)}.")
    return TASKS[name]


@lru_cache(maxsize=32)  # all models of a study see the same
def _values(name: str) -> Floats:
    return waves(1500) if name == MADE else carried_series(name)


def waves(points: int) -> Floats:
    """Hours [T] with a day, a week and noise that lasts for some of them: what a forecast can know of it is known."""
    random = np.random.default_rng(0)
    noise_T = np.zeros(points)
    for t in range(1, points):
        noise_T[t] = 0.6 * noise_T[t - 1] + 0.2 * random.standard_normal()
    hour_T = np.arange(points)
    day_T, week_T = np.sin(2 * np.pi * hour_T / 24), np.sin(2 * np.pi * hour_T / 168)
    values_T: Floats = 10 + day_T + 0.5 * week_T + noise_T
    return values_T
