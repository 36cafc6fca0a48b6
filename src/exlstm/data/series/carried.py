"""Small series that packages carry as CSV files, read without importing them; nothing is downloaded.

T points
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from exlstm.data.series.tables import read_table

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class CarriedSeries:
    """A column of a file inside of a package. about: what it is, for tables. season: points of one, 1 for none."""

    about: str
    package: str
    file: str
    column: str
    season: int = 1

    def path(self, folders: Sequence[str | Path] = ()) -> Path:
        """The file, in one of the folders or in the installed package. ValueError, with how to get it, without it."""
        for place in _places(self.package, folders):
            if (place / self.file).is_file():
                return place / self.file
        raise ValueError(
            f"there is no {self.package}/{self.file} in {', '.join(map(str, folders)) or 'any installed package'}; "
            f"pip install {self.package}, or unzip its wheel (pip download --no-deps) into a folder on PYTHONPATH."
        )


def _places(package: str, folders: Sequence[str | Path]) -> list[Path]:
    """Where a package's files may be; it is not imported."""
    spec = find_spec(package)
    installed = (spec.submodule_search_locations or ()) if spec is not None else ()
    return [*(Path(folder) / package for folder in folders), *map(Path, installed)]


CARRIED: Mapping[str, CarriedSeries] = MappingProxyType(
    {
        "airline": CarriedSeries(
            about="passengers of airlines by month, 1949 to 1960 (Box & Jenkins)",
            package="sktime",
            file="datasets/data/Airline/Airline.csv",
            column="Passengers",
            season=12,
        ),
        "lynx": CarriedSeries(
            about="lynx trapped in Canada by year, 1821 to 1934",
            package="sktime",
            file="datasets/data/Lynx/Lynx.csv",
            column="0",
            season=10,
        ),
        "nile": CarriedSeries(
            about="flow of the Nile by year, 1871 to 1970",
            package="statsmodels",
            file="datasets/nile/nile.csv",
            column="volume",
        ),
        "sunspots": CarriedSeries(
            about="sunspots by year, 1700 to 2008; a season is a cycle of 11 years",
            package="statsmodels",
            file="datasets/sunspots/sunspots.csv",
            column="SUNACTIVITY",
            season=11,
        ),
        "gdp": CarriedSeries(
            about="real gross domestic product of the USA by quarter, 1959 to 2009",
            package="statsmodels",
            file="datasets/macrodata/macrodata.csv",
            column="realgdp",
        ),
        "unemployment": CarriedSeries(
            about="rate of unemployment in the USA by quarter, 1959 to 2009",
            package="statsmodels",
            file="datasets/macrodata/macrodata.csv",
            column="unemp",
        ),
        "co2": CarriedSeries(
            about="CO2 at Mauna Loa by week, 1958 to 2001, with missing weeks",
            package="statsmodels",
            file="datasets/co2/co2.csv",
            column="co2",
            season=52,
        ),
        "equipment": CarriedSeries(
            about="turnover of electrical equipment in the euro area by month, 1995 to 2016",
            package="statsmodels",
            file="datasets/elec_equip/elec_equip.csv",
            column="STS.M.I7.W.TOVT.NS0016.4.000",
            season=12,
        ),
        "seatbelts": CarriedSeries(
            about="drivers killed or injured in Great Britain by month, 1969 to 1984",
            package="sktime",
            file="datasets/data/seatbelts/seatbelts.csv",
            column="KSI",
            season=12,
        ),
        "seattle_days": CarriedSeries(
            about="highest temperature in Seattle by day, 2012 to 2015",
            package="vega_datasets",
            file="_data/seattle-weather.csv",
            column="temp_max",
        ),
        "seattle_hours": CarriedSeries(
            about="usual temperature in Seattle by hour, a smooth year",
            package="vega_datasets",
            file="_data/seattle-temps.csv",
            column="temp",
            season=24,
        ),
    }
)


def carried_series(name: str, folders: Sequence[str | Path] = ()) -> Floats:
    """The values [T] of a series of CARRIED, NaN where one is missing; rows count as steps.

    folders: looked into first, each with folders of packages in it, as unzipped wheels are. ValueError for a name that
    there is not, and with how to get a file that is not there.
    """
    if name not in CARRIED:
        raise ValueError(f"there is no series {name!r}; use one of {', '.join(CARRIED)}.")
    found = CARRIED[name]
    return read_table(found.path(folders)).column(found.column)
