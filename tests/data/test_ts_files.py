"""The .ts reader: what was written is read, and every mistake is named with its line."""

import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from exlstm.data.series import SeriesSet, archive_file, parse_ts, read_archive, read_ts, write_ts

TEXT = """# a comment
%# another one
@problemName two words
@timeStamps false
@missing true
@univariate false
@dimensions 2
@equalLength false
@classLabel true b a

@data
1,2.5,?:-1e-3,0,4:a
  7 : 8 : b
"""
NAMES = st.text("abcXYZ019_-.", min_size=1, max_size=5).filter(lambda name: name.lower() != "nan")
NUMBERS = st.one_of(st.floats(width=32, allow_nan=False, allow_infinity=False), st.just(float("nan")))


def test_a_text_by_hand():
    found = parse_ts(TEXT)
    assert found.name == "two words"
    assert found.classes == ("b", "a")
    assert found.labels.tolist() == [1, 0]
    assert found.lengths == [3, 1]
    first, second = found.series
    assert first.dtype == np.float32
    np.testing.assert_array_equal(first, np.array([[1, -1e-3], [2.5, 0], [np.nan, 4]], dtype=np.float32))
    np.testing.assert_array_equal(second, [[7, 8]])


@st.composite
def sets(draw):
    """Sets of ragged series with missing values, and classes, targets or neither."""
    rows, channels = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    series = []
    for _ in range(rows):
        length = draw(st.integers(1, 5))
        values = draw(st.lists(NUMBERS, min_size=length * channels, max_size=length * channels))
        series.append(np.array(values, dtype=np.float32).reshape(length, channels))
    kind = draw(st.sampled_from(["classes", "targets", "neither"]))
    classes = tuple(draw(st.lists(NAMES, min_size=1, max_size=3, unique=True))) if kind == "classes" else ()
    labels = [draw(st.integers(0, len(classes) - 1)) for _ in series] if classes else None
    targets = [draw(st.floats(allow_nan=False, allow_infinity=False)) for _ in series] if kind == "targets" else None
    return SeriesSet(
        name=draw(NAMES), series=tuple(series), classes=classes,
        labels=None if labels is None else np.array(labels), targets=None if targets is None else np.array(targets),
    )  # fmt: skip


@given(sets())
def test_what_is_written_is_read(made):
    """A wrong order of channels, a lost class, a digit too few or NaN as a number would show."""
    found = parse_ts(write_ts(made))
    assert (found.name, found.classes, found.lengths) == (made.name, made.classes, made.lengths)
    for got, want in zip(found.series, made.series, strict=True):
        np.testing.assert_array_equal(got, want)
    for got, want in ((found.labels, made.labels), (found.targets, made.targets)):
        assert (got is None) == (want is None)
        if want is not None:
            np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize(
    ("before", "after", "line", "fragment"),
    [
        ("7 : 8 : b", "7 : 8 : c", 13, "ends in the class 'c'; use one of b, a"),
        ("7 : 8 : b", "7 : x8 : b", 13, "has the value 'x8'"),
        ("7 : 8 : b", "7 : inf : b", 13, "has the value 'inf'"),
        ("7 : 8 : b", "7 : : b", 13, "has the value ''"),
        ("7 : 8 : b", "7 : b", 13, "has 1 channels and not 2"),
        ("7 : 8 : b", "b", 13, "has no channels"),
        ("7 : 8 : b", "7 : 8, 9 : b", 13, "has channels of 1 and 2 values"),
        ("7 : 8 : b", "(0, 7):(0, 8):b", 13, "has time stamps"),
        ("@equalLength false", "@equalLength true", 13, "has 1 values and not 3"),
        ("@dimensions 2", "@dimensions two", 11, "@dimensions 'two'"),
        ("@timeStamps false", "@timeStamps true", 11, "without time stamps"),
        ("@missing true", "@colour red", 5, "unknown entry '@colour'"),
        ("@missing true", "@missing", 5, "no value for '@missing'"),
        ("@equalLength false", "@equalLength perhaps", 11, "write true or false"),
        ("@classLabel true b a", "@classLabel true", 11, "without classes"),
        ("@classLabel true b a", "@classLabel true a a", 11, "a class twice"),
        ("@classLabel true b a", "@classLabel true a b\n@targetLabel true", 12, "leave one of them"),
        ("@classLabel true b a", "@targetLabel true", 12, "ends in the target 'a'"),
        ("@data\n", "", 11, "before @data"),
    ],
)  # fmt: skip
def test_mistakes_are_named_with_their_line(before, after, line, fragment):
    assert before in TEXT
    with pytest.raises(ValueError, match=rf"^line {line} of vowels\.ts ") as caught:
        parse_ts(TEXT.replace(before, after), "vowels.ts")
    assert fragment in str(caught.value)


def test_a_file_without_series_is_refused(tmp_path):
    (tmp_path / "a.ts").write_text(TEXT.partition("@data")[0] + "@data\n")
    with pytest.raises(ValueError, match=r"a\.ts has no series behind @data"):
        read_ts(tmp_path / "a.ts")
    (tmp_path / "a.ts").write_text("# nothing\n")
    with pytest.raises(ValueError, match="has no line @data"):
        read_ts(tmp_path / "a.ts")
    with pytest.raises(ValueError, match=r"b\.ts cannot be read \(FileNotFoundError\)"):
        read_ts(tmp_path / "b.ts")


def test_parts_of_an_archive_are_found_wherever_they_are(tmp_path, monkeypatch):
    """In a folder, in a folder by name, in an unzipped wheel, in an installed package that is not imported."""
    with pytest.raises(ValueError, match=r"no Vowels_TRAIN\.ts in .*pip download --no-deps aeon"):
        archive_file("Vowels", "train", [tmp_path])
    places = [tmp_path / "flat", tmp_path / "named" / "Vowels", tmp_path / "wheel/aeon/datasets/data/Vowels"]
    package = tmp_path / "site" / "aeon"
    for place in (*places, package / "datasets/data/Vowels"):
        place.mkdir(parents=True)
        for part in ("TRAIN", "TEST"):
            (place / f"Vowels_{part}.ts").write_text(TEXT)
    for folder in (places[0], tmp_path / "named", tmp_path / "wheel"):
        train, test = read_archive("Vowels", [folder])
        assert train.lengths == test.lengths == [3, 1]
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(package.parent)
    assert archive_file("Vowels", "test").parent == package / "datasets/data/Vowels"
    assert "aeon" not in sys.modules
    (places[0] / "Vowels_TEST.ts").write_text(TEXT.replace("true b a", "true a b"))
    with pytest.raises(ValueError, match="list their classes as b, a and a, b"):
        read_archive("Vowels", [places[0]])
