"""Table and picture come from the results alone; the committed page shows the committed results."""

import re

import pytest

from benchmarks import mixers_report
from benchmarks.cpu import CASES, mixers_length
from benchmarks.cpu.peers.table import PEERS
from benchmarks.cpu.training import PLAIN, ROWS
from benchmarks.report import PAGE, PICTURE, filled, target_table, write_report
from benchmarks.store import RESULTS, load
from benchmarks.targets import TARGETS, limits

BY_KEY = {target.key: target for target in TARGETS}


def pairs(**values):
    """A record with these ratios; a name's last part, after __, is the peer."""
    found = {}
    for name, value in values.items():
        ours, _, peer = name.partition("__")
        found.setdefault(ours, {})[peer] = {"of_medians": value, "of_rounds": value}
    return {"about": "", "commit": "0" * 40, "date": "2026-01-01 00:00", "ratios": found}


def made_up():
    """Each number different, so that one in the wrong place is seen."""
    red = {"red": "error 1, allowed 0", "about": "", "commit": "0" * 40, "date": "2026-01-01 00:00"}
    int8 = pairs(**{"exlstm int8__bfloat16": 1.65})
    decode = pairs(**{
        "exlstm @16__transformers xLSTM": 4.0, "exlstm @16__Llama @16": 0.5, "exlstm @16__Llama @1024": 9.0,
        "exlstm @1024__transformers xLSTM": 3.5, "exlstm @1024__Llama @16": 0.1, "exlstm @1024__Llama @1024": 1.2,
    })  # fmt: skip
    decode["derived"] = {"share_of_stream": 0.7, "longest_over_shortest_context": 1.04}
    worse = {**decode, "derived": {"share_of_stream": 0.5, "longest_over_shortest_context": 1.02}}
    op = {"derived": {"share_of_sgemm": {"exlstm": 0.4, "mlstm_kernels": 0.1}}}
    return {
        "train_step": {
            "mlstm_float32": pairs(**{f"{PLAIN}__xlstm": 2.5, f"{ROWS}__xlstm": 2.6}),
            "all_slstm_float32": pairs(**{f"{PLAIN}__xlstm": 11.0, f"{ROWS}__xlstm": 12.5}),
            "mlstm_bfloat16": red,
        },
        "slstm_op": {
            "w64_b1_forward": pairs(**{"exlstm__nn.LSTM": 1.0, "exlstm, op alone__nn.LSTM": 7.0}),
            "w64_b8_forward": pairs(**{"exlstm__nn.LSTM": 4.0, "exlstm, op alone__nn.LSTM": 7.0}),
            "w64_b1_forward_backward": pairs(**{"exlstm__nn.LSTM": 0.9}),
        },
        "mlstm_op": {"b1_t512_forward": pairs(exlstm__mlstm_kernels=1.7) | op},
        "mixers_train": {
            "gla": pairs(**{f"{PLAIN}__peer": 8.0, f"{ROWS}__peer": 5.0}),
            "lru": pairs(**{f"{PLAIN}__peer": 0.5, f"{ROWS}__peer": 1.1}),
        },
        "mixers_length": {
            "gla": {"derived": {"longest_over_shortest": 0.96}}, "s4d": {"derived": {"longest_over_shortest": 1.13}},
        },
        "mixers_memory": {"gla": {"largest_over_shortest": 1.03}, "lru": {"largest_over_shortest": 1.01}},
        "mixers_decode": {
            "mamba": pairs(**{"exlstm @16__transformers": 2.2, "exlstm @65536__transformers": 2.1})
            | {"derived": {"longest_over_shortest_context": 1.002}},
            "rwkv4": red,
        },
        "mixers_beside_mlstm": {
            "train": {"derived": {"share_of_sgemm": {
                "exlstm mlstm": 0.4, "exlstm mlstm_large": 0.5, "exlstm gla": 0.3, "exlstm mamba2": 0.45}}},
            "decode": {"derived": {"share_of_stream": {
                "exlstm mlstm": 0.8, "exlstm mlstm_large": 0.6, "exlstm gla": 0.2, "exlstm mamba2": 0.9}}},
        },
        "decode": {"160m_float32": decode, "160m_bfloat16": worse, "160m_int8": int8},
        "memory": {
            "mlstm": {"largest_over_shortest": 1.02}, "one_slstm": {"largest_over_shortest": 1.08},
            "llama": {"largest_over_shortest": 3.0},
        },
        "startup": {
            "import": {"over_torch": 1.25},
            "first_a": {"seconds": {"uncached": 9.0, "cached": 0.4}},
            "first_b": {"seconds": {"uncached": 2.0, "cached": 0.8}},
        },
    }  # fmt: skip


