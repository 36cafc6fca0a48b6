"""The GPU benchmarks' own machinery, without a GPU: who is absent and why, processes that die, targets and the page."""

import json
import time
from argparse import Namespace

import pytest
import torch

from benchmarks.__main__ import main
from benchmarks.bench import Bench
from benchmarks.gpu import CASES, report, supervise
from benchmarks.gpu.device import SAME, machine, slug
from benchmarks.gpu.targets import LIMITS, TARGETS
from benchmarks.gpu.work import Cost, Setup, Stage, Variant, Work
from benchmarks.store import ALL_RESULTS, Store, load
from benchmarks.targets import limits

MACHINE = {
    "cpu": "a", "cores": 2, "threads": 2, "gpu": "NVIDIA H200", "system": "Linux", "python": "3", "torch": "2",
    "cuda": "13", "cudnn": 9, "capability": "9.0", "multiprocessors": 132, "memory_gib": 140.0,
    "versions": {"triton": "3.6", "fla-core": None},
}  # fmt: skip
BY_KEY = {target.key: target for target in TARGETS}


def stage(folder, *, machine=MACHINE, commit="c", resume=False, only=(), **options):
    store = Store(folder, "case", machine, SAME)
    bench = Bench("case", store, commit=commit, resume=resume, only=only, quick=True, say=lambda _text: None)
    return Stage(bench=bench, setup=Setup(torch.device("cpu"), torch.float32, True), marker=folder / "m", **options)


def sleeps(seconds):
    return Variant(build=lambda: lambda: time.sleep(seconds) or torch.ones(2), cost=Cost(1e3, 1e3))


def fails(problem, at="build"):
    def build():
        if at == "build":
            raise problem
        return run

    def run():
        raise problem

    return Variant(build=build)


def work(name="w", **variants):
    return Work(name=name, about="about", variants={"exlstm": sleeps(0.002), **variants}, steps=4)


def measured(folder, name="w"):
    return load(folder)[0]["case"][name]


def wrong(_found):
    raise AssertionError("error 1, allowed 0")


def test_a_measurement_has_times_ratios_and_shares(tmp_path):
    here = stage(tmp_path)
    here.measure(work(peer=sleeps(0.02)))
    record = measured(tmp_path)
    assert here.bench.red == 0
    assert record["absent"] == {}
    assert record["ratios"]["exlstm"]["peer"]["of_medians"] > 3
    assert record["derived"]["us_per_step"]["exlstm"] == pytest.approx(
        250 * record["milliseconds"]["exlstm"]["median"], rel=1e-2
    )
    rates, share = record["machine_speed"], record["derived"]["share_of_roofline"]["peer"]
    least = Cost(1e3, 1e3).seconds(rates)
    assert share == pytest.approx(1e3 * least / record["milliseconds"]["peer"]["median"], rel=1e-2)
    assert Cost(8e9, 3e12).seconds({"copy_gb_s": 4.0, "gemm_tflops": 3.0}) == 2.0
    assert Cost(4e9, 9e12).seconds({"copy_gb_s": 4.0, "gemm_tflops": 3.0}) == 3.0
    assert not here.marker.exists()


def test_peers_that_are_missing_fail_or_compute_something_else_are_named(tmp_path):
    calls = []

    def fails_later():
        calls.append(0)
        if len(calls) > 2:
            raise RuntimeError("no more\nand other lines")
        return torch.ones(1)

    here = stage(tmp_path)
    here.measure(
        work(
            missing=fails(ModuleNotFoundError("No module named 'fla'")),
            broken=fails(RuntimeError("out of registers"), at="run"),
            other=Variant(build=lambda: lambda: torch.ones(1), check=wrong),
            nan=Variant(build=lambda: lambda: torch.tensor(torch.nan)),
            later=Variant(build=lambda: fails_later),
            good=sleeps(0.001),
        )
    )
    record = measured(tmp_path)
    assert here.bench.red == 0
    assert record["milliseconds"].keys() == {"exlstm", "good"} == record["derived"]["us_per_step"].keys()
    assert record["ratios"]["exlstm"].keys() == {"good"}
    assert record["absent"] == {
        "missing": "ModuleNotFoundError: No module named 'fla'",
        "broken": "RuntimeError: out of registers",
        "other": "error 1, allowed 0",
        "nan": "not all of its numbers are finite",
        "later": "RuntimeError: no more",
    }


