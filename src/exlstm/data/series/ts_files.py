"""A reader of .ts files, in which the UCR and UEA archives of time series are kept.

# a comment
@problemName Vowels
@dimensions 2
@equalLength false
@classLabel true a b
@data
1.5,2.0,?:0.1,0.2,0.3:a        channels end with ":", values with ",", ? is missing; the class is last
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from exlstm.data.series.lines import error_at, number_of

Series = NDArray[np.float32]  # [T, C]: time, channels; missing values are NaN
_KNOWN = {
    "problemname",
    "timestamps",
    "missing",
    "univariate",
    "dimensions",
    "dimension",
    "equallength",
    "serieslength",
    "classlabel",
    "targetlabel",
}
_MISSING = ("?", "nan")


@dataclass(frozen=True, kw_only=True)
class SeriesSet:
    """Series, each [T, C] in float32, and the class or the target of each.

    labels: indices into `classes`; None where the file has no classes. targets: numbers; None where it has none.
    """

    name: str
    series: tuple[Series, ...]
    labels: NDArray[np.int64] | None
    classes: tuple[str, ...]
    targets: NDArray[np.float64] | None = None

    @property
    def lengths(self) -> list[int]:
        """The number of steps of every series."""
        return [len(one) for one in self.series]


@dataclass(frozen=True, kw_only=True)
class _Header:
    """What the lines before @data say; None is what they leave open."""

    name: str
    channels: int | None
    length: int | None
    equal: bool
    classes: tuple[str, ...]
    has_target: bool

    @property
    def has_last(self) -> bool:
        """Whether a line ends in a class or a target."""
        return bool(self.classes) or self.has_target


def read_ts(file: str | Path) -> SeriesSet:
    """The series of a .ts file. ValueError, with file and line, for what is not in the format or is not read."""
    path = Path(file)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read ({type(error).__name__}); give a .ts file in UTF-8.") from error
    return parse_ts(text, str(path))


def parse_ts(text: str, place: str = "<text>") -> SeriesSet:
    """The series of the text of a .ts file. place: the name of the text in errors."""
    lines = (
        (number, line.strip())
        for number, line in enumerate(text.splitlines(), 1)
        if line.strip() and line.lstrip()[0] not in "#%"
    )
    header = _header(lines, place)
    series: list[Series] = []
    lasts: list[str] = []
    for number, line in lines:
        channels, last = _fields(line, header, place, number)
        series.append(_checked(channels, series, header, place, number))
        lasts.append(last)
    if not series:
        raise ValueError(f"{place} has no series behind @data; give a file with at least one.")
    if header.has_target:
        targets = np.array([float(last) for last in lasts])
        return SeriesSet(name=header.name, series=tuple(series), labels=None, classes=(), targets=targets)
    index = {name: number for number, name in enumerate(header.classes)}
    labels = np.array([index[last] for last in lasts], dtype=np.int64) if index else None
    return SeriesSet(name=header.name, series=tuple(series), labels=labels, classes=header.classes)


def write_ts(found: SeriesSet) -> str:
    """The text of a .ts file. NaN becomes "?"; numbers are as short as float32 allows."""
    channels = found.series[0].shape[1]
    lines = [
        f"@problemName {found.name}",
        "@timeStamps false",
        f"@missing {_word(any(np.isnan(one).any() for one in found.series))}",
        f"@univariate {_word(channels == 1)}",
        f"@dimensions {channels}",
        f"@equalLength {_word(len(set(found.lengths)) == 1)}",
    ]
    if found.targets is not None:
        lines += ["@targetLabel true"]
    else:
        lines += [f"@classLabel {' '.join([_word(found.labels is not None), *found.classes])}"]
    lines += ["@data"]
    for row, one in enumerate(found.series):
        parts = [",".join("?" if np.isnan(x) else str(x) for x in channel) for channel in one.T]
        if found.targets is not None:
            parts.append(repr(float(found.targets[row])))
        elif found.labels is not None:
            parts.append(found.classes[found.labels[row]])
        lines.append(":".join(parts))
    return "\n".join(lines) + "\n"


def _word(truth: bool) -> str:
    return "true" if truth else "false"


def _header(lines: Iterator[tuple[int, str]], place: str) -> _Header:
    """The header, which ends with @data."""
    found: dict[str, list[str]] = {}
    for number, line in lines:
        key, *values = line.split()
        key = key.lower()
        if not key.startswith("@"):
            raise error_at(place, number, f"begins with {key[:20]!r} before @data", "write @data before the series")
        if key == "@data":
            return _checked_header(found, place, number)
        if key[1:] not in _KNOWN:
            raise error_at(place, number, f"has the unknown entry {key!r}", "remove it")
        if not values:
            raise error_at(place, number, f"has no value for {key!r}", "give one")
        found[key[1:]] = values
    raise ValueError(f"{place} has no line @data; give a .ts file.")


def _checked_header(found: Mapping[str, list[str]], place: str, number: int) -> _Header:
    """The header of these entries. number: the line of @data, which errors name."""

    def truth(name: str, default: bool) -> bool:
        word = found.get(name, [_word(default)])[0].lower()
        if word not in ("true", "false"):
            raise error_at(place, number, f"follows @{name} {word!r}", "write true or false")
        return word == "true"

    def size(*names: str) -> int | None:
        words = [found[name][0] for name in names if name in found]
        if words and not (words[0].isdecimal() and int(words[0]) > 0):
            raise error_at(place, number, f"follows @{names[0]} {words[0]!r}", "write a whole number of at least 1")
        return int(words[0]) if words else None

    if truth("timestamps", default=False):
        raise error_at(place, number, "follows @timeStamps true", "give series without time stamps, which are not read")
    has_target, has_class = truth("targetlabel", default=False), truth("classlabel", default=False)
    classes = tuple(found["classlabel"][1:]) if has_class else ()
    if has_class and not classes:
        raise error_at(place, number, "follows @classLabel true without classes", "list them behind it")
    if len(set(classes)) < len(classes):
        raise error_at(place, number, "follows @classLabel with a class twice", "list every class once")
    if has_class and has_target:
        raise error_at(place, number, "follows both @classLabel and @targetLabel", "leave one of them")
    channels = size("dimensions", "dimension")
    if channels is None and truth("univariate", default=False):
        channels = 1
    return _Header(
        name=" ".join(found.get("problemname", [""])),
        channels=channels,
        length=size("serieslength"),
        equal=truth("equallength", default=False),
        classes=classes,
        has_target=has_target,
    )


def _fields(line: str, header: _Header, place: str, number: int) -> tuple[list[list[float]], str]:
    """The values of each channel of a line, and its class or target ("" without)."""
    if "(" in line:
        raise error_at(place, number, "has time stamps in brackets", "give values alone, which are what is read")
    *channels, last = line.split(":") if header.has_last else [*line.split(":"), ""]
    last = last.strip()
    if header.classes and last not in header.classes:
        raise error_at(place, number, f"ends in the class {last[:20]!r}", f"use one of {', '.join(header.classes[:9])}")
    if header.has_target and number_of(last, _MISSING) is None:
        raise error_at(place, number, f"ends in the target {last[:20]!r}", "write a number")
    if not channels:
        raise error_at(place, number, "has no channels", 'write values, ":" and the class')
    values = []
    for channel in channels:
        words = [word.strip() for word in channel.split(",")]
        numbers = [number_of(word, _MISSING) for word in words]
        if None in numbers:
            wrong = words[numbers.index(None)]
            raise error_at(place, number, f"has the value {wrong[:20]!r}", "write a number, or ? where it is missing")
        values.append([x for x in numbers if x is not None])
    return values, last


def _checked(channels: list[list[float]], before: list[Series], header: _Header, place: str, number: int) -> Series:
    """The channels of a line as a series, if they fit each other, the header and the series before."""
    lengths = {len(channel) for channel in channels}
    if len(lengths) > 1:
        raise error_at(
            place, number, f"has channels of {min(lengths)} and {max(lengths)} values", "give every channel as many"
        )
    wanted = header.channels if header.channels is not None or not before else before[0].shape[1]
    if wanted is not None and len(channels) != wanted:
        raise error_at(place, number, f"has {len(channels)} channels and not {wanted}", 'check its ":"')
    (length,) = lengths
    same = header.length if header.length is not None or not before else len(before[0])
    if header.equal and same is not None and length != same:
        raise error_at(
            place, number, f"has {length} values and not {same}", "write @equalLength false if that is meant"
        )
    return np.array(channels, dtype=np.float32).T
