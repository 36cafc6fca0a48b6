"""Forecasters in folders: one that was saved forecasts a series without training."""

from pathlib import Path

from exlstm.forecast.backtest import usual_context
from exlstm.forecast.contract import ForecastTask
from exlstm.models.checkpoints.any_model import load
from exlstm.models.forecaster import Forecaster


def saved_forecaster(folder: str | Path) -> Forecaster:
    """The forecaster in a folder, in evaluation mode. ValueError for none, or another model."""
    model = load(folder)
    if not isinstance(model, Forecaster):
        raise ValueError(
            f"{folder} holds a model of kind {type(model).__name__}, and a forecaster is needed; "
            "make one with: exlstm forecast DATA --save FOLDER."
        )
    return model.eval()


def saved_task(
    model: Forecaster, points: int, *, horizon: int, season: int | None, context: int | None
) -> ForecastTask:
    """The task of a saved forecaster for a series of so many points. ValueError for another season than its own."""
    own = model.config.season
    if season is not None and season != own:
        raise ValueError(f"the season is {season}, and the saved forecaster was made for {own}; leave --season out.")
    wanted = usual_context(own, horizon) if context is None else context
    return ForecastTask(horizon=horizon, season=own, context=min(wanted, points), levels=model.config.levels)
