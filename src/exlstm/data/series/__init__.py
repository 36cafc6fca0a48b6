"""Series of numbers: .ts files, tables, simulated physical systems, digits, ETT, and the errors of forecasts."""

from exlstm.data.series.archives import archive_file, read_archive
from exlstm.data.series.digits import digit_series
from exlstm.data.series.dynamics import DynamicalSystem, largest_exponent, observed, trajectories
from exlstm.data.series.ett import ETT, read_ett
from exlstm.data.series.reservoir import Runoff, rain_and_runoff
from exlstm.data.series.systems import SYSTEMS, pendulum_energy
from exlstm.data.series.tables import SeriesTable, read_table
from exlstm.data.series.ts_files import SeriesSet, parse_ts, read_ts, write_ts

__all__ = [
    "ETT",
    "SYSTEMS",
    "DynamicalSystem",
    "Runoff",
    "SeriesSet",
    "SeriesTable",
    "archive_file",
    "digit_series",
    "largest_exponent",
    "observed",
    "parse_ts",
    "pendulum_energy",
    "rain_and_runoff",
    "read_archive",
    "read_ett",
    "read_table",
    "read_ts",
    "trajectories",
    "write_ts",
]
