"""Where the .ts files of the archives are: in a folder that is given, or in an installed aeon or sktime.

Both packages carry small data sets. They are looked for without importing them, and nothing is downloaded.
"""

from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from exlstm.data.series.ts_files import SeriesSet, read_ts

Part = Literal["train", "test"]
PACKAGES = ("aeon", "sktime")
_INSIDE = Path("datasets", "data")


def archive_file(name: str, part: Part, folders: Sequence[str | Path] = ()) -> Path:
    """The file of a data set such as "JapaneseVowels". ValueError, with how to get it, where there is none.

    folders: where it is looked for first: files, folders of data sets, or what an unzipped package is in.
    """
    for folder in _places(folders):
        for path in (folder / name / f"{name}_{part.upper()}.ts", folder / f"{name}_{part.upper()}.ts"):
            if path.is_file():
                return path
    raise ValueError(
        f"there is no {name}_{part.upper()}.ts in {', '.join(map(str, folders)) or 'an installed aeon or sktime'}; "
        "get the small sets with `pip download --no-deps aeon`, unzip the wheel, and give its folder."
    )


def read_archive(name: str, folders: Sequence[str | Path] = ()) -> tuple[SeriesSet, SeriesSet]:
    """The training and the test part of a data set, as the archive splits it. Labels mean the same in both."""
    train, test = (read_ts(archive_file(name, part, folders)) for part in ("train", "test"))
    if train.classes != test.classes:
        raise ValueError(
            f"the parts of {name} list their classes as {', '.join(train.classes)} and {', '.join(test.classes)}; "
            "write the same @classLabel into both files."
        )
    return train, test


def _places(folders: Sequence[str | Path]) -> Iterator[Path]:
    for folder in map(Path, folders):
        yield folder
        yield from (folder / package / _INSIDE for package in PACKAGES)
    for package in PACKAGES:
        spec = find_spec(package)  # of a top-level name, so nothing is imported
        for location in (spec.submodule_search_locations or ()) if spec is not None else ():
            yield Path(location) / _INSIDE
