"""The backtest: the same windows for all, nothing of them in what methods are fitted to, and baselines by hand."""

import sys
import types

import numpy as np
import pytest
import torch

from exlstm.forecast import networks, statistical
from exlstm.forecast.backtest import METHODS, backtest, origins_of, planned_task
from exlstm.forecast.baselines import drift, ridge, seasonal_naive
from exlstm.forecast.contract import ForecastTask, filled
from exlstm.models.forecaster import LEVELS, Forecaster
from exlstm.models.summary import parameters

SIMPLE = {name: METHODS[name] for name in ("ridge", "seasonal_naive", "drift")}


def wave(points=240, season=12, noise=0.0):
    rng = np.random.default_rng(0)
    t = np.arange(points)
    return 10 + 0.05 * t + np.sin(2 * np.pi * t / season) + noise * rng.standard_normal(points)


def test_methods_see_the_points_before_a_window_alone():
    """Every method is fitted to the same beginning, and each past ends where its window begins."""
    values_T, seen = wave(), []

    def spy(history_T, task):
        seen.append(len(history_T))

        def predict(pasts):
            seen.extend(len(past_T) for past_T in pasts)
            return np.full((len(pasts), task.horizon, len(task.levels)), 10.0)

        return predict

    task = planned_task(240, horizon=6, season=12, context=None, steps=1, seed=0)
    found = backtest(values_T, task, windows=5, methods={"spy": spy})
    assert seen == [found.fitted_to, *found.origins]
    assert len(found.origins) == 5
    assert found.origins[-1] == 240 - 6
    truth = np.concatenate([values_T[origin : origin + 6] for origin in found.origins])
    error = np.abs(truth - 10).mean()
    unit = np.abs(values_T[12 : found.fitted_to] - values_T[: found.fitted_to - 12]).mean()
    score = found.scores["spy"]
    assert score.mase == pytest.approx(error / unit)
    assert score.crps == pytest.approx(error)  # of one value for all quantiles
    assert score.covered == 0
    assert found.best == "spy"


@pytest.mark.parametrize(
    ("points", "horizon", "windows"), [(240, 6, 20), (240, 50, 20), (40, 6, 3), (2000, 24, 20), (30, 2, 1)]
)
def test_windows_are_distinct_and_inside(points, horizon, windows):
    task = planned_task(points, horizon=horizon, season=4, context=None, steps=1, seed=0)
    origins = origins_of(points, task, windows)
    assert 1 <= len(set(origins)) == len(origins) <= windows
    assert max(origins) == points - horizon
    assert min(origins) >= task.context + task.horizon


def test_baselines_by_hand():
    """Without noise the linear map is exact, the season before is one season of trend behind."""
    values_T, task = wave(), ForecastTask(horizon=6, season=12, context=24)
    past_T, after_T = values_T[:-6], values_T[-6:]
    naive = seasonal_naive(past_T, task)([past_T])[0][:, 4]
    np.testing.assert_allclose(naive, past_T[-12:-6])
    line = drift(past_T, task)([past_T])[0][:, 4]
    slope = (past_T[-1] - past_T[0]) / (len(past_T) - 1)
    np.testing.assert_allclose(line, past_T[-1] + slope * np.arange(1, 7))
    best = ridge(past_T, task)([past_T])[0][:, 4]
    assert abs(best - after_T).max() < 0.02 < abs(naive - after_T).min()


def test_quantiles_of_baselines_are_those_of_their_errors():
    """Of a random walk the errors grow with the root of the horizon, and 80 % of them are inside."""
    values_T = np.random.default_rng(1).standard_normal(3000).cumsum()
    task = ForecastTask(horizon=9, context=10)
    quantiles_TQ = seasonal_naive(values_T, task)([values_T])[0]
    widths = quantiles_TQ[:, -1] - quantiles_TQ[:, 0]
    np.testing.assert_allclose(widths, 2 * 1.2816 * np.sqrt(np.arange(1, 10)), rtol=0.15)
    assert (np.diff(quantiles_TQ, axis=1) >= 0).all()
    np.testing.assert_allclose(quantiles_TQ[:, 4], values_T[-1])


