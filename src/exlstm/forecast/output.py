"""What a forecast is written as: a CSV file, and a picture with bands of quantiles.

T points  Q quantiles
"""

import csv
import io
from datetime import datetime
from typing import Any

import numpy as np

from exlstm.forecast.contract import Floats, ForecastTask
from exlstm.forecast.history import SeriesHistory
from exlstm.models.forecaster import level_index

_SHOWN = 5  # horizons of the past in the picture, or three seasons
_COLOR, _PAST = "#0072b2", "#4d4d4d"


def forecast_csv(history: SeriesHistory, quantiles_TQ: Floats, task: ForecastTask) -> str:
    """A row per step: its time, the median, and every quantile."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["time" if history.start is not None else "step", history.name, *map(_level, task.levels)])
    middle = level_index(task.levels)
    for index, row in enumerate(quantiles_TQ):
        time = history.time(len(history.values_T) + index)
        name = time.isoformat(sep=" ") if isinstance(time, datetime) else time
        writer.writerow([name, f"{row[middle]:.7g}", *(f"{value:.7g}" for value in row)])
    return out.getvalue()


def _level(level: float) -> str:
    return f"q{100 * level:g}"


def forecast_png(history: SeriesHistory, quantiles_TQ: Floats, task: ForecastTask, method: str) -> bytes:
    """The end of the series, the median behind it, and a band for each pair of quantiles."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    axes: Any = figure.add_subplot()
    points = len(history.values_T)
    shown = min(points, max(_SHOWN * task.horizon, 3 * task.season, 30))
    past = range(points - shown, points)
    future = range(points, points + len(quantiles_TQ))
    axes.plot([history.time(i) for i in past], history.values_T[-shown:], color=_PAST, lw=1.2, label=history.name)
    after = [history.time(i) for i in future]
    levels, middle = task.levels, level_index(task.levels)
    for low in range(len(levels) // 2):
        high = len(levels) - 1 - low
        outer = low == 0
        axes.fill_between(
            after,
            quantiles_TQ[:, low],
            quantiles_TQ[:, high],
            color=_COLOR,
            alpha=0.15,
            lw=0,
            label=f"{100 * (levels[high] - levels[low]):g} % band" if outer else None,
        )
    axes.plot(after, quantiles_TQ[:, middle], color=_COLOR, lw=1.8, label=f"median of {method.replace('_', ' ')}")
    axes.axvline(after[0], color="#9ca3af", lw=0.8, ls=":")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e5e7eb", lw=0.6)
    axes.legend(frameon=False, loc="upper left", ncols=3, fontsize=9)
    both = np.concatenate([history.values_T[-shown:], quantiles_TQ.ravel()])
    least, most = float(np.nanmin(both)), float(np.nanmax(both))
    room = (most - least) or 1.0
    axes.set_ylim(least - 0.05 * room, most + 0.18 * room)
    if history.start is not None:
        figure.autofmt_xdate(rotation=0, ha="center")
    else:
        axes.set_xlabel("row")
    target = io.BytesIO()
    figure.savefig(target, format="png", metadata={"Software": None})
    return target.getvalue()
