"""`exlstm forecast`: a table of methods, a CSV file and a picture, and mistakes that cost a sentence."""

import csv
from datetime import datetime, timedelta

import numpy as np
import pytest

import exlstm
from exlstm.forecast import backtest
from exlstm.forecast.backtest import METHODS
from exlstm.models.forecaster import Forecaster, forecaster_from_pattern


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


def forecasts(path):
    return list(csv.reader(path.read_text().splitlines()))


def test_a_saved_network_forecasts_the_same_without_training(data, run, monkeypatch):
    """Whatever wins the backtest, the network is saved; alone it repeats its forecast to the last digit."""
    monkeypatch.setattr(backtest, "METHODS", {**backtest.METHODS, "xlstm": METHODS["xlstm"]})
    words = ["load.csv", "--horizon", "6", "--column", "load"]
    out = run("forecast", *words, "--method", "xlstm", "--steps", "2", "--windows", "2", "--save", "net")
    assert "xlstm, fitted to all 240 points: net" in out
    first = forecasts(data / "load_forecast.csv")
    out = run("forecast", *words, "--model", "net", "--output", "again.csv", "--plot", "again.png")
    assert "load: 240 points in steps of 1:00:00, season 24, context 72" in out
    assert "Backtest" not in out
    assert "The forecast of xlstm, as it was saved in net: again.csv and again.png" in out
    assert forecasts(data / "again.csv") == first
    assert (data / "again.png").read_bytes().startswith(b"\x89PNG")
    monkeypatch.setattr(backtest, "METHODS", {"drift": METHODS["drift"]})
    out = run("forecast", *words, "--steps", "2", "--windows", "2", "--save", "net", "--overwrite")
    assert "The forecast of drift" in out
    assert forecasts(data / "load_forecast.csv") != first
    run("forecast", *words, "--model", "net", "--output", "again.csv", "--overwrite")
    assert forecasts(data / "again.csv") == first


@pytest.fixture
def folders(data):
    """Folders that --model and --save refuse: a language model, an empty one, and one with other files."""
    config = exlstm.lm_from_pattern("m", vocab_size=3, width=16)
    exlstm.save(exlstm.LM(config), data / "lm")
    exlstm.save(Forecaster(forecaster_from_pattern("s", width=16, heads=2, season=24)), data / "net")
    (data / "empty").mkdir()
    (data / "mine").mkdir()
    (data / "mine" / "thesis.tex").touch()
    return data


@pytest.mark.parametrize(("words", "fragments"), [
    (["--model", "nowhere"], ["there is no nowhere", "name a folder with a model"]),
    (["--model", "empty"], ["empty has no weights"]),
    (["--model", "lm"], ["lm holds a model of kind LM", "exlstm forecast DATA --save FOLDER"]),
    (["--model", "net", "--season", "7"], ["the season is 7, and the saved forecaster was made for 24"]),
    (["--model", "net", "--method", "ridge"], ["--model is for xlstm, and --method is ridge"]),
    (["--model", "net", "--save", "new"], ["--model net is saved already; leave --save out"]),
    (["--save", "net"], ["net holds 'config.json' of a model", "--overwrite"]),
    (["--save", "mine", "--overwrite"], ["mine holds 'thesis.tex', which belongs to no saved model"]),
    (["--save", "new", "--method", "drift"], ["--save is for xlstm, and --method is drift"]),
])  # fmt: skip
def test_folders_that_are_refused(words, fragments, folders, refused):
    error = refused("forecast", "load.csv", "--horizon", "3", "--column", "load", *words)
    assert all(fragment in error for fragment in fragments), error
    assert not (folders / "load_forecast.csv").exists()


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


def hourly(values, step=lambda t: t):
    """A CSV file of hours; step: the hour of row t."""
    return "time,load\n" + "".join(
        f"{datetime(2024, 1, 1) + timedelta(hours=step(t))},{value}\n" for t, value in enumerate(values)
    )


WAVE = [f"{5 + np.sin(2 * np.pi * t / 24):.3f}" for t in range(120)]
BAD = {
    "no value at all": (hourly([""] * 120), ["column 'load' has no number; name another one"]),
    "no value at the end": (hourly([*WAVE[:40], *[""] * 80]), ["no window has a value to compare with"]),
    "infinity": (hourly([*WAVE[:9], "inf", *WAVE[10:]]), ["line 11 of bad.csv has 'inf' in column 'load'"]),
    "a word": (hourly([*WAVE[:9], "closed", *WAVE[10:]]), ["has 'closed' in column 'load'; write a number"]),
    "half an hour": (hourly(WAVE, lambda t: t + 0.5 * (t > 60)), ["not on the grid of steps of 1:00:00", "resample"]),
    "twice": (hourly(WAVE, lambda t: t - (t == 7)), ["2024-01-01 06:00:00 of column 'time' occurs twice; keep one"]),
    "gaps": (hourly(WAVE, lambda t: t * (1 + 9 * (t > 60))), ["have no row; resample the series"]),
    "few points": (hourly(WAVE[:11]), ["a horizon of 6 is too long for 11 points; use at most 2"]),
    "one point": (hourly(WAVE[:1]), ["column 'time' has a single time; give at least two rows"]),
    "no rows": ("time,load\n", ["bad.csv has 1 lines; give a line of names and at least one of numbers"]),
    "no numbers": ("time,load\n2024-01-01,a\n2024-01-02,b\n", ["bad.csv has no column of numbers; give one"]),
    "a column less": ("time,load\n2024-01-01,1\n2024-01-02\n", ["line 3 of bad.csv has 1 values for 2 columns"]),
}  # fmt: skip


@pytest.mark.parametrize(("text", "fragments"), BAD.values(), ids=BAD)
def test_a_bad_table_costs_one_sentence(text, fragments, data, refused):
    """With a remedy, and before anything is written."""
    (data / "bad.csv").write_text(text)
    error = refused("forecast", "bad.csv", "--horizon", "6")
    assert all(fragment in error for fragment in fragments), error
    assert not (data / "bad_forecast.csv").exists()
