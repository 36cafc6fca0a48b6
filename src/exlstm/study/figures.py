"""Plots of several studies, drawn on a matplotlib figure, and figures as PNG and PDF.

Series differ in their markers and in their lines too, so that a page in black and white can be read.
"""

import io
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any

# Okabe and Ito's colors, distinct for color-blind readers; a model has the same in every picture
_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#4d4d4d", "#b8a800")
_MARKERS = "os^DvPX*"
_LINES = ("-", (0, (5, 2)), (0, (1, 1)), (0, (6, 2, 1, 2)), (0, (3, 1)))
_GREY = "#6b7280"
Points = Sequence[tuple[float, Sequence[float]]]


def png(draw: Callable[[Any], None], size: tuple[float, float]) -> bytes:
    """A figure of this size in inches, drawn by `draw`, as a PNG."""
    return _rendered(draw, size, "png", {"Software": None})


def pdf(draw: Callable[[Any], None], size: tuple[float, float]) -> bytes:
    """The same figure as a PDF of lines and letters, without the date."""
    return _rendered(draw, size, "pdf", {"CreationDate": None, "Producer": None})


def _rendered(draw: Callable[[Any], None], size: tuple[float, float], form: str, metadata: dict[str, None]) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    draw(figure)
    target = io.BytesIO()
    figure.savefig(target, format=form, metadata=metadata)
    return target.getvalue()


def color(index: int) -> str:
    """The color of a series."""
    return _COLORS[index % len(_COLORS)]


def marker(index: int) -> str:
    """The marker of a series."""
    return _MARKERS[index % len(_MARKERS)]


def heat_map(figure: Any, values: Sequence[Sequence[float | None]], rows: Sequence[str], columns: Sequence[str],
             *, label: str = "scaled accuracy, median of seeds", low: float = 0.0, high: float = 1.0,
             form: str = "{:.2f}") -> None:  # fmt: skip
    """A heat map with its numbers; missing ones are grey."""
    import numpy as np

    axes = figure.add_subplot()
    grid = np.array([[np.nan if value is None else value for value in row] for row in values], dtype=float)
    shades = axes.imshow(grid, cmap="YlGnBu", vmin=low, vmax=high, aspect="auto")
    axes.set_facecolor("#e5e7eb")
    for y, row in enumerate(values):
        for x, value in enumerate(row):
            dark = value is not None and (value - low) / (high - low) > 0.6
            text = "–" if value is None else form.format(value)
            axes.text(x, y, text, ha="center", va="center", fontsize=8, color="white" if dark else "black")
    axes.set_xticks(range(len(columns)), [name.replace("_", " ") for name in columns], rotation=35, ha="right")
    axes.set_yticks(range(len(rows)), rows)
    axes.tick_params(length=0, labelsize=9)
    axes.spines[:].set_visible(False)
    figure.colorbar(shades, ax=axes, label=label, fraction=0.03, pad=0.01)


def strips(figure: Any, panels: Mapping[str, Mapping[str, Sequence[float]]], *, label: str = "score",
           least: float | None = 0.99, columns: int = 4) -> None:  # fmt: skip
    """A panel per task; in it a line per model with a dot per seed and a bar at the median."""
    names = list(dict.fromkeys(name for panel in panels.values() for name in panel))
    columns = min(columns, len(panels))
    grid = figure.subplots(-(-len(panels) // columns), columns, squeeze=False, sharey=True, sharex=True)
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    for axes, (title, panel) in zip(grid.flat, panels.items(), strict=False):
        if least is not None:
            axes.axvline(least, color=_GREY, linewidth=0.8, linestyle=(0, (4, 4)))
        strip(axes, {name: panel.get(name, ()) for name in names})
        axes.set_title(title.replace("_", " "), fontsize=9, loc="left")
        axes.set_xlim(-0.15, 1.06)
    figure.supxlabel(label, fontsize=9)


def strip(axes: Any, series: Mapping[str, Sequence[float]]) -> None:
    """A line per series with a dot per seed and a bar at the median."""
    for y, seeds in enumerate(series.values()):
        axes.plot(seeds, [y] * len(seeds), "o", color=color(y), alpha=0.55, markersize=5, markeredgewidth=0)
        if seeds:
            axes.plot([median(seeds)] * 2, [y - 0.32, y + 0.32], color=color(y), linewidth=2.5)
    axes.set_yticks(range(len(series)), list(series), fontsize=8)
    axes.tick_params(axis="x", labelsize=8)
    axes.set_ylim(len(series) - 0.5, -0.5)
    axes.grid(axis="x", color="#e5e7eb")
    _plain(axes)


def lines(axes: Any, series: Mapping[str, Points], *, x_label: str, y_label: str, log_x: bool = False,
          log_y: bool = False, first: int = 0) -> None:  # fmt: skip
    """A line per series through the medians of (x, numbers of several seeds), the seeds' range in a light shade."""
    for index, (name, points) in enumerate(series.items(), first):
        found = [(x, values) for x, values in points if values]
        xs = [x for x, _ in found]
        axes.plot(
            xs, [median(v) for _, v in found], marker=marker(index), linestyle=_LINES[index // 2 % len(_LINES)],
            color=color(index), linewidth=1.6, markersize=4, label=name,
        )  # fmt: skip
        axes.fill_between(
            xs, [min(v) for _, v in found], [max(v) for _, v in found], color=color(index), alpha=0.13, linewidth=0
        )
    if log_x and any(series.values()):
        axes.set_xscale("log", base=2)
    if log_y:
        axes.set_yscale("log")
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.grid(color="#e5e7eb")
    _plain(axes)


def legend(axes: Any) -> None:
    """A small legend, where there is something to name."""
    if axes.get_legend_handles_labels()[1]:
        axes.legend(fontsize=8)


def _plain(axes: Any) -> None:
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
