"""The backtest: every method is fitted to the same beginning of a series, and forecasts the same windows behind it.

T points  E points before all windows  N windows  P points of a horizon  Q quantiles
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from exlstm.data.series.metrics import crps, mase, weighted_quantile_loss
from exlstm.forecast.baselines import drift, ridge, seasonal_naive
from exlstm.forecast.contract import Floats, ForecastTask, Method
from exlstm.forecast.networks import torch_lstm, xlstm
from exlstm.forecast.statistical import NAMES, is_installed, statistical
from exlstm.models.forecaster import level_index

METHODS: dict[str, Method] = {
    "xlstm": xlstm,
    "lstm": torch_lstm,
    "ridge": ridge,
    "seasonal_naive": seasonal_naive,
    "drift": drift,
}
_TESTED = 0.3  # of the points, at most


@dataclass(frozen=True, kw_only=True)
class MethodScore:
    """What a method did in the backtest: means over windows. missing: why there is none.

    wql: the CRPS as a share of the values' mean size. covered: the share of points between the first and the last
    quantile.
    """

    mase: float = float("nan")
    crps: float = float("nan")
    wql: float = float("nan")
    covered: float = float("nan")
    seconds: float = 0.0
    missing: str | None = None


@dataclass(frozen=True, kw_only=True)
class Backtest:
    """Scores by method, and the windows: the first point of each. fitted_to: points before the first window."""

    task: ForecastTask
    origins: tuple[int, ...]
    scores: Mapping[str, MethodScore]

    @property
    def fitted_to(self) -> int:
        """The points that methods are fitted to."""
        return self.origins[0]

    @property
    def best(self) -> str:
        """The method with the lowest CRPS."""
        known = {name: score.crps for name, score in self.scores.items() if np.isfinite(score.crps)}
        if not known:
            raise ValueError("no window has a value to compare with; give a series with fewer missing values.")
        return min(known, key=lambda name: known[name])


def all_methods() -> dict[str, Method]:
    """Ours, and those of statsforecast where it is installed."""
    return METHODS | ({name: statistical(name) for name in NAMES} if is_installed() else {})


def planned_task(points: int, *, horizon: int, season: int, context: int | None, steps: int, seed: int) -> ForecastTask:
    """The task for a series of so many points. ValueError for a horizon or a season that it is too short for."""
    most = (points - season) // 4
    if season >= points:
        raise ValueError(f"a season of {season} is not in {points} points; use a shorter one.")
    if most < 1:
        raise ValueError(f"{points} points are too few for a season of {season}; give at least {season + 4}.")
    if horizon > most:
        raise ValueError(f"a horizon of {horizon} is too long for {points} points; use at most {most}.")
    room = points - 3 * horizon
    wanted = usual_context(season, horizon) if context is None else context
    if context is not None and context > room:
        raise ValueError(f"a context of {context} is too long for {points} points; use at most {room}.")
    return ForecastTask(horizon=horizon, season=season, context=min(wanted, room), steps=steps, seed=seed)


def usual_context(season: int, horizon: int) -> int:
    """Points that models look back where nothing else is asked for."""
    return max(3 * season, 2 * horizon, 48)


def origins_of(points: int, task: ForecastTask, windows: int) -> tuple[int, ...]:
    """The first points of the windows, evenly apart, the last of which ends with the series."""
    room = max(task.horizon, min(int(_TESTED * points), points - task.context - 2 * task.horizon))
    apart = max(1, min(task.horizon, (room - task.horizon) // max(1, windows - 1)))
    count = min(windows, 1 + (room - task.horizon) // apart)
    last = points - task.horizon
    return tuple(last - apart * index for index in reversed(range(count)))


def backtest(
    values_T: Floats,
    task: ForecastTask,
    *,
    windows: int = 20,
    methods: Mapping[str, Method] | None = None,
    report: Callable[[str], None] = lambda name: None,
) -> Backtest:
    """Fits every method to the points before the first window, and scores its forecasts of all windows.

    report: is called with the name of each method before it is fitted.
    """
    origins = origins_of(len(values_T), task, windows)
    scores = {}
    for name, method in (all_methods() if methods is None else methods).items():
        report(name)
        scores[name] = _score(method, values_T, task, origins)
    if methods is None and not is_installed():
        scores |= {name: MethodScore(missing="statsforecast is not installed") for name in NAMES}
    return Backtest(task=task, origins=origins, scores=scores)


def _score(method: Method, values_T: Floats, task: ForecastTask, origins: tuple[int, ...]) -> MethodScore:
    began = time.perf_counter()
    history_E = values_T[: origins[0]]
    quantiles_NPQ = method(history_E, task)([values_T[:origin] for origin in origins])
    truth_NP = np.stack([values_T[origin : origin + task.horizon] for origin in origins])
    inside = (quantiles_NPQ[..., 0] <= truth_NP) & (truth_NP <= quantiles_NPQ[..., -1])
    known = ~np.isnan(truth_NP)
    return MethodScore(
        mase=mase(truth_NP, quantiles_NPQ[..., level_index(task.levels)], history_E, task.season),
        crps=crps(truth_NP, quantiles_NPQ, task.levels),
        wql=weighted_quantile_loss(truth_NP, quantiles_NPQ, task.levels),
        covered=float(inside[known].mean()) if known.any() else float("nan"),
        seconds=time.perf_counter() - began,
    )
