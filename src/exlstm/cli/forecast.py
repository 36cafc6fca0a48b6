"""`exlstm forecast`: a series from a file, a backtest beside simpler methods, and a forecast with quantiles."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import tyro

from exlstm.cli.parse import check_at_least, similar

if TYPE_CHECKING:
    from exlstm.forecast.backtest import Backtest
    from exlstm.forecast.contract import Fitted, ForecastTask
    from exlstm.forecast.history import SeriesHistory

DataFile = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DATA")]


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """Options of `exlstm forecast`."""

    source: DataFile  # .csv file with a line of names, or .parquet
    horizon: int  # how many steps to forecast
    column: str | None = None  # which column; left out: the only one of numbers
    season: int | None = None  # steps of a season, 1 for none; left out: a day of hours, a week of days, ...
    method: str = "best"  # xlstm, lstm, ridge, seasonal_naive, drift; best: the lowest CRPS in the backtest
    windows: int = 20  # how many windows at the end of the series the methods are compared on
    context: int | None = None  # how many steps models look back; left out: three seasons, or twice the horizon
    steps: int = 300  # of training, for the networks
    seed: int = 0  # of initial weights and of the order of training
    output: str | None = None  # CSV file of the forecast; left out: the name of DATA with _forecast.csv
    plot: str | None = None  # PNG file of a picture
    save: str | None = None  # folder for the network xlstm, fitted to the whole series
    model: str | None = None  # folder of a saved one, which forecasts without training and without a backtest
    overwrite: bool = False  # replace these files, and the model in the folder

    def __post_init__(self) -> None:
        check_at_least(self, horizon=1, season=1, windows=1, context=1, steps=1, seed=0)


class Made(NamedTuple):
    """A forecast: its quantiles, the task, the name of the method, and how it came about, in words."""

    quantiles_TQ: Any
    task: "ForecastTask"
    method: str
    origin: str


def forecast(options: Forecast) -> None:
    """`exlstm forecast`."""
    from exlstm.data.series import read_table
    from exlstm.forecast.history import history_of
    from exlstm.forecast.output import forecast_csv, forecast_png
    from exlstm.runtime.files import write_or_explain

    _check_choices(options)
    output = Path(options.output or Path(options.source).with_suffix("").name + "_forecast.csv")
    targets = [output, *([Path(options.plot)] if options.plot else [])]
    _check_targets(targets, options)
    history = history_of(read_table(options.source), options.column)
    made = _compared(options, history) if options.model is None else _by_saved(options, history)
    write_or_explain(output, forecast_csv(history, made.quantiles_TQ, made.task))
    if options.plot:
        write_or_explain(Path(options.plot), forecast_png(history, made.quantiles_TQ, made.task, made.method))
    print(f"\nThe forecast of {made.method}, {made.origin}: {' and '.join(map(str, targets))}")


def _compared(options: Forecast, history: "SeriesHistory") -> Made:
    """By a method that is fitted to the whole series, after a backtest of all."""
    from exlstm.forecast.backtest import all_methods, backtest, planned_task

    season = options.season or (history.step.season if history.step is not None else 1)
    points = len(history.values_T)
    if options.season is None and season > (points - options.horizon) // 3:
        season = 1
    task = planned_task(
        points, horizon=options.horizon, season=season, context=options.context, steps=options.steps, seed=options.seed
    )
    _print_history(history, task.season, task.context)
    found = backtest(history.values_T, task, windows=options.windows)
    _print_scores(found)
    method = found.best if options.method == "best" else options.method
    if options.save is not None:
        fitted = _saved(options, history, task)
    if options.save is None or method != "xlstm":
        fitted = all_methods()[method](history.values_T, task)
    (quantiles_TQ,) = fitted([history.values_T])
    return Made(quantiles_TQ, task, method, f"fitted to all {points:,} points")


def _saved(options: Forecast, history: "SeriesHistory", task: "ForecastTask") -> "Fitted":
    """Trains the network on the whole series, and saves it."""
    from exlstm.forecast.networks import forecasts_of, trained
    from exlstm.models.checkpoints.any_model import save

    model = trained(history.values_T, task)
    save(model, str(options.save), overwrite=options.overwrite)
    print(f"\nxlstm, fitted to all {len(history.values_T):,} points: {options.save}")
    return forecasts_of(model, task)


def _by_saved(options: Forecast, history: "SeriesHistory") -> Made:
    """By a forecaster that was saved, as it is."""
    from exlstm.forecast.networks import forecasts_of
    from exlstm.forecast.saved import saved_forecaster, saved_task

    model = saved_forecaster(str(options.model))
    points = len(history.values_T)
    task = saved_task(model, points, horizon=options.horizon, season=options.season, context=options.context)
    _print_history(history, task.season, task.context)
    (quantiles_TQ,) = forecasts_of(model, task)([history.values_T])
    return Made(quantiles_TQ, task, "xlstm", f"as it was saved in {options.model}")


def _check_choices(options: Forecast) -> None:
    """ValueError for a method that there is not, and for options that exclude each other."""
    from exlstm.forecast.backtest import all_methods
    from exlstm.models.checkpoints.target import check_target

    methods = all_methods()
    if options.method not in {"best", *methods}:
        raise ValueError(
            f"--method {options.method!r} is unknown{similar(options.method, methods)}; "
            f"use best or one of {', '.join(methods)}."
        )
    for name, value in (("--model", options.model), ("--save", options.save)):
        if value is not None and options.method not in {"best", "xlstm"}:
            raise ValueError(f"{name} is for xlstm, and --method is {options.method}; leave one of them out.")
    if options.save is not None:
        if options.model is not None:
            raise ValueError(f"--model {options.model} is saved already; leave --save out.")
        check_target(Path(options.save), overwrite=options.overwrite)


def _check_targets(targets: list[Path], options: Forecast) -> None:
    for path in targets:
        if path.resolve() == Path(options.source).resolve():
            raise ValueError(f"{path} is what is read; write to another file.")
        if path.exists() and not options.overwrite:
            raise ValueError(f"{path} exists; use --overwrite to replace it, or another name.")
        if not path.parent.is_dir():
            raise ValueError(f"there is no folder {path.parent}; make it first.")


def _print_history(history: "SeriesHistory", season: int, context: int) -> None:
    steps = f" in steps of {history.step}" if history.step is not None else ""
    print(f"{history.name}: {len(history.values_T):,} points{steps}, season {season}, context {context}")
    for note in history.notes:
        print(f"  {note}")


def _print_scores(found: "Backtest") -> None:
    from rich.console import Console
    from rich.table import Table

    task = found.task
    windows = f"{len(found.origins)} windows of {task.horizon} steps behind {found.fitted_to:,} points"
    print(f"\nBacktest: {windows}")
    table = Table(box=None, pad_edge=False)
    table.add_column("method")
    between = f"in {100 * (task.levels[-1] - task.levels[0]):.0f} %"
    for heading in ("MASE", "CRPS", between, "seconds"):
        table.add_column(heading, justify="right")
    known = [name for name, score in found.scores.items() if score.missing is None]
    for name in sorted(known, key=lambda name: found.scores[name].crps):
        score = found.scores[name]
        numbers = f"{score.mase:.3f}", f"{score.crps:.4g}", f"{score.covered:.0%}", f"{score.seconds:.1f}"
        table.add_row(name, *numbers)
    console = Console(highlight=False, markup=False)
    console.print(table)
    for name, score in found.scores.items():
        if score.missing is not None:
            console.print(f"{name}: not run, {score.missing}")
