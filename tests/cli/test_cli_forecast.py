"""`exlstm forecast`: a table of methods, a CSV file and a picture, and mistakes that cost a sentence."""

import csv
from datetime import datetime, timedelta

import numpy as np
import pytest

from exlstm.forecast import backtest
from exlstm.forecast.backtest import METHODS


@pytest.fixture
def data(tmp_path, monkeypatch):
    """Hours of a wave with noise, in a folder that is the current one; networks are left out."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        backtest, "METHODS", {name: method for name, method in METHODS.items() if name not in ("xlstm", "lstm")}
    )
    monkeypatch.setattr(backtest, "is_installed", lambda: False)
    rng = np.random.default_rng(0)
    rows = [
        (datetime(2024, 1, 1) + timedelta(hours=t), 5 + np.sin(2 * np.pi * t / 24) + 0.1 * rng.standard_normal(), t)
        for t in range(240)
    ]
    rows[7], rows[8] = rows[8], rows[7]
    lines = [f"{time},{'' if t == 30 else value},{t}\n" for time, value, t in rows]
    (tmp_path / "load.csv").write_text("date,load,hour\n" + "".join(lines))
    return tmp_path


def test_a_forecast_is_written(data, run):
    out = run("forecast", "load.csv", "--horizon", "12", "--column", "load", "--plot", "load.png")
    assert "load: 240 points in steps of 1:00:00, season 24, context 72" in out
    assert "rows were not in the order of date, and are sorted" in out
    assert "1 of 240 values are missing" in out
    assert "windows of 12 steps behind" in out
    table = {line.split()[0]: line.split()[1:] for line in out.splitlines() if line and line.split()[0] in METHODS}
    assert set(table) == {"ridge", "seasonal_naive", "drift"}
    assert float(table["seasonal_naive"][0]) < float(table["drift"][0])
    assert "AutoETS: not run, statsforecast is not installed" in out
    assert (data / "load.png").read_bytes().startswith(b"\x89PNG")
    rows = list(csv.reader((data / "load_forecast.csv").read_text().splitlines()))
    assert rows[0] == ["time", "load", *(f"q{level}" for level in range(10, 100, 10))]
    assert [rows[1][0], rows[-1][0], len(rows)] == ["2024-01-11 00:00:00", "2024-01-11 11:00:00", 13]
    want = 5 + np.sin(2 * np.pi * np.arange(240, 252) / 24)
    assert abs(np.array([float(row[1]) for row in rows[1:]]) - want).max() < 0.4


def test_a_method_can_be_chosen(data, run):
    out = run("forecast", "load.csv", "--horizon", "3", "--column", "hour", "--season", "1", "--method", "drift")
    assert "The forecast of drift" in out
    rows = list(csv.reader((data / "load_forecast.csv").read_text().splitlines()))
    np.testing.assert_allclose([float(row[1]) for row in rows[1:]], [240, 241, 242])


@pytest.mark.parametrize(("words", "fragments"), [
    (["load.csv"], ["horizon is missing"]),
    (["nowhere.csv", "--horizon", "3"], ["no file 'nowhere.csv'"]),
    (["load.csv", "--horizon", "0"], ["--horizon is 0"]),
    (["load.csv", "--horizon", "3"], ["2 columns of numbers (load, hour)"]),
    (["load.csv", "--horizon", "3", "--column", "lod"], ["no column of numbers 'lod'; there are load, hour"]),
    (["load.csv", "--horizon", "99", "--column", "load"], ["horizon of 99 is too long for 240 points"]),
    (["load.csv", "--horizon", "3", "--season", "0"], ["--season is 0"]),
    (["load.csv", "--horizon", "3", "--column", "load", "--method", "ridg"], ["perhaps you mean ridge"]),
    (["load.csv", "--horizon", "3", "--column", "load", "--output", "load.csv"], ["load.csv is what is read"]),
    (["load.csv", "--horizon", "3", "--column", "load", "--plot", "no/a.png"], ["no folder no"]),
    (["load.csv", "--horizon", "3", "--column", "load", "--output", "there.csv"], ["there.csv exists", "--overwrite"]),
])  # fmt: skip
def test_mistakes_cost_one_sentence(words, fragments, data, refused):
    (data / "there.csv").touch()
    error = refused("forecast", *words)
    assert all(fragment in error for fragment in fragments), error
