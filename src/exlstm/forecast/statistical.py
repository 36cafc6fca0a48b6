"""AutoETS and AutoARIMA of the package statsforecast, where it is installed; they are fitted anew to every past.

N pasts  Q quantiles
"""

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np

from exlstm.forecast.contract import Fitted, Floats, ForecastTask, Method, filled

NAMES = ("AutoETS", "AutoARIMA")


def is_installed() -> bool:
    """True if statsforecast is there; it is not imported."""
    return find_spec("statsforecast") is not None


def statistical(name: str) -> Method:
    """The method of this name of statsforecast."""

    def fit(history_T: Floats, task: ForecastTask) -> Fitted:
        import statsforecast.models

        def predict(pasts: Sequence[Floats]) -> Floats:
            made = getattr(statsforecast.models, name)
            return np.stack(
                [_quantiles(made(season_length=task.season), filled(past_T, task.season), task) for past_T in pasts]
            )

        return predict

    return fit


def _quantiles(model: Any, past_T: Floats, task: ForecastTask) -> Floats:
    """[horizon, Q]: ends of intervals, which are normal, and the mean in their middle."""
    widths = sorted({round(100 * abs(2 * level - 1), 6) for level in task.levels} - {0.0})
    found = model.forecast(y=past_T, h=task.horizon, level=[int(w) if w == int(w) else w for w in widths])
    columns = []
    for level in task.levels:
        width = round(100 * abs(2 * level - 1), 6)
        name = (
            "mean" if width == 0 else f"{'lo' if level < 0.5 else 'hi'}-{int(width) if width == int(width) else width}"
        )
        columns.append(np.asarray(found[name], dtype=np.float64))
    return np.stack(columns, axis=-1)
