"""Forecasts without a network: the season before, the drift, and a linear map in closed form.

Each makes points. Quantiles are those of its own errors in the history, step by step of the horizon.

T points  N pasts  L points of a context  P points of a horizon  S points of a season  Q quantiles
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from exlstm.forecast.contract import Fitted, Floats, ForecastTask, filled

_PENALTIES = (0.1, 1.0, 10.0, 100.0, 1000.0)  # of a ridge, in squares of a deviation
_MOST_ORIGINS = 2000  # pasts whose errors are measured


def seasonal_naive(history_T: Floats, task: ForecastTask) -> Fitted:
    """The last season, repeated."""
    return _with_errors(history_T, task, lambda past_T: _repeated(past_T, task))


def drift(history_T: Floats, task: ForecastTask) -> Fitted:
    """The straight line through the first and the last value of the past (Hyndman & Athanasopoulos)."""

    def points(past_T: Floats) -> Floats:
        slope = (past_T[-1] - past_T[0]) / max(1, len(past_T) - 1)
        line_P: Floats = past_T[-1] + slope * np.arange(1, task.horizon + 1)
        return line_P

    return _with_errors(history_T, task, points)


def ridge(history_T: Floats, task: ForecastTask, *, centered: bool = True, relative: bool = True) -> Fitted:
    """A linear map from the context to all steps of the horizon, relative to the last season.

    The penalty is the best of a few on the last fifth of the history.
    For comparisons: without `centered` the context is as it is, and not relative to its last value; without `relative`
    the horizon is relative to the last value alone, or as it is.
    """
    values_T = filled(history_T, task.season)

    def base(context_L: Floats) -> Floats:
        return _repeated(context_L, task) if relative else np.full(task.horizon, context_L[-1] if centered else 0.0)

    windows = sliding_window_view(values_T, task.context + task.horizon)
    contexts, after = windows[:, : task.context], windows[:, task.context :]
    inputs = _inputs(contexts, centered)
    targets = after - np.stack([base(context_L) for context_L in contexts])
    kept = max(1, len(inputs) * 4 // 5)

    def error(penalty: float) -> float:
        fitted = _solved(inputs[:kept], targets[:kept], penalty)
        late = slice(kept, None) if kept < len(inputs) else slice(None)
        return float(np.abs(inputs[late] @ fitted - targets[late]).mean())

    weights = _solved(inputs, targets, min(_PENALTIES, key=error))

    def points(past_T: Floats) -> Floats:
        context_L = past_T[-task.context :]
        missing = task.context - len(context_L)
        row = _inputs(np.pad(context_L, (missing, 0), mode="edge")[None], centered)
        after_P: Floats = base(past_T) + (row @ weights)[0]
        return after_P

    return _with_errors(history_T, task, points)


def _repeated(past_T: Floats, task: ForecastTask) -> Floats:
    """The last season of a past, as often as the horizon needs."""
    last_S = past_T[-task.season :]
    return np.resize(last_S, task.horizon)


def _inputs(contexts: Floats, centered: bool) -> Floats:
    """Contexts relative to their last value and without it, or as they are, and a column of ones."""
    values = contexts[:, :-1] - contexts[:, -1:] if centered else contexts
    return np.concatenate([values, np.ones((len(contexts), 1))], axis=1)


def _solved(inputs: Floats, targets: Floats, penalty: float) -> Floats:
    """Weights of the least squares with a penalty in units of the inputs."""
    size = penalty * float(inputs[:, :-1].var()) + 1e-9
    penalties = np.diag([*([size] * (inputs.shape[1] - 1)), 1e-9])
    found: Floats = np.linalg.solve(inputs.T @ inputs + penalties, inputs.T @ targets).astype(np.float64)
    return found


def _with_errors(history_T: Floats, task: ForecastTask, points: Callable[[Floats], Floats]) -> Fitted:
    """Quantiles of a method of points: its own errors behind earlier pasts, around 0 in the middle."""
    values_T = filled(history_T, task.season)
    first = min(max(task.context, task.season), max(1, len(values_T) - task.horizon))
    every = max(1, (len(values_T) - task.horizon - first) // _MOST_ORIGINS)
    errors = [
        history_T[origin : origin + task.horizon] - points(values_T[:origin])
        for origin in range(first, len(values_T) - task.horizon + 1, every)
    ]
    known = np.array(errors).reshape(-1, task.horizon)
    offsets = np.stack([_quantiles(known[:, step], task.levels) for step in range(task.horizon)])

    def predict(pasts: Sequence[Floats]) -> Floats:
        return np.stack([points(filled(past_T, task.season))[:, None] + offsets for past_T in pasts])

    return predict


def _quantiles(errors: Floats, levels: Sequence[float]) -> Floats:
    """Quantiles of the known errors of one step, moved so that the median is the point itself; 0 without any."""
    known = errors[~np.isnan(errors)]
    if not len(known):
        return np.zeros(len(levels))
    found: Floats = np.quantile(known, levels) - np.median(known)
    return found