def test_missing_values_are_filled_for_baselines_and_left_out_of_scores():
    nan = np.nan
    np.testing.assert_array_equal(filled(np.array([1, 2, 3, nan, 5, nan]), 2), [1, 2, 3, 2, 5, 2])
    np.testing.assert_array_equal(filled(np.array([nan, 2, nan, 4]), 3), [2, 2, 3, 4])
    with pytest.raises(ValueError, match="no number"):
        filled(np.array([nan]), 1)
    values_T = wave(noise=0.1)
    values_T[::7] = nan
    task = planned_task(240, horizon=6, season=12, context=None, steps=1, seed=0)
    for score in backtest(values_T, task, windows=4, methods=SIMPLE).scores.values():
        assert np.isfinite([score.mase, score.crps, score.covered]).all()


@pytest.mark.parametrize(("change", "fragment"), [
    ({"horizon": 60}, "horizon of 60 is too long for 240 points; use at most 57"),
    ({"season": 240}, "season of 240 is not in 240 points"),
    ({"season": 238}, "240 points are too few"),
    ({"context": 230}, "context of 230 is too long for 240 points; use at most 222"),
])  # fmt: skip
def test_tasks_that_do_not_fit_are_refused(change, fragment):
    with pytest.raises(ValueError, match=fragment):
        planned_task(240, **{"horizon": 6, "season": 12, "context": None, "steps": 1, "seed": 0, **change})


def test_networks_have_equal_size():
    config = networks.network_config(ForecastTask(horizon=24, season=24))
    blocks = parameters(Forecaster(config).stack)
    for kind in (torch.nn.LSTM, torch.nn.GRU):
        assert abs(parameters(networks.TorchRNN(kind, config.width, blocks)) / blocks - 1) < 0.03


@pytest.mark.parametrize("name", ["xlstm", pytest.param("lstm", marks=pytest.mark.slow)])
def test_networks_learn_and_are_the_same_by_seed(name):
    """On a wave with noise, half of the error of the season before would be the bound of what can be known."""
    values_T = wave(points=300, noise=0.3)
    values_T[50:54] = np.nan
    task = planned_task(300, horizon=6, season=12, context=None, steps=60, seed=0)
    made = {name: METHODS[name], "seasonal_naive": seasonal_naive}
    found = backtest(values_T, task, windows=8, methods=made)
    assert found.scores[name].mase < 0.95 * found.scores["seasonal_naive"].mase
    assert 0.4 < found.scores[name].covered <= 1
    short = ForecastTask(horizon=6, season=12, context=36, steps=4)
    first, second = (METHODS[name](values_T, short)([values_T]) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    other = METHODS[name](values_T, ForecastTask(horizon=6, season=12, context=36, steps=4, seed=1))([values_T])
    assert abs(other - first).max() > 1e-3


def test_statsforecast_is_asked_where_it_is_installed(monkeypatch):
    """A stand-in with its interface: intervals of a width become quantiles, the mean the median."""
    module = types.ModuleType("statsforecast.models")

    class AutoETS:
        def __init__(self, season_length):
            self.season = season_length

        def forecast(self, y, h, level):
            assert np.isfinite(y).all()
            found = {"mean": np.full(h, 100.0 + self.season)}
            for width in level:
                found |= {f"lo-{width}": np.full(h, 100.0 - width), f"hi-{width}": np.full(h, 100.0 + width)}
            return found

    module.AutoETS = AutoETS
    package = types.ModuleType("statsforecast")
    package.models = module
    monkeypatch.setitem(sys.modules, "statsforecast", package)
    monkeypatch.setitem(sys.modules, "statsforecast.models", module)
    quantiles = statistical.statistical("AutoETS")(wave(), ForecastTask(horizon=3, season=2))([wave(), wave()])
    assert quantiles.shape == (2, 3, len(LEVELS))
    np.testing.assert_array_equal(quantiles[0, 0], [20, 40, 60, 80, 102, 120, 140, 160, 180])


def test_without_statsforecast_its_methods_are_named_as_missing(monkeypatch):
    monkeypatch.setattr("exlstm.forecast.backtest.is_installed", lambda: False)
    monkeypatch.setattr("exlstm.forecast.backtest.METHODS", SIMPLE)
    task = planned_task(240, horizon=6, season=12, context=None, steps=1, seed=0)
    found = backtest(wave(noise=0.1), task, windows=2)
    assert found.scores["AutoETS"].missing == "statsforecast is not installed"
    assert found.best in SIMPLE
