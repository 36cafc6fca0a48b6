"""BlockRNNModel and RNNModel of darts with nets of exlstm: forecasts, files, covariates, and a state that is kept."""

import pytest

pytest.importorskip("darts", reason="these run by `make test-integrations`, in an environment of their own")

import numpy as np
from darts.dataprocessing.transformers import Scaler
from darts.models import BlockRNNModel, RNNModel
from darts.utils.likelihood_models.torch import QuantileRegression
from darts.utils.timeseries_generation import datetime_attribute_timeseries

import exlstm
from examples.integrations.darts_xlstm import MONTHS, BlockModule, RecurrentModule, models, passengers

pytestmark = pytest.mark.slow
BOTH = pytest.mark.parametrize("name", ["block", "recurrent"])


@pytest.fixture
def series():
    return Scaler().fit_transform(passengers())


def net_of(model):
    return model.model.rnn


@BOTH
def test_forecasts_of_the_passengers(name, series, tmp_path, monkeypatch):
    """fit, predict beyond the block, historical forecasts without training anew, save and load."""
    monkeypatch.chdir(tmp_path)
    model = models(30)[name]
    model.fit(series[:-MONTHS])
    assert type(net_of(model)) is exlstm.SLSTM
    forecast = model.predict(2 * MONTHS)
    assert (len(forecast), forecast.start_time()) == (2 * MONTHS, series[-MONTHS:].start_time())
    past = model.historical_forecasts(series, start=0.7, forecast_horizon=3, stride=2, retrain=False)
    assert len(past) > 15
    # a year ahead it is better than the mean of the training
    error = np.abs((series[-MONTHS:] - forecast[:MONTHS]).values()).mean()
    assert error < np.abs(series[-MONTHS:].values() - series[:-MONTHS].values().mean()).mean()
    model.save(str(tmp_path / "model.pt"))
    # darts reads classes that are not its own only where a file is trusted
    loaded = type(model).load(str(tmp_path / "model.pt"), trusted=True)
    assert type(net_of(loaded)) is exlstm.SLSTM
    assert loaded.predict(MONTHS, series=series) == model.predict(MONTHS, series=series)


def test_a_recurrent_forecast_keeps_its_state(series):
    """The window is read once, and each further month is one step."""
    model, read = models(1)["recurrent"], []
    model.fit(series)
    net_of(model).register_forward_pre_hook(lambda net, given: read.append(given[0].shape[1]))
    model.predict(5)
    assert read == [2 * MONTHS, 1, 1, 1, 1]


@pytest.mark.parametrize("memory", ["slstm", "mlstm", "lstm"])
@BOTH
def test_covariates_and_quantiles(name, memory, series, monkeypatch):
    """Months as covariates, and samples of a forecast with quantiles."""
    monkeypatch.setattr(BlockModule, "memory", memory)
    monkeypatch.setattr(RecurrentModule, "memory", memory)
    months = datetime_attribute_timeseries(series, "month", cyclic=True, add_length=MONTHS, dtype=np.float32)
    quiet = {"accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    options = {
        "likelihood": QuantileRegression([0.1, 0.5, 0.9]),
        "n_epochs": 2,
        "n_rnn_layers": 2,
        "dropout": 0.1,
        "pl_trainer_kwargs": quiet,
        "input_chunk_length": 2 * MONTHS,
    }
    model = {
        "block": lambda: BlockRNNModel(model=BlockModule, output_chunk_length=MONTHS, **options),
        "recurrent": lambda: RNNModel(model=RecurrentModule, training_length=3 * MONTHS, **options),
    }[name]()
    model.fit(series, future_covariates=months)
    assert type(net_of(model)) is {"slstm": exlstm.SLSTM, "mlstm": exlstm.MLSTM, "lstm": exlstm.LSTM}[memory]
    forecast = model.predict(MONTHS, num_samples=20, future_covariates=months)
    assert forecast.n_samples == 20
    assert np.isfinite(forecast.all_values()).all()
