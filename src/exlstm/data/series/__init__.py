"""Series of numbers: .ts files of the archives, and simulated physical systems."""

from exlstm.data.series.archives import archive_file, read_archive
from exlstm.data.series.dynamics import DynamicalSystem, largest_exponent, observed, trajectories
from exlstm.data.series.reservoir import Runoff, rain_and_runoff
from exlstm.data.series.systems import SYSTEMS, pendulum_energy
from exlstm.data.series.ts_files import SeriesSet, parse_ts, read_ts, write_ts

__all__ = [
    "SYSTEMS",
    "DynamicalSystem",
    "Runoff",
    "SeriesSet",
    "archive_file",
    "largest_exponent",
    "observed",
    "parse_ts",
    "pendulum_energy",
    "rain_and_runoff",
    "read_archive",
    "read_ts",
    "trajectories",
    "write_ts",
]
