"""Errors of forecasts, and accuracy, as plain functions of arrays in float64.

T steps of a horizon  Q quantiles  D variables
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]


def mase(truth: ArrayLike, forecast: ArrayLike, past: ArrayLike, season: int = 1) -> float:
    """Mean absolute error in units of that of the seasonal naive forecast in the past (Hyndman & Koehler 2006).

    Missing values (NaN) of truth and past do not count. NaN where the past repeats itself exactly, or is too short.
    """
    unit = seasonal_error(past, season)
    error = mean_absolute_error(truth, forecast)
    return error / unit if unit > 0 else math.nan


def seasonal_error(past: ArrayLike, season: int = 1) -> float:
    """The mean of |y_t - y_(t - season)| over the past; NaN where it has no such pair."""
    if season < 1:
        raise ValueError(f"season={season} is no number of steps; use 1 or more.")
    values = np.asarray(past, dtype=np.float64)
    return _mean(np.abs(values[season:] - values[:-season]))


def mean_absolute_error(truth: ArrayLike, forecast: ArrayLike) -> float:
    """The mean of |y - f| where the truth is known."""
    y, f = _pair(truth, forecast)
    return _mean(np.abs(y - f))


def smape(truth: ArrayLike, forecast: ArrayLike) -> float:
    """Symmetric mean absolute percentage error, 0 to 200 (Makridakis 1993); a pair of zeros counts as 0."""
    y, f = _pair(truth, forecast)
    size = np.abs(y) + np.abs(f)
    return _mean(np.where(size == 0, 0, 200 * np.abs(y - f) / np.where(size == 0, 1, size)))


def quantile_losses(truth: ArrayLike, forecast: ArrayLike, levels: Sequence[float]) -> Floats:
    """The pinball loss of every level [Q], mean over the rest. forecast: [..., Q] quantiles of a truth [...]."""
    y, f, tau = np.asarray(truth, dtype=np.float64)[..., None], np.asarray(forecast, dtype=np.float64), _levels(levels)
    if f.shape != (*y.shape[:-1], len(tau)):
        raise ValueError(
            f"forecasts of shape {f.shape} are not {len(tau)} quantiles of a truth of shape {y.shape[:-1]}; "
            "give them in the last axis."
        )
    loss = np.maximum(tau * (y - f), (tau - 1) * (y - f)).reshape(-1, len(tau))
    known = loss[~np.isnan(loss).any(-1)]
    return known.mean(0) if len(known) else np.full(len(tau), math.nan)


def crps(truth: ArrayLike, forecast: ArrayLike, levels: Sequence[float]) -> float:
    """The continuous ranked probability score by its quantiles: twice the mean pinball loss over the levels.

    In units of the truth. With the median alone it is the mean absolute error.
    """
    return float(2 * quantile_losses(truth, forecast, levels).mean())


def weighted_quantile_loss(truth: ArrayLike, forecast: ArrayLike, levels: Sequence[float]) -> float:
    """The `crps` as a share of the mean size of the known truth; NaN for a truth of zeros."""
    size = _mean(np.abs(np.asarray(truth, dtype=np.float64)))
    return crps(truth, forecast, levels) / size if size > 0 else math.nan


def nse(truth: ArrayLike, forecast: ArrayLike) -> float:
    """Efficiency of Nash & Sutcliffe (1970): 1 is no error, 0 that of the mean. NaN for a truth that is constant."""
    y, f = _pair(truth, forecast)
    known = ~np.isnan(y)
    spread = ((y[known] - y[known].mean()) ** 2).sum() if known.any() else 0.0
    return float(1 - ((y - f)[known] ** 2).sum() / spread) if spread > 0 else math.nan


def accuracy(truth: ArrayLike, forecast: ArrayLike) -> float:
    """The share of labels that are right."""
    y, f = np.asarray(truth), np.asarray(forecast)
    if y.shape != f.shape or not y.size:
        raise ValueError(f"labels of shapes {y.shape} and {f.shape} cannot be compared; give one for each.")
    return float((y == f).mean())


def rollout_error(truth_BTD: Floats, forecast_BTD: Floats) -> Floats:
    """The error at every step ahead, [B, T]: the root of the mean square over variables, in deviations of each.

    Deviations are those of the truth over all rows and steps. About sqrt(2) where nothing is known any more.
    """
    if truth_BTD.shape != forecast_BTD.shape or truth_BTD.ndim != 3:
        raise ValueError(
            f"trajectories of shapes {truth_BTD.shape} and {forecast_BTD.shape} cannot be compared; "
            "give both as [rows, steps, variables]."
        )
    deviation_D = truth_BTD.std((0, 1))
    if not (deviation_D > 0).all():
        raise ValueError(f"variable {int(deviation_D.argmin())} of the truth is constant; leave it out.")
    found: Floats = np.sqrt((((forecast_BTD - truth_BTD) / deviation_D) ** 2).mean(-1))
    return found


def valid_time(error_BT: Floats, *, lyapunov_steps: float, limit: float = 0.4) -> Floats:
    """How long each forecast holds, [B], in Lyapunov times: until its error is first above the limit.

    error_BT: of `rollout_error`; an error that is not finite is above every limit. A forecast that holds to its end has
    the whole time.
    """
    if not lyapunov_steps > 0:
        raise ValueError(f"lyapunov_steps={lyapunov_steps} is no number of samples; use one above 0.")
    wrong_BT = ~(error_BT <= limit)
    steps_B = np.where(wrong_BT.any(1), wrong_BT.argmax(1), error_BT.shape[1])
    found: Floats = steps_B / lyapunov_steps
    return found


def _pair(truth: ArrayLike, forecast: ArrayLike) -> tuple[Floats, Floats]:
    y, f = np.asarray(truth, dtype=np.float64), np.asarray(forecast, dtype=np.float64)
    if y.shape != f.shape:
        raise ValueError(f"a truth of shape {y.shape} has no forecast of shape {f.shape}; give one value for each.")
    return y, f


def _levels(levels: Sequence[float]) -> Floats:
    found = np.asarray(levels, dtype=np.float64)
    if not len(found) or not ((found > 0) & (found < 1)).all():
        raise ValueError(f"the levels {tuple(levels)} are no quantiles; use numbers between 0 and 1.")
    return found


def _mean(values: Floats) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else math.nan
