"""Series of numbers: .ts files of the archives."""

from exlstm.data.series.archives import archive_file, read_archive
from exlstm.data.series.ts_files import SeriesSet, parse_ts, read_ts, write_ts

__all__ = [
    "SeriesSet",
    "archive_file",
    "parse_ts",
    "read_archive",
    "read_ts",
    "write_ts",
]
