"""The benchmarks' own machinery: interleaving, ratios, the gate in front of the clock, and what is kept on disk."""

import json
import sys
from functools import partial
from itertools import pairwise
from types import ModuleType

import pytest

from benchmarks import bench as bench_page
from benchmarks import harness
from benchmarks.__main__ import main, parser
from benchmarks.bench import Bench
from benchmarks.harness import Timing, ratios, side_by_side
from benchmarks.store import Store, load

MACHINE = {"cpu": "a", "cores": 2, "threads": 2, "instructions": [], "torch": "2", "versions": {}}


@pytest.fixture(autouse=True)
def no_machine_speed(monkeypatch):
    """Half a second each that tests have no use for."""
    monkeypatch.setattr(bench_page, "speed", lambda: {"sgemm_gflops": 100.0, "stream_gb_s_1": 20.0})


def bench(folder, **options):
    return Bench("case", Store(folder, "case", MACHINE), say=lambda _text: None, **options)


def passes():
    return {"error": 0.0}


def fails():
    raise AssertionError("error 1.0e-01, allowed 1.0e-06")


def never():
    raise RuntimeError("this must not run")


def test_every_round_runs_all_variants_each_time_in_another_order():
    order = []
    runs = {name: lambda name=name: order.append(name) for name in "abcd"}
    found = side_by_side(runs, repeats=7, warmup=1, shortest=0.0)
    rounds = [tuple(order[n : n + 4]) for n in range(0, len(order), 4)]
    assert all(sorted(each) == list("abcd") for each in rounds)
    assert len(set(rounds)) > 4
    # nobody always comes after the same one
    assert all(len({before for before, name in pairwise(order) if name == after}) > 1 for after in "abcd")
    assert {len(timing.rounds) for timing in found.values()} == {7}


def test_a_timing_belongs_to_its_variant(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(harness.time, "perf_counter", lambda: clock[0])

    def takes(seconds):
        clock[0] += seconds

    found = side_by_side({name: partial(takes, n) for n, name in enumerate("abcd", 1)}, repeats=4, warmup=1)
    assert {name: set(timing.rounds) for name, timing in found.items()} == {"a": {1}, "b": {2}, "c": {3}, "d": {4}}


def test_quick_variants_are_called_often_in_one_timing():
    found = side_by_side({"a": lambda: None}, repeats=1, shortest=0.001)
    assert found["a"].calls > 10
    assert found["a"].median < 1e-4


def test_ratios_are_speed_of_ours_over_theirs():
    """Peers twice as slow, in a machine that became ten times slower for two rounds of three."""
    timings = {"exlstm": Timing((1, 10, 10), 1), "exlstm, other": Timing((2, 2, 2), 1), "peer": Timing((2, 20, 30), 1)}
    found = ratios(timings)
    assert found.keys() == {"exlstm", "exlstm, other"}
    assert found["exlstm"] == {"peer": {"of_medians": 2.0, "of_rounds": 2.0}}
    assert found["exlstm, other"]["peer"] == {"of_medians": 10.0, "of_rounds": 10.0}


def test_what_a_measurement_keeps(tmp_path):
    calls = {"exlstm": 0, "peer": 0}

    def run(name):
        calls[name] += 1

    here = bench(tmp_path, commit="c")
    here.measure("name", "about", {name: lambda name=name: run(name) for name in calls}, passes,
                 derive=lambda timings, speed: {"names": sorted(timings), "speed": speed})  # fmt: skip
    record = load(tmp_path)[0]["case"]["name"]
    assert record["commit"] == "c"
    assert record["repeats"] == 7
    assert record["accuracy"] == {"error": 0.0}
    assert record["machine_speed"]["sgemm_gflops"] == 100.0
    assert record["derived"]["names"] == ["exlstm", "peer"]
    assert record["milliseconds"]["peer"].keys() == {"median", "low", "high", "calls"}
    assert record["ratios"]["exlstm"]["peer"]["of_medians"] > 0


@pytest.mark.parametrize("take", ["measure", "record"])
def test_a_failing_check_refuses_to_time(tmp_path, take):
    """Nothing runs, the old numbers are gone, and the reason is on disk."""
    bench(tmp_path).measure("name", "about", {"exlstm": lambda: None}, passes)
    here = bench(tmp_path)
    if take == "measure":
        here.measure("name", "about", {"exlstm": never}, fails)
    else:
        here.record("name", "about", never, fails)
    record = load(tmp_path)[0]["case"]["name"]
    assert here.red == 1
    assert "allowed 1.0e-06" in record["red"]
    assert "milliseconds" not in record


def test_only_what_is_asked_for_is_measured_and_the_rest_stays(tmp_path):
    bench(tmp_path).measure("a", "first", {"exlstm": lambda: None}, passes)
    bench(tmp_path).measure("b", "first", {"exlstm": lambda: None}, passes)
    again = bench(tmp_path, only=("b",))
    again.measure("a", "second", {"exlstm": never}, never)
    again.measure("b", "second", {"exlstm": lambda: None}, passes)
    assert {name: record["about"] for name, record in load(tmp_path)[0]["case"].items()} == {
        "a": "first",
        "b": "second",
    }


def test_each_measurement_is_on_disk_before_the_next(tmp_path):
    here = bench(tmp_path)
    here.measure("a", "about", {"exlstm": lambda: None}, passes)
    with pytest.raises(RuntimeError):
        here.measure("b", "about", {"exlstm": never}, passes)
    assert list(load(tmp_path)[0]["case"]) == ["a"]


def test_resume_leaves_out_what_this_commit_has_measured(tmp_path):
    bench(tmp_path, commit="c").measure("a", "about", {"exlstm": lambda: None}, passes)
    bench(tmp_path, commit="c").measure("red", "about", {"exlstm": never}, fails)
    bench(tmp_path, commit="c", resume=True).measure("a", "about", {"exlstm": never}, never)
    assert bench(tmp_path, commit="c", resume=True).wants("red")
    assert bench(tmp_path, commit="d", resume=True).wants("a")
    assert bench(tmp_path, commit="c").wants("a")


def test_results_of_two_machines_are_not_mixed(tmp_path):
    Store(tmp_path, "case", MACHINE).put("a", {})
    other = Store(tmp_path, "case", {**MACHINE, "cpu": "b"})
    assert other.other_machine
    other.put("b", {})
    results, machines = load(tmp_path)
    assert list(results["case"]) == ["b"]
    assert machines["case"]["cpu"] == "b"
    assert not Store(tmp_path, "case", {**MACHINE, "cpu": "b"}).other_machine


@pytest.mark.parametrize(("check", "code"), [(passes, 0), (fails, 1)])
def test_the_exit_code_tells_of_a_refusal(tmp_path, monkeypatch, capsys, check, code):
    case = ModuleType("benchmarks.cpu.made_up")
    case.run = lambda bench: bench.measure("name", "about", {"exlstm": lambda: None}, check)
    monkeypatch.setitem(sys.modules, "benchmarks.cpu.made_up", case)
    assert main(["case", "--only", "made_up", "--quick", "--out", str(tmp_path)]) == code
    assert ("RED" in capsys.readouterr().out) is bool(code)
    assert json.loads((tmp_path / "made_up.json").read_text())["measured"].keys() == {"name"}


def test_an_unknown_case_is_an_error():
    with pytest.raises(SystemExit, match="there is no case 'slstm'; the cases are startup"):
        main(["cpu", "--only", "slstm"])
    assert parser().parse_args(["cpu", "--only", "slstm_op/a", "decode"]).only == ["slstm_op/a", "decode"]
