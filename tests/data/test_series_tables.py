"""Tables of series, the split of ETT, and digits as series."""

import sys

import numpy as np
import pytest

from exlstm.data.long_range.images import digit_images
from exlstm.data.series import digit_series, read_ett, read_table

CSV = "\ufeffdate,load,town,wind\n2020-01-01 00:00,1.5,A,\n2020-01-01 01:00,,B,3\n\n2020-01-01 02:00,nan,A,-4e1\n"


def test_a_csv_by_hand(tmp_path):
    file = tmp_path / "a.csv"
    file.write_text(CSV, encoding="utf-8")
    found = read_table(file)
    assert (found.names, found.skipped, found.time_name) == (("load", "wind"), ("town",), "date")
    np.testing.assert_array_equal(found.values_TC, [[1.5, np.nan], [np.nan, 3], [np.nan, -40]])
    assert [time.hour for time in found.times] == [0, 1, 2]
    assert found.column("wind")[2] == -40
    with pytest.raises(ValueError, match="no column of numbers 'town'; there are load, wind"):
        found.column("town")
    file.write_text(CSV.replace(",", ";"), encoding="utf-8")
    np.testing.assert_array_equal(read_table(file).values_TC, found.values_TC)


@pytest.mark.parametrize(("text", "fragment"), [
    ("a,b\n1,2\n3\n", r"line 3 of .* has 1 values for 2 columns"),
    ("a,a\n1,2\n", "two columns 'a'"),
    ("a,b\n", "has 1 lines"),
    ("a,b\nx,y\n", "no column of numbers"),
    ("a\n" + "1\n" * 12 + "1o\n", r"line 14 of .* has '1o' in column 'a'"),
])  # fmt: skip
def test_mistakes_in_tables_are_named(text, fragment, tmp_path):
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(ValueError, match=fragment):
        read_table(tmp_path / "a.csv")


@pytest.mark.slow  # importing pyarrow takes seconds
def test_parquet_is_read_where_pyarrow_is_there(tmp_path, monkeypatch):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    (tmp_path / "a.csv").write_text(CSV, encoding="utf-8")
    want = read_table(tmp_path / "a.csv")
    columns = {"date": list(want.times), "load": [1.5, None, None], "wind": [None, 3.0, -40.0], "town": ["A", "B", "A"]}
    parquet.write_table(pyarrow.table(columns), tmp_path / "a.parquet")
    found = read_table(tmp_path / "a.parquet")
    np.testing.assert_array_equal(found.values_TC, want.values_TC)
    assert (found.times, found.skipped) == (want.times, ("town",))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ValueError, match="pip install pyarrow"):
        read_table(tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"no file .*b\.csv"):
        read_table(tmp_path / "b.csv")


@pytest.fixture(scope="module")
def ett_file(tmp_path_factory):
    """14,400 hours of a counter and of its half, as ETTh1.csv has them, and 24 more that do not count."""
    file = tmp_path_factory.mktemp("ett") / "ETTh1.csv"
    start = np.datetime64("2016-07-01T00:00:00")
    rows = (f"{str(start + np.timedelta64(hour, 'h')).replace('T', ' ')},{hour},{hour / 2}\n" for hour in range(14_424))
    file.write_text("date,HUFL,OT\n" + "".join(rows))
    return file


def test_the_split_of_ett(ett_file):
    """Borders at 8,640, 11,520 and 14,400 hours; scales of the first 8,640; windows never end in another part."""
    found = read_ett(ett_file)
    assert found.names == ("HUFL", "OT")
    np.testing.assert_allclose(found.mean_C, [8639 / 2, 8639 / 4])
    hours = found.values_TC * found.deviation_C + found.mean_C
    for split, low, high in (("train", 96, 8640), ("validation", 8640, 11_520), ("test", 11_520, 14_400)):
        context, after = found.windows(split, context=96, horizon=24)
        assert context.shape == (high - low - 24 + 1, 96, 2)
        assert after.shape == (high - low - 24 + 1, 24, 2)
        for window, what in ((0, low), (-1, high - 24)):
            restored = after[window] * found.deviation_C + found.mean_C
            np.testing.assert_allclose(restored[:, 0], hours[what : what + 24, 0], atol=1e-2)
            before = context[window] * found.deviation_C + found.mean_C
            np.testing.assert_allclose(before[-1, 0], what - 1, atol=1e-2)
            np.testing.assert_allclose(before[:, 1] * 2, before[:, 0], atol=1e-2)
    with pytest.raises(ValueError, match="context=8640 and horizon=1 do not fit"):
        found.windows("train", context=8640, horizon=1)


@pytest.mark.parametrize(("change", "fragment"), [
    (lambda lines: lines[:14_000], "has 13999 rows"),
    (lambda lines: [line.partition(",")[2] for line in lines], "no column of dates"),
    (lambda lines: [*lines[:50], *lines[51:]], "2 hours apart"),
    (lambda lines: [*lines[:50], lines[50].rpartition(",")[0] + ",\n", *lines[51:]], "row 50"),
    (lambda lines: [lines[0], *(line.rpartition(",")[0] + ",1\n" for line in lines[1:])], "OT .* constant"),
])  # fmt: skip
def test_other_files_than_ett_are_refused(change, fragment, ett_file, tmp_path):
    lines = ett_file.read_text().splitlines(keepends=True)
    (tmp_path / "ETTh1.csv").write_text("".join(change(lines)))
    with pytest.raises(ValueError, match=fragment):
        read_ett(tmp_path / "ETTh1.csv")


@pytest.mark.parametrize(("patch", "shape"), [((1, 1), (64, 1)), ((1, 8), (8, 8)), ((2, 2), (16, 4)), ((4, 2), (8, 8))])
def test_patches_of_digits(patch, shape):
    """Pixel (y, x) of an image is in patch (y // high, x // wide), at its place there."""
    high, wide = patch
    x_NTD, classes = digit_series("test", patch)
    tokens, want = digit_images()["test"]
    assert x_NTD.shape == (len(tokens), *shape)
    assert (classes == want).all()
    assert (x_NTD.min(), x_NTD.max()) == (0, 1)
    for y, x in ((0, 0), (3, 5), (7, 2)):
        step, place = (y // high) * (8 // wide) + x // wide, (y % high) * wide + x % wide
        np.testing.assert_allclose(x_NTD[:, step, place] * 16 + 1, tokens[:, 8 * y + x])


def test_patches_that_do_not_tile_are_refused():
    with pytest.raises(ValueError, match="patches of 3 by 8"):
        digit_series("train", (3, 8))
