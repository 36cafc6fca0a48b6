"""neuralforecast's LSTM model with nets of exlstm: its own checks, recurrent forecasts with a state, and files."""

import logging

import pytest
import torch

pytest.importorskip("neuralforecast", reason="these run by `make test-integrations`, in an environment of their own")

from neuralforecast import NeuralForecast
from neuralforecast.common._model_checks import _run_model_tests, check_model
from neuralforecast.losses.pytorch import GMM, MAE, DistributionLoss, IQLoss, MQLoss
from neuralforecast.utils import AirPassengersPanel, AirPassengersStatic

import exlstm
from examples.integrations.neuralforecast_xlstm import Blocks, ExLSTM

pytestmark = pytest.mark.slow
QUIET = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
TRAIN = AirPassengersPanel[AirPassengersPanel.ds < AirPassengersPanel.ds.values[-12]]
FUTURE = AirPassengersPanel[AirPassengersPanel.ds >= AirPassengersPanel.ds.values[-12]]


@pytest.fixture(autouse=True)
def no_devices_are_told():
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)


class Recurrent(ExLSTM):
    """A recurrent model, as the checks build a model without options."""

    def __init__(self, h, **options):
        super().__init__(h, recurrent=True, **options)


class WithBlocks(ExLSTM):
    """Residual blocks."""

    def __init__(self, h, **options):
        super().__init__(h, memory="blocks", **options)


class RecurrentBlocks(ExLSTM):
    """Both."""

    def __init__(self, h, **options):
        super().__init__(h, memory="blocks", recurrent=True, **options)


@pytest.mark.parametrize("kind", [ExLSTM, Recurrent, WithBlocks, RecurrentBlocks])
def test_their_check_of_a_model(kind, tmp_path, monkeypatch):
    """Static covariates, two series, longer horizons and cross-validation."""
    monkeypatch.chdir(tmp_path)
    check_model(kind)


LOSSES = {
    "MAE": MAE(),
    "several quantiles": MQLoss(level=[80]),
    "implicit quantiles": IQLoss(),
    "Student's t": DistributionLoss("StudentT"),
    "mixture of Gaussians": GMM(),
}


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("kind", [ExLSTM, Recurrent])
def test_their_losses(kind, loss, tmp_path, monkeypatch):
    """One series and several, with and without covariates.

    `check_model` of neuralforecast 3.3 means to do so, but its series are shorter than its windows, and it passes over
    the errors; with padding at their start they do.
    """
    monkeypatch.chdir(tmp_path)
    steps = {"h": 7, "input_size": 28, "max_steps": 2, "val_check_steps": 2, "start_padding_enabled": True}
    batches = ("batch_size", "valid_batch_size", "windows_batch_size", "inference_windows_batch_size")
    options = steps | dict.fromkeys(batches, 8) | QUIET | {"loss": LOSSES[loss], "valid_loss": None}
    _run_model_tests(kind, options)


def model_of(**options):
    return ExLSTM(12, input_size=24, max_steps=3, encoder_hidden_size=32, **options, **QUIET)


@pytest.mark.parametrize("memory", ["slstm", "mlstm", "lstm", "blocks"])
def test_a_recurrent_forecast_keeps_its_state(memory):
    """The window is read once, and each further month is one step."""
    model = model_of(memory=memory, recurrent=True)
    forecaster = NeuralForecast([model], freq="ME")
    forecaster.fit(TRAIN)
    read = []
    forecaster.models[0].hist_encoder.register_forward_pre_hook(lambda net, given: read.append(given[0].shape[1]))
    forecast = forecaster.predict(h=15)
    assert len(forecast) == 2 * 15
    assert read == [25] + [1] * 14


@pytest.mark.parametrize("memory", ["slstm", "blocks"])
def test_a_forecast_with_a_state_is_one_without(memory):
    """Reading everything so far anew for each month gives the same."""
    model = model_of(memory=memory, recurrent=True).eval()
    x_BTI = torch.randn(3, 30, 1)
    with torch.no_grad():
        whole_BTO, _ = model.hist_encoder(x_BTI)
        state, steps = None, []
        for part in x_BTI.split([25, 1, 1, 1, 1, 1], dim=1):
            y_BTO, state = model.hist_encoder(part, state)
            steps.append(y_BTO)
    torch.testing.assert_close(torch.cat(steps, 1), whole_BTO, rtol=0, atol=1e-5)


@pytest.mark.parametrize("memory", ["slstm", "blocks"])
def test_a_saved_model_forecasts_alike(memory, tmp_path):
    covariates = {"futr_exog_list": ["trend"], "hist_exog_list": ["y_[lag12]"], "stat_exog_list": ["airline1"]}
    model = model_of(memory=memory, loss=MQLoss(level=[80]), **covariates)
    forecaster = NeuralForecast([model], freq="ME")
    forecaster.fit(TRAIN, static_df=AirPassengersStatic)
    forecaster.save(str(tmp_path / "saved"), overwrite=True)
    loaded = NeuralForecast.load(str(tmp_path / "saved"))
    (again,) = loaded.models
    assert type(again) is ExLSTM
    assert isinstance(again.hist_encoder, exlstm.SLSTM if memory == "slstm" else Blocks)
    want = forecaster.predict(futr_df=FUTURE)
    assert want.equals(loaded.predict(futr_df=FUTURE))
