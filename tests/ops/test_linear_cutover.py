"""What is measured once and written down."""

import json

import pytest
import torch

from exlstm.ops import kept
from exlstm.ops.linear import cutover
from exlstm.ops.linear.cutover import measured  # as it is before the tests' own takes its place


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A cache of its own, and a measurement that counts."""
    monkeypatch.setattr(kept, "folder", lambda: tmp_path / "cache")
    monkeypatch.setattr(cutover, "measured", measure := Measure())
    cutover.decided.cache_clear()
    yield tmp_path / "cache", measure
    cutover.decided.cache_clear()


class Measure:
    def __init__(self):
        self.calls = []

    def __call__(self, kind):
        self.calls.append(kind)
        return {"float32": 8, "bfloat16": 4}[kind]


def forget():
    """As a new process."""
    cutover.decided.cache_clear()


def test_measured_once_and_kept(home):
    folder, measure = home
    assert [cutover.most_rows("float32", 2), cutover.most_rows("float32", 2)] == [8, 8]
    assert cutover.most_rows("bfloat16", 2) == 4
    forget()
    assert [cutover.most_rows("float32", 2), cutover.most_rows("bfloat16", 2)] == [8, 4]
    assert measure.calls == ["float32", "bfloat16"]
    assert cutover.most_rows("float32", 1) == 8
    assert measure.calls[2:] == ["float32"], "another number of threads is another question"
    keys = list(json.loads((folder / "linear.json").read_text()))
    assert all(torch.__version__ in key and "Numba" in key for key in keys)
    assert [p.name for p in folder.iterdir()] == ["linear.json"]


@pytest.mark.parametrize("damage", ["", "{", "[1]", "\0\0", '{"x": 1}'])
def test_a_damaged_file_is_replaced(home, damage):
    folder, measure = home
    cutover.most_rows("float32", 1)
    (folder / "linear.json").write_text(damage)
    forget()
    assert cutover.most_rows("float32", 1) == 8
    forget()
    assert cutover.most_rows("float32", 1) == 8
    assert len(measure.calls) == 2


@pytest.mark.parametrize("nonsense", ["8", 7, -1, None, 10_000, [8]])
def test_a_number_that_cannot_be_is_measured_again(home, nonsense):
    folder, measure = home
    cutover.most_rows("float32", 1)
    key = next(iter(json.loads((folder / "linear.json").read_text())))
    (folder / "linear.json").write_text(json.dumps({key: nonsense}))
    forget()
    assert cutover.most_rows("float32", 1) == 8
    assert len(measure.calls) == 2


def test_a_place_that_cannot_be_written(home, monkeypatch):
    folder, measure = home
    folder.write_text("in the way")
    assert [cutover.most_rows("float32", 1), cutover.most_rows("float32", 1)] == [8, 8]
    assert len(measure.calls) == 1

    def nowhere():
        raise RuntimeError("no home")

    monkeypatch.setattr(kept, "folder", nowhere)
    forget()
    assert cutover.most_rows("float32", 1) == 8


@pytest.mark.parametrize("kind", ["float32", "bfloat16", "int8", "int4"])
def test_the_measurement_itself(kind):
    """Changes nothing, and answers something that can be."""
    state = torch.get_rng_state()
    assert measured(kind) in (1, *cutover.ROWS)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.is_inference_mode_enabled()
