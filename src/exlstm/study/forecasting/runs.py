"""Runs of studies of forecasting: a network that learns from windows of a series, and methods without a network.

All are fitted to the points before the first window of the test, and forecast the same windows. A score is the share of
the seasonal naive forecast's CRPS that a method saves: 0 is no better than the season before, 1 is without error.
All compute on the CPU, whatever the machine has: the networks are too small for a GPU.

T points  N windows  P points of a horizon  Q quantiles
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from types import MappingProxyType
from typing import Any

import numpy as np
import torch

from exlstm.forecast.backtest import backtest, planned_task
from exlstm.forecast.baselines import drift, ridge, seasonal_naive
from exlstm.forecast.contract import Fitted, Floats, ForecastTask, Method
from exlstm.forecast.networks import forecasts_of, network_config, train
from exlstm.forecast.statistical import NAMES, statistical
from exlstm.models.forecaster import level_index
from exlstm.models.summary import parameters
from exlstm.study.forecasting.networks import NETWORKS, build_network
from exlstm.study.forecasting.series import task_of
from exlstm.study.pool import ProgressReporter

NAIVE = "seasonal naive"
BASELINES: Mapping[str, Method] = MappingProxyType(
    {
        NAIVE: seasonal_naive,
        "drift": drift,
        "linear map": ridge,
        "linear map, not centered": partial(ridge, centered=False),
        "linear map, no season": partial(ridge, relative=False),
        "linear map, neither": partial(ridge, centered=False, relative=False),
        **{name: statistical(name) for name in NAMES},
    }
)
_SHOWN = 3  # horizons of the past that are kept for pictures


@dataclass(frozen=True, kw_only=True)
class NetworkRun:
    """A network that learns a series: all that the result depends on.

    model: a name in NETWORKS. series: a name in TASKS. windows: of the test, at the end of the series.
    instance_norm, relative: see `ForecasterConfig`; without the first, points are in units of the whole history.
    seed: of initial weights and of the order of training.
    """

    model: str
    series: str
    lr: float
    steps: int = 300
    windows: int = 20
    instance_norm: bool = True
    relative: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        task_of(self.series)
        if self.model not in NETWORKS:
            raise ValueError(f"there is no network {self.model!r}; use one of {', '.join(NETWORKS)}.")

    def facets(self) -> dict[str, str]:
        """Names and values for tables and `--only`."""
        without = [
            *(["instance norm"] if not self.instance_norm else []),
            *(["season"] if not self.relative else []),
        ]
        return {"model": self.model, "task": self.series, "without": " and ".join(without) or "nothing"}

    def execute(self, report: ProgressReporter) -> dict[str, Any]:
        """Trains and tests. ValueError for weights that are not finite."""
        made: dict[str, Any] = {}
        outcome = outcome_of(self.model, self.series, partial(self.fitted, made), self.windows, self.steps, self.seed)
        outcome["metrics"]["validation"] = -made["loss"]
        return {**outcome, "parameters": made["parameters"]}

    def fitted(self, made: dict[str, Any], history_T: Floats, task: ForecastTask) -> Fitted:
        """The method of this run. made: takes its parameters, and its loss on windows that are kept from training."""
        mean, deviation = (0.0, 1.0) if self.instance_norm else (np.nanmean(history_T), np.nanstd(history_T))
        torch.manual_seed(task.seed)
        config = replace(network_config(task), instance_norm=self.instance_norm, relative=self.relative)
        model = build_network(self.model, config)
        made["parameters"] = parameters(model)
        made["loss"] = train(model, (history_T - mean) / deviation, task, lr=self.lr)
        predict = forecasts_of(model.eval(), task)
        return lambda pasts: predict([(past_T - mean) / deviation for past_T in pasts]) * deviation + mean


@dataclass(frozen=True, kw_only=True)
class BaselineRun:
    """A method without a network, by its name in BASELINES. It is the same for every seed."""

    model: str
    series: str
    windows: int = 20
    seed: int = 0

    def __post_init__(self) -> None:
        task_of(self.series)
        if self.model not in BASELINES:
            raise ValueError(f"there is no method {self.model!r}; use one of {', '.join(BASELINES)}.")

    def facets(self) -> dict[str, str]:
        """Names and values for tables and `--only`."""
        return {"model": self.model, "task": self.series, "without": "nothing"}

    def execute(self, report: ProgressReporter) -> dict[str, Any]:
        """Fits and tests."""
        return {**_without_seed(self.model, self.series, self.windows), "parameters": 0}


@lru_cache(maxsize=256)  # its seeds are one and the same
def _without_seed(model: str, series: str, windows: int) -> dict[str, Any]:
    return outcome_of(model, series, BASELINES[model], windows)


def outcome_of(model: str, series: str, method: Method, windows: int, steps: int = 1, seed: int = 0) -> dict[str, Any]:
    """The row of a method: its test, and its last window for pictures."""
    task = task_of(series)
    values_T = task.values()
    asked = planned_task(len(values_T), horizon=task.horizon, season=task.season, context=None, steps=steps, seed=seed)
    began, kept = time.perf_counter(), list[Fitted]()

    def keeping(history_T: Floats, task: ForecastTask) -> Fitted:
        kept.append(method(history_T, task))
        return kept[0]

    found = backtest(values_T, asked, windows=windows, methods={model: keeping})
    score, naive = found.scores[model], None if model == NAIVE else _without_seed(NAIVE, series, windows)
    least = score.crps if naive is None else naive["metrics"]["tests"][0]["crps"]
    truth_NP = np.stack([values_T[origin : origin + asked.horizon] for origin in found.origins])
    test = {
        "task": series,
        "score": 1 - score.crps / least,
        "mase": score.mase,
        "crps": score.crps,
        "wql": score.wql,
        "covered": score.covered,
        "at_chance": naive is not None and score.crps >= least,
        "asked": int(np.isfinite(truth_NP).sum()),
    }
    return {
        "seconds": round(time.perf_counter() - began, 3),
        "points": len(values_T),
        "metrics": {"tests": [test]},
        "last": last_window(values_T, kept[0], asked, with_truth=model == NAIVE),
    }


def last_window(values_T: Floats, fitted: Fitted, task: ForecastTask, *, with_truth: bool) -> dict[str, list[float]]:
    """The forecast of the last window: its median, and the ends of its band; with_truth: and what came."""
    past_T, truth_P = values_T[: -task.horizon], values_T[-task.horizon :]
    quantiles_PQ = fitted([past_T])[0]
    columns = {"low": 0, "middle": level_index(task.levels), "high": -1}
    shown = {name: quantiles_PQ[:, column] for name, column in columns.items()}
    if with_truth:
        shown |= {"past": past_T[-max(task.season, _SHOWN * task.horizon) :], "truth": truth_P}
    return {name: [float(f"{value:.5g}") for value in values] for name, values in shown.items()}