@pytest.mark.parametrize("even_red", [False, True])
def test_what_fails_its_check_is_refused(tmp_path, even_red):
    """Timed only if that was asked for, and then it counts nowhere; what the peer takes is kept."""
    bad = Variant(build=lambda: lambda: torch.ones(1), check=wrong)
    here = stage(tmp_path, even_red=even_red)
    here.measure(Work(name="w", about="", variants={"exlstm": bad, "peer": sleeps(0)}))
    record = measured(tmp_path)
    assert here.bench.red == 1
    assert record["red"] == "exlstm: error 1, allowed 0"
    assert record["milliseconds"].keys() == ({"exlstm", "peer"} if even_red else {"peer"})


def test_one_of_ours_may_fail_while_another_counts(tmp_path):
    here = stage(tmp_path)
    here.measure(work(**{"exlstm, other": fails(ValueError("heads of up to 64 units"))}))
    record = measured(tmp_path)
    assert here.bench.red == 1  # and the exit code tells
    assert "red" not in record
    assert record["absent"] == {"exlstm, other": "ValueError: heads of up to 64 units"}


def test_resume_only_time_and_another_card(tmp_path):
    stage(tmp_path).measure(work())
    never = work(exlstm=fails(KeyboardInterrupt()))
    stage(tmp_path, resume=True).measure(never)
    stage(tmp_path, only=("v",)).measure(never)
    late = stage(tmp_path, until=time.monotonic() - 1)
    late.measure(never)
    assert late.left == 1
    with pytest.raises(KeyboardInterrupt):
        stage(tmp_path, resume=True, commit="d").measure(never)
    assert stage(tmp_path, resume=True, machine={**MACHINE, "cpu": "b"}).bench.store.has("w", "c")
    assert stage(tmp_path, machine={**MACHINE, "gpu": "NVIDIA A100"}).bench.store.other_machine
    assert slug("NVIDIA H100 80GB HBM3") == "nvidia-h100-80gb-hbm3"


def test_compiling_calls_one_variant_and_writes_nothing(tmp_path):
    calls = []
    variants = {name: Variant(build=lambda name=name: lambda: calls.append(name) or torch.ones(1)) for name in "ab"}
    here = stage(tmp_path, variant="b")
    here.marker = None
    here.measure(work(**variants))
    assert calls == ["b"]
    assert list(tmp_path.iterdir()) == []


def test_a_card_that_stops_ends_the_process_and_names_who_stopped_it(tmp_path, monkeypatch):
    def stopped(_device):
        raise RuntimeError("illegal memory access")

    here = stage(tmp_path)
    monkeypatch.setattr("benchmarks.gpu.work.finish", stopped)
    with pytest.raises(SystemExit, match="the card stopped at exlstm"):
        here.measure(work())
    assert json.loads(here.marker.read_text()) == {"key": "w/exlstm", "reason": "RuntimeError: illegal memory access"}


def options(**changed):
    return Namespace(**{"only": [], "quick": True, "resume": False, "even_red": False, "minutes": 1.0, **changed})


def test_a_process_that_dies_costs_one_variant(tmp_path, monkeypatch):
    """Its successor is told what to leave out, and why; all it did before is kept."""
    commands = []

    def run(command, seconds):
        commands.append(command)
        if "--without" not in command:
            (tmp_path / "decode.trying").write_text(json.dumps({"key": "7b/peer", "reason": "its process ended"}))
            return -11
        return 0

    monkeypatch.setattr(supervise, "run", run)
    assert not supervise.one_case(
        options(only=["decode/7b", "slstm_op"]), tmp_path, "decode", "c", time.monotonic() + 60
    )
    assert [("--resume" in command) for command in commands] == [False, True]
    assert json.loads(commands[1][commands[1].index("--without") + 1]) == {"7b/peer": "its process ended"}
    assert all(command[command.index("--only") + 1] == "decode/7b" for command in commands)
    here = stage(tmp_path, without={"w/peer": "its process ended"})
    here.measure(work(peer=fails(KeyboardInterrupt())))
    assert measured(tmp_path)["absent"] == {"peer": "its process ended"}