@pytest.mark.parametrize(
    ("key", "value"),
    {
        "train-mlstm-plain": 2.5, "train-mlstm-rows": 2.6, "train-one_slstm-plain": None, "train-all_slstm-rows": 12.5,
        "train-bf16-plain": None, "llama-512": None, "slstm-forward-mean": 2.0, "slstm-forward-min": 1.0,
        "slstm-forward_backward-min": 0.9, "mlstm-forward-min": 1.7, "mlstm-forward-sgemm": 0.4,
        "mixers-train-plain-mean": 2.0, "mixers-train-plain-min": 0.5, "mixers-train-rows-min": 1.1,
        "mixers-length": 1.13, "mixers-memory": 1.03, "mixers-decode-mamba": 2.2, "mixers-decode-rwkv4": None,
        "mixers-decode-context": None, "mixers-beside-train": 0.6, "mixers-beside-prefill": None,
        "mixers-beside-decode": 0.25, "decode-context": 1.04, "decode-bandwidth": 0.5,
        "decode-int8": 1.65, "decode-transformers": 3.5, "decode-llama": 1.2, "memory": 1.08,
        "import": 1.25, "first-use": 0.8,
    }.items(),
)  # fmt: skip
def test_each_target_finds_its_number(key, value):
    assert BY_KEY[key].find(made_up()) == (value if value is None else pytest.approx(value))


def test_one_refusal_makes_a_mean_and_a_worst_size_unknown():
    results = made_up()
    results["slstm_op"]["w64_b8_forward"] = {"red": "error 1, allowed 0"}
    assert BY_KEY["slstm-forward-mean"].find(results) is None
    assert BY_KEY["slstm-forward-min"].find(results) is None
    assert BY_KEY["slstm-forward_backward-min"].find(results) == 0.9


def test_bounds():
    more, less = BY_KEY["train-mlstm-plain"], BY_KEY["memory"]
    assert (more.goal, less.goal, BY_KEY["decode-bandwidth"].goal) == ("≥ 2x", "≤ 1.1x", "≥ 60 %")
    assert [more.reached(x) for x in (1.99, 2.0, 2.5)] == [False, True, True]
    assert [less.reached(x) for x in (1.0, 1.1, 1.11)] == [True, True, False]
    assert more.margin(3.0) == 1.5
    assert less.margin(2.2) == 0.5


def test_the_table_says_yes_no_and_not_measured():
    rows = {row.split(" | ")[0].lstrip("| "): row for row in target_table(made_up()).splitlines()[2:]}
    assert len(rows) == len(TARGETS)
    assert "| ≥ 2x | 2.50x | yes |" in rows[BY_KEY["train-mlstm-plain"].work]
    assert "| ≥ 12x | 11.0x | **no** |" in rows[BY_KEY["train-all_slstm-plain"].work]
    assert "not measured" in rows[BY_KEY["llama-512"].work]
    assert "| ≥ 50 % | 40 % | **no** |" in rows[BY_KEY["mlstm-forward-sgemm"].work]


def test_targets_are_told_apart_and_limits_belong_to_them():
    assert len({target.work for target in TARGETS}) == len(BY_KEY) == len(TARGETS)
    assert set(limits()) <= set(BY_KEY)


def test_the_picture_is_drawn_whatever_is_there(tmp_path):
    page = tmp_path / "cpu.md"
    page.write_text(PAGE.read_text())
    picture = tmp_path / "cpu.png"
    write_report(RESULTS, page, picture)
    assert picture.read_bytes()[:4] == b"\x89PNG"
    assert page.read_text() == PAGE.read_text()


def test_the_page_shows_the_committed_results():
    """`python -m benchmarks report` would change nothing."""
    assert filled(PAGE.read_text(), *load()) == PAGE.read_text()
    assert PICTURE.exists()
    assert mixers_report.filled(mixers_report.PAGE.read_text(), *load()) == mixers_report.PAGE.read_text()


def test_every_case_is_measured_and_says_where_it_comes_from():
    results, machines = load()
    assert results
    assert results.keys() == set(CASES)
    for case, measured in results.items():
        assert {"cpu", "cores", "threads", "instructions", "torch", "versions"} <= machines[case].keys()
        for name, record in measured.items():
            assert "red" not in record, f"{case}/{name} is refused"
            assert re.fullmatch(r"[0-9a-f]{40}", record["commit"]), "measure from a clean checkout"
            assert record["repeats"] >= fewest(case, name)


def fewest(case, name):
    """Rounds of a measurement: less where a round takes minutes."""
    if case == "mixers_train":
        return PEERS[name].rounds
    return {"memory": 3, "mixers_memory": 3, "mixers_length": mixers_length.ROUNDS}.get(case, 7)


def test_a_number_that_is_not_reached_says_why():
    results, texts = load()[0], limits()
    missed = [t.key for t in TARGETS if (value := t.find(results)) is None or not t.reached(value)]
    assert [key for key in missed if not texts.get(key)] == []
