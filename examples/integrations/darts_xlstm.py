"""darts: BlockRNNModel and RNNModel with the memory of exlstm, on the monthly passengers of an airline.

    python examples/integrations/darts_xlstm.py [epochs]

A block model reads a window and puts out a year at once. A recurrent model puts out a month, reads it, and keeps its
state: each further month costs one step.
"""

import sys
from typing import Any

from darts import TimeSeries
from darts.dataprocessing.transformers import Scaler
from darts.metrics import mape
from darts.models import BlockRNNModel, RNNModel
from darts.models.forecasting.block_rnn_model import _BlockRNNModule
from darts.models.forecasting.rnn_model import _RNNModule
from neuralforecast.utils import AirPassengersDF

import exlstm

MONTHS = 12


class BlockModule(_BlockRNNModule):
    """The module of BlockRNNModel with an sLSTM in the place of its LSTM. memory: as of `exlstm.replace_lstm`."""

    memory = "slstm"

    def __init__(self, name: str = "LSTM", **options: Any) -> None:
        super().__init__(name=name, **options)
        exlstm.replace_lstm(self, self.memory)


class RecurrentModule(_RNNModule):
    """The module of RNNModel with an sLSTM in the place of its LSTM. memory: as of `exlstm.replace_lstm`."""

    memory = "slstm"

    def __init__(self, name: str = "LSTM", **options: Any) -> None:
        super().__init__(name=name, **options)
        exlstm.replace_lstm(self, self.memory)


def passengers() -> TimeSeries:
    """The series that darts would download, which neuralforecast has in its code."""
    return TimeSeries.from_dataframe(AirPassengersDF, time_col="ds", value_cols="y", freq="ME").astype("float32")


def models(epochs: int) -> dict[str, Any]:
    """A block model and a recurrent one by name."""
    quiet = {"accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    options: dict[str, Any] = {"hidden_dim": 32, "n_epochs": epochs, "random_state": 0, "pl_trainer_kwargs": quiet}
    options |= {"input_chunk_length": 2 * MONTHS, "optimizer_kwargs": {"lr": 3e-3}}
    return {
        "block": BlockRNNModel(model=BlockModule, output_chunk_length=MONTHS, **options),
        "recurrent": RNNModel(model=RecurrentModule, training_length=3 * MONTHS, **options),
    }


def main() -> None:
    epochs = int(sys.argv[1]) if len(sys.argv) > 1 else 100
    series = passengers()
    known, future = series[:-MONTHS], series[-MONTHS:]
    scaler = Scaler()
    scaled = scaler.fit_transform(known)
    for name, model in models(epochs).items():
        model.fit(scaled)
        forecast = scaler.inverse_transform(model.predict(MONTHS, series=scaled))
        print(f"{name:10} the last year is forecast with a mean error of {mape(future, forecast):.1f} %")


if __name__ == "__main__":
    main()
