"""Runs of forecasting: equal sizes, scores against the season before, and what the ablations leave out."""

from datetime import datetime, timedelta
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from small_studies import Quiet

from exlstm.data.series import carried
from exlstm.data.series.carried import CARRIED, carried_series
from exlstm.forecast.backtest import backtest, planned_task
from exlstm.forecast.baselines import seasonal_naive
from exlstm.forecast.contract import ForecastTask
from exlstm.forecast.networks import network_config
from exlstm.models.forecaster import forecaster_from_pattern
from exlstm.models.summary import parameters
from exlstm.study.forecasting import (
    BASELINES,
    NETWORKS,
    TASKS,
    BaselineRun,
    ETTRun,
    NetworkRun,
    build_network,
    task_of,
)
from exlstm.study.forecasting.ett import ett_of
from exlstm.study.forecasting.series import waves

SHORT = {"series": "waves", "windows": 2}


@pytest.mark.parametrize("season", [1, 24])
def test_networks_of_a_comparison_have_equal_parameters(season):
    config = network_config(ForecastTask(horizon=24, season=season))
    sizes = {name: parameters(build_network(name, config).stack) for name in NETWORKS}
    assert sizes.pop("no memory") == 0
    assert max(sizes.values()) < 1.06 * min(sizes.values()), sizes


def test_a_row_is_what_the_backtest_gives():
    """The naive forecast is the unit of the score; others are scored on the same windows."""
    naive = BaselineRun(model="seasonal naive", **SHORT).execute(Quiet())
    linear = BaselineRun(model="linear map", series="waves", windows=2, seed=3).execute(Quiet())
    (one,), (other,) = naive["metrics"]["tests"], linear["metrics"]["tests"]
    task = planned_task(1500, horizon=24, season=24, context=None, steps=1, seed=0)
    score = backtest(waves(1500), task, windows=2, methods={"n": seasonal_naive}).scores["n"]
    assert (one["score"], one["at_chance"]) == (0, False)
    assert (one["mase"], one["crps"], one["wql"]) == (score.mase, score.crps, score.wql)
    assert other["score"] == pytest.approx(1 - other["crps"] / one["crps"])
    assert 0 < other["score"] < 1
    assert one["asked"] == other["asked"] == 48
    assert len(naive["last"]["past"]) == 72
    assert [len(naive["last"][name]) for name in ("low", "middle", "high", "truth")] == [24] * 4
    np.testing.assert_allclose(naive["last"]["truth"], waves(1500)[-24:], rtol=1e-4)
    np.testing.assert_allclose(naive["last"]["middle"], waves(1500)[-48:-24], rtol=1e-4)
    assert "truth" not in linear["last"]


def test_a_network_is_chosen_by_windows_that_are_not_of_the_test():
    """Its validation is the loss on windows of the history; numbers of the test are not in it."""
    run = NetworkRun(model="gru", lr=5e-3, steps=3, **SHORT)
    row, again = run.execute(Quiet()), run.execute(Quiet())
    assert row["metrics"] == again["metrics"]
    assert row["parameters"] > 10_000
    assert -1 < row["metrics"]["validation"] < 0
    made, changed = {}, {}
    values_T = waves(1500)
    task = planned_task(1500, horizon=24, season=24, context=None, steps=3, seed=0)
    run.fitted(made, values_T[:1200], task)
    run.fitted(changed, np.concatenate([values_T[:1199], [50.0]]), task)
    assert made["loss"] != changed["loss"]


def test_without_instance_norm_points_are_in_units_of_the_history():
    """Forecasts follow the units of the whole series, and a context of another level has another shape."""
    run = NetworkRun(model="no memory", lr=5e-3, steps=2, instance_norm=False, relative=False, **SHORT)
    assert run.facets() == {"model": "no memory", "task": "waves", "without": "instance norm and season"}
    values_T, task = waves(300), ForecastTask(horizon=12, season=24, context=72, steps=2)

    def forecast(history_T, past_T, run=run):
        return run.fitted({}, history_T, task)([past_T])[0]

    want = forecast(values_T, values_T)
    np.testing.assert_allclose(forecast(100 * values_T - 7, 100 * values_T - 7), 100 * want - 7, rtol=1e-3)
    moved = forecast(values_T, values_T + 5)
    assert np.ptp(moved - want) > 0.01
    usual = NetworkRun(model="no memory", lr=5e-3, steps=2, **SHORT)
    np.testing.assert_allclose(
        forecast(values_T, values_T + 5, usual), forecast(values_T, values_T, usual) + 5, rtol=1e-5
    )


def test_linear_maps_without_centering_or_season():
    """A centered one follows a shift of the past; one that is not sees the level as any other number."""
    values_T, task = waves(400), ForecastTask(horizon=12, season=24, context=48)
    base = {}
    for name in ("linear map", "linear map, not centered", "linear map, no season", "linear map, neither"):
        predict = BASELINES[name](values_T, task)
        here, there = predict([values_T])[0][:, 4], predict([values_T + 3])[0][:, 4]
        base[name] = here
        follows = np.allclose(there - here, 3)
        assert follows == (name in ("linear map", "linear map, no season")), name
        assert abs(here - 10).max() < 3
    assert len({round(float(x.sum()), 9) for x in base.values()}) == 4