def test_cases_end_in_time(tmp_path, monkeypatch, capsys):
    assert supervise.run(["sleep", "5"], 0.05) is None
    monkeypatch.setattr(supervise, "run", lambda _command, _seconds: None)
    assert supervise.every_case(options(), tmp_path, ["decode"], "c") == 1
    assert "the time is over" in capsys.readouterr().out
    monkeypatch.setattr(supervise, "run", lambda _command, _seconds: 0)
    assert supervise.every_case(options(), tmp_path, ["decode"], "c") == 0


def test_what_is_compiled_first(tmp_path):
    tasks = list(supervise.compilations(options(), tmp_path, list(CASES), "c"))
    assert tasks[0] == ("mlstm_op/tiny_forward_backward", "fla chunk_simple_gla")
    assert ("slstm_op/h2v8_forward_backward", "exlstm") in tasks
    assert not any("decode" in name for name, _ in tasks)
    # what is there already is left out, also where another host had the card
    Store(tmp_path, "slstm_op", {**machine(), "cpu": "another"}, SAME).put("h2v8_forward_backward", {"commit": "c"})
    again = list(supervise.compilations(options(resume=True), tmp_path, list(CASES), "c"))
    assert [task for task in tasks if task not in again] == [task for task in tasks if "slstm_op" in task[0]]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("command", [["gpu", "--quick"], ["case", "--device", "gpu", "--only", "decode"]])
def test_without_a_gpu_one_sentence_says_so(command):
    with pytest.raises(SystemExit, match="No GPU"):
        main(command)


def variant(milliseconds, **ratios):
    return milliseconds, {peer: {"of_medians": x, "of_rounds": x} for peer, x in ratios.items()}


def record(derived=None, **variants):
    """With variants by name: of ours, the time and the ratios."""
    return {
        "about": "about", "commit": "0" * 40, "date": "2026-01-01 00:00", "repeats": 15,
        "milliseconds": {name: {"median": x[0]} for name, x in variants.items()},
        "ratios": {name: x[1] for name, x in variants.items() if name.startswith("exlstm")},
        "machine_speed": {"copy_gb_s": 4300.0, "gemm_tflops": 790.0},
        "absent": {"flashrnn": "ValueError: no | such thing"},
        "derived": {"share_of_roofline": {"exlstm": 0.31}, **(derived or {})},
    }  # fmt: skip


def made_up():
    """Each number different, so that one in the wrong place is seen."""
    contexts = {"exlstm @0": 0.9, "exlstm @65536": 0.85, "exlstm, model called": 0.2}
    ratio = {"mlstm_kernels a": 4.0, "mlstm_kernels b": 3.0, "fla c": 0.9}
    return {
        "mlstm_op": {
            "b8h16k128v256_forward": record(**{
                "exlstm": variant(1.5, **ratio),
                "exlstm, other": variant(1.4, **{**ratio, "fla c": 1.1, "mlstm_kernels a": 2.9}),
            }),
            "b8h8k256v512_forward": record(exlstm=variant(2.75, **{"mlstm_kernels a": 0.8})),
            "b8h8k256v512_forward_backward": {**record(exlstm=variant(2.0)), "red": "error"},
        },
        "attention": {
            "t512_forward": record(exlstm=variant(1.0, **{"flash attention": 0.5})),
            "t2048_forward": record(exlstm=variant(1.0, **{"flash attention": 2.5, "cuDNN attention": 1.7})),
            "t8192_forward": record(exlstm=variant(1.0, **{"flash attention": 9.0})),
            "t2048_forward_backward": record(exlstm=variant(1.0, **{"flash attention": 2.0})),
        },
        "slstm_op": {
            "h12v64_forward": record(
                {"us_per_step": {"exlstm": 1.25, "exlstm with projection": 0.5}},
                **{"exlstm": variant(1.25, **{"nn.LSTM": 9.0, "flashrnn triton_fused": 1.6}),
                   "exlstm with projection": variant(1.0, **{"nn.LSTM": 1.2, "flashrnn triton_fused": 8.0})},
            ),
        },
        "decode": {"7b": record(
            {"share_of_roofline": contexts, "longest_over_shortest_context": 1.03}, **{"exlstm @0": variant(4.0)},
        )},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("key", "value"),
    {
        "mlstm-forward-ms": 1.4, "mlstm-forward-fla": 1.1, "mlstm-forward-mlstm_kernels": 3.0,
        "7b-forward-ms": 2.75, "7b-forward-fla": None, "7b-forward-mlstm_kernels": 0.8, "7b-forward_backward-ms": None,
        "attention-forward": 1.7, "attention-forward_backward": None, "slstm-h12v64-forward-us": 1.25,
        "slstm-h12v64-forward-lstm": 1.2, "slstm-h12v64-forward-flashrnn": 1.6, "slstm-h6v128-forward-us": None,
        "decode-bandwidth": 0.85, "decode-context": 1.03,
    }.items(),
)  # fmt: skip
def test_each_target_finds_its_number(key, value):
    assert BY_KEY[key].find(made_up()) == value


