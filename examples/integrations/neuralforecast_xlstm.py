"""neuralforecast: its LSTM model with the memory of exlstm, on the monthly passengers of two airlines.

    python examples/integrations/neuralforecast_xlstm.py [steps]

Covariates, losses, probabilistic forecasts, direct and recurrent ones are those of neuralforecast. A recurrent forecast
keeps the state, so each further month costs one step.

B rows  T time  I input width  O output width
"""

import sys
from typing import Any

from neuralforecast import NeuralForecast
from neuralforecast.core import MODEL_FILENAME_DICT
from neuralforecast.losses.pytorch import MAE
from neuralforecast.models import LSTM
from neuralforecast.utils import AirPassengersPanel
from torch import Tensor, nn

import exlstm

MONTHS = 12


class Blocks(nn.Module):
    """Residual blocks and a linear map, with the call of a recurrent net."""

    def __init__(self, lstm: nn.LSTM) -> None:
        super().__init__()
        self.encoder = exlstm.XLSTM(lstm.input_size, lstm.hidden_size, lstm.num_layers, dropout=lstm.dropout)
        self.out = nn.Linear(lstm.hidden_size, lstm.proj_size or lstm.hidden_size)

    def forward(self, x_BTI: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """[B, T, I] -> [B, T, O], and the state after the last step."""
        y_BTD, state = self.encoder(x_BTI, state)
        return self.out(y_BTD), state


class ExLSTM(LSTM):
    """neuralforecast's LSTM, whose options it has, with a net of exlstm in the place of torch's.

    memory: "slstm", "mlstm" or "lstm", as of `exlstm.replace_lstm`, or "blocks", the residual blocks of `exlstm.XLSTM`.
    """

    def __init__(self, h: int, *, memory: str = "slstm", **options: Any) -> None:
        super().__init__(h, **options)
        if memory == "blocks":
            self.hist_encoder = Blocks(self.hist_encoder)
        else:
            exlstm.replace_lstm(self, memory)


# by its own name NeuralForecast.load finds the class; by that of its base it would make an LSTM
MODEL_FILENAME_DICT["exlstm"] = ExLSTM


def main() -> None:
    steps = int(sys.argv[1]) if len(sys.argv) > 1 else 500
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    options: dict[str, Any] = {"h": MONTHS, "input_size": 3 * MONTHS, "max_steps": steps, "loss": MAE(), **quiet}
    models = [
        ExLSTM(alias="sLSTM", **options),
        ExLSTM(alias="blocks", memory="blocks", **options),
        ExLSTM(alias="recurrent", recurrent=True, h_train=MONTHS, **options),
        LSTM(alias="LSTM", **options),
    ]
    found = NeuralForecast(models, freq="ME").cross_validation(AirPassengersPanel, n_windows=2, step_size=MONTHS)
    for model in models:
        print(f"{model.alias:10} mean absolute error {(found[model.alias] - found.y).abs().mean():.1f} passengers")


if __name__ == "__main__":
    main()
