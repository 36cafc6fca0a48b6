"""loss.png: bits per byte in training, on the validation slice, and of the yardsticks."""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exlstm.data.baselines import Baselines
from exlstm.train.run_folder.summary import baseline_rows

_TRAIN, _VALIDATION, _GREY = "#2f6db3", "#d1570c", "#6b7280"


def loss_picture(records: Sequence[dict[str, Any]], found: Baselines | None, title: str) -> bytes:
    """The curves of metrics.jsonl as a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5), dpi=160, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    train = _curve(records, "bits_per_byte")
    validation = _curve(records, "validation_bits_per_byte")
    unit, unit_name = _unit(train[0].max(initial=0))
    smooth = _smoothed(train[1])
    axes.plot(train[0] / unit, train[1], color=_TRAIN, alpha=0.2, linewidth=0.8)
    axes.plot(train[0] / unit, smooth, color=_TRAIN, linewidth=2, label="training (smoothed)")
    if len(validation[0]):
        label = f"validation ({validation[1][-1]:.2f} at the end)"
        axes.plot(
            validation[0] / unit, validation[1], "o-", color=_VALIDATION, linewidth=1.5, markersize=5, label=label
        )
    rows = [] if found is None else baseline_rows(found)
    _limits(axes, [*smooth[len(smooth) // 50 :], *validation[1], *(value for _, value in rows)])
    _baseline_lines(axes, rows)
    axes.set_xlim(left=0)
    axes.set_xlabel(f"training tokens{unit_name}")
    axes.set_ylabel("bits per byte (lower is better)")
    axes.set_title(title, loc="left", fontsize=11)
    axes.grid(axis="y", color="#e5e7eb")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=True, framealpha=0.9, edgecolor="none", loc="upper right")
    target = io.BytesIO()
    figure.savefig(target, format="png")
    return target.getvalue()


def _curve(records: Sequence[dict[str, Any]], key: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    points = [(record["tokens"], record[key]) for record in records if key in record]
    x, y = np.array(points, dtype=np.float64).reshape(-1, 2).T
    return x, y


def _smoothed(y: NDArray[np.float64]) -> NDArray[np.float64]:
    """A centered moving average over a 20th of the curve, shorter at the ends."""
    reach = len(y) // 40
    total = np.concatenate([[0.0], np.cumsum(y)])
    index = np.arange(len(y))
    low, high = np.maximum(index - reach, 0), np.minimum(index + reach + 1, len(y))
    return np.asarray((total[high] - total[low]) / (high - low))


def _unit(largest: float) -> tuple[float, str]:
    for size, name in ((1e9, " (billions)"), (1e6, " (millions)"), (1e3, " (thousands)")):
        if largest >= 2 * size:
            return size, name
    return 1.0, ""


def _baseline_lines(axes: Any, rows: Sequence[tuple[str, float]]) -> None:
    """Dashed lines, named in the right margin; names of close lines are pushed apart."""
    low, high = axes.get_ylim()
    place = -1.0
    for name, value in sorted(rows, key=lambda row: row[1]):
        axes.axhline(value, color=_GREY, linewidth=1, linestyle=(0, (5, 4)))
        place = max((value - low) / (high - low), place + 0.05)
        axes.text(1.01, place, f"{name} {value:.2f}", transform=axes.transAxes, color=_GREY, fontsize=9, va="center")


def _limits(axes: Any, values: Sequence[float]) -> None:
    """Limits of the y axis: all values, but only the end of the first steep fall."""
    finite = np.array([value for value in values if np.isfinite(value)])
    if len(finite):
        low, high = finite.min(), finite.max()
        high = min(high, 2.5 * low + 1)
        axes.set_ylim(max(0.0, low - 0.08 * (high - low) - 0.01), high + 0.05 * (high - low) + 0.01)
