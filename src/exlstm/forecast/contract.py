"""The contract of a forecasting method: it is fitted to a history, and then makes quantiles of what follows a past.

T points  N pasts  Q quantiles
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from exlstm.models.forecaster import LEVELS
from exlstm.nn.fields import Seed, Size, check_fields

Floats = NDArray[np.float64]
Fitted = Callable[[Sequence[Floats]], Floats]  # N pasts, each [T], the present last -> quantiles [N, horizon, Q]


@dataclass(frozen=True, kw_only=True)
class ForecastTask:
    """What is asked of every method.

    season: points of a season, 1 for none. context: points that models look back. steps: of training, for networks.
    """

    horizon: Size
    season: Size = 1
    context: Size = 64
    levels: tuple[float, ...] = LEVELS
    steps: Size = 300
    seed: Seed = 0

    def __post_init__(self) -> None:
        check_fields(self)


Method = Callable[[Floats, ForecastTask], Fitted]  # the history [T], NaN where it is missing


def filled(values_T: Floats, season: int) -> Floats:
    """The series with the value of a season before in the place of each missing one, or between its neighbors.

    ValueError for a series of missing values only.
    """
    found_T = values_T.copy()
    for t in np.flatnonzero(np.isnan(values_T)):
        if t >= season:
            found_T[t] = found_T[t - season]
    missing_T = np.isnan(found_T)
    if missing_T.all():
        raise ValueError("the series has no number in this part; begin where it has values.")
    place_T = np.arange(len(found_T))
    found_T[missing_T] = np.interp(place_T[missing_T], place_T[~missing_T], found_T[~missing_T])
    return found_T