def test_series_are_found_in_folders_and_else_named(tmp_path, monkeypatch):
    """The column and its missing values; without the file one sentence with a remedy."""
    found = CARRIED["co2"]
    file = tmp_path / found.package / found.file
    file.parent.mkdir(parents=True)
    file.write_text("date,co2\n19580329,316.1\n19580405,\n19580412,317.6\n")
    np.testing.assert_array_equal(carried_series("co2", [tmp_path]), [316.1, np.nan, 317.6])
    monkeypatch.setattr(carried, "find_spec", lambda name: None)
    with pytest.raises(
        ValueError, match=r"no statsmodels/datasets/nile/nile.csv in .*; pip install statsmodels, or unz"
    ):
        carried_series("nile", [tmp_path])
    with pytest.raises(ValueError, match="no series 'nil'; use one of airline"):
        carried_series("nil")


@pytest.mark.parametrize("name", TASKS)
def test_series_that_are_installed_have_their_numbers(name):
    """Length, ends, and room for the windows. Skipped where the package is not installed."""
    expected = {
        "waves": (1500, 0, None), "airline": (144, 0, (112, 432)), "lynx": (114, 0, (269, 3396)),
        "nile": (100, 0, (1120, 740)), "sunspots": (309, 0, (5, 2.9)), "gdp": (203, 0, (2710.349, 12990.341)),
        "unemployment": (203, 0, (5.8, 9.6)), "co2": (2284, 59, (316.1, 371.5)), "equipment": (257, 0, None),
        "seatbelts": (192, 0, None), "seattle_days": (1461, 0, (12.8, 5.6)), "seattle_hours": (8759, 0, (39.4, 39.6)),
    }  # fmt: skip
    if name in CARRIED and find_spec(CARRIED[name].package) is None:
        pytest.skip(f"{CARRIED[name].package} is not installed")
    values_T = task_of(name).values()
    points, missing, ends = expected[name]
    assert (len(values_T), int(np.isnan(values_T).sum())) == (points, missing)
    assert ends is None or (values_T[0], values_T[-1]) == ends
    planned_task(points, horizon=TASKS[name].horizon, season=TASKS[name].season, context=None, steps=1, seed=0)


def test_ett_files_are_asked_for_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"no file data/ETTh1.csv; put ETTh1.csv of ETDataset there"):
        ETTRun(model="no memory", series="ETTh1", lr=1e-3, steps=1).execute(Quiet())


@pytest.mark.slow
def test_a_run_on_a_file_of_the_form_of_ett(tmp_path, monkeypatch):
    """Two channels with a day in them: errors of the test are those of all its windows, and a day is learned."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    start, random = datetime(2016, 7, 1), np.random.default_rng(0)
    day_T = np.sin(2 * np.pi * np.arange(14_400) / 24)
    a_T, b_T = (scale * day_T + 0.3 * random.standard_normal(14_400) for scale in (1, -3))
    lines = [f"{start + timedelta(hours=t)},{a_T[t]:.4f},{b_T[t]:.4f}" for t in range(14_400)]
    (tmp_path / "data" / "ETTh2.csv").write_text("\n".join(["date,a,b", *lines]))
    run = ETTRun(model="no memory", series="ETTh2", lr=3e-3, steps=64, context=96, horizon=24)
    row = run.execute(Quiet())
    (test,) = row["metrics"]["tests"]
    data = ett_of("ETTh2")
    context, after = data.windows("test", context=96, horizon=24)
    naive = float(np.square(after - context[:, -24:]).mean())
    assert 0 < test["mse"] < 0.9 * naive
    assert 0 < test["mae"] ** 2 < test["mse"] == 1 - test["score"]
    flat = build_network("no memory", forecaster_from_pattern("ms", width=64, heads=4, patch=16, season=24))
    for part in (flat.head.down, flat.head.through):
        for weight in part.parameters():
            torch.nn.init.zeros_(weight)
    squared, absolute = run.errors(flat, data, "test")  # without a head the season before is left
    assert squared == pytest.approx(naive, rel=1e-4)
    assert absolute == pytest.approx(float(np.abs(after - context[:, -24:]).mean()), rel=1e-4)


@pytest.mark.parametrize(("made", "message"), [
    (lambda: ETTRun(model="lstm", series="ETTm1", lr=1.0), "no file 'ETTm1' or no network 'lstm'; use one of ETTh1"),
    (lambda: NetworkRun(model="lstn", series="waves", lr=1.0), "no network 'lstn'; use one of xlstm"),
    (lambda: NetworkRun(model="lstm", series="wave", lr=1.0), "no series 'wave'; use one of waves"),
    (lambda: BaselineRun(model="naive", series="waves"), "no method 'naive'; use one of seasonal naive"),
    (lambda: build_network("lstn", network_config(ForecastTask(horizon=3))), "no network 'lstn'"),
])  # fmt: skip
def test_unknown_names_are_refused(made, message):
    with pytest.raises(ValueError, match=message):
        made()