def test_the_page_shows_what_the_files_say(tmp_path):
    """Reached, missed, refused and not measured; who was absent; each card by itself."""
    results = tmp_path / "results"
    for card in ("NVIDIA H200", "NVIDIA A100-SXM4-80GB"):
        for case, found in made_up().items():
            store = Store(results / slug(card), case, {**MACHINE, "gpu": card}, SAME)
            for name, x in found.items():
                store.put(name, x)
    (results / "cpu").mkdir()
    page = tmp_path / "gpu.md"
    page.write_text("top\n<!-- begin gpus -->\nold\n<!-- end gpus -->\nbottom\n")
    paths = report.write_report(results, page)
    text = page.read_text()
    assert [path.name for path in paths] == ["gpu.md", "gpu-nvidia-a100-sxm4-80gb.png", "gpu-nvidia-h200.png"]
    assert all(path.read_bytes()[:4] == b"\x89PNG" for path in paths[1:])
    assert text.startswith("top\n")
    assert text.endswith("bottom\n")
    assert "old" not in text
    assert text.count("## NVIDIA H200\n") == text.count("(gpu-nvidia-h200.png)") == 1
    assert text.count("| ≤ 1.6 ms | 1.40 ms | yes |") == 2
    assert "| ≤ 2.5 ms | 2.75 ms | **no** |" in text
    assert "| ≤ 1 us | 1.25 us | **no** |" in text
    assert "| ≥ 80 % | 85 % | yes |" in text
    assert "exlstm: 1.5 ms, 31 % of the roofline<br>exlstm, other: 1.4 ms" in text
    assert "exlstm: 1.25 ms, 1.25 us a step" in text
    assert "refused: error" in text
    assert "flashrnn: ValueError: no \\| such thing" in text
    assert "4300 to 4300" in text
    assert "Nothing has been timed" not in text
    before = text
    report.write_report(results, page)
    assert page.read_text() == before


def test_without_results_the_page_says_so(tmp_path):
    text = report.filled("<!-- begin gpus -->\n<!-- end gpus -->", tmp_path)
    assert "Nothing has been timed on a GPU yet" in text
    assert "make bench-gpu" in text


def test_the_page_shows_the_committed_results():
    """`python -m benchmarks report` would change nothing; a number that is missed says why."""
    assert report.filled(report.PAGE.read_text(), ALL_RESULTS) == report.PAGE.read_text()
    texts = limits(LIMITS)
    assert set(texts) <= set(BY_KEY)
    assert len({target.work for target in TARGETS}) == len(BY_KEY) == len(TARGETS)
    for folder in report.gpu_folders(ALL_RESULTS):
        results, machines = load(folder)
        assert {slug(machine["gpu"]) for machine in machines.values()} == {folder.name}
        missed = [t.key for t in TARGETS if (value := t.find(results)) is None or not t.reached(value)]
        assert [key for key in missed if not texts.get(key)] == []
