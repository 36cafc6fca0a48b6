"""Numbers that make no sense: each is one sentence at once, and nothing is written."""

from pathlib import Path

import pytest

from exlstm.cli import main

STUDIES = str(Path(__file__).parents[2] / "study")
HUGE = "1000000000000"
LONG = "1" * 23


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["train", "--data", "text.txt", "--run", "new", "--batch", "1000000000"], "smaller batch, length or model"),
        (["train", "--data", "text.txt", "--run", "new", "--batch", LONG], "smaller batch, length or model"),
        (["train", "--data", "text.txt", "--run", "new", "--accumulate", HUGE], "--accumulate 1000000000000 makes a"),
        (["train", "--data", "text.txt", "--run", "new", "--seed", LONG], "a whole number of 64 bits"),
        (["train", "--data", "text.txt", "--run", "new", "--minutes", "inf"], "make it finite"),
        (["train", "--data", "text.txt", "--run", "new", "--device", "meta"], "--device 'meta' is not on this machine"),
        (["train", "--data", "text.txt", "--run", "run", "--overwrite", "--seed", LONG], "64 bits"),
        (["train", "--data", "text.txt", "--run", "run", "--overwrite", "--blocks", "a", "--carry-state"], "--carry-s"),
        (["eval", "run", "--minutes", "nan"], "--minutes is nan; it must be at least 0"),
        (["eval", "run", "--tokens", "0"], "--tokens is 0; it must be at least 1"),
        (["eval", "run", "--device", "meta"], "--device 'meta'"),
        (["convert", "run", "out", "--weights", "int8", "--tokens", "0"], "--tokens is 0; it must be at least 1"),
        (["convert", "run", "out", "--weights", "int8", "--minutes", "nan"], "--minutes is nan"),
        (["generate", "run", "--prompt", "a", "--seed", LONG], "a whole number of 64 bits"),
        (["generate", "run", "--prompt", "a", "--samples", LONG], "a whole number of 64 bits"),
        (["generate", "run", "--prompts", "text.txt", "--logprobs", "-1"], "--logprobs is -1; it must be at least 0"),
        (["explain", "laptop-tiny", "--length", HUGE], "1 row of 1,000,000,000,000 tokens need at least"),
        (["explain", "laptop-tiny", "--batch", LONG], "GB of memory and cpu has"),
        (["explain", "laptop-tiny", "--device", "meta"], "--device 'meta'"),
        (["tune", "laptop-tiny", "--length", "0"], "--length is 0; it must be at least 1"),
        (["study", "report", "gates", "--seeds", LONG, "--folder", STUDIES], "--seeds is 111111111111111"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_absurd_numbers_cost_one_sentence(words, sentence, here, capsys):
    before = {path: path.stat().st_mtime_ns for path in here.rglob("*")}
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert sentence in err
    assert err.count("\n") == 1
    assert out in ("", "reading the text ...\n"), "nothing was begun"
    assert {path: path.stat().st_mtime_ns for path in here.rglob("*")} == before


def test_samples_come_in_groups(here, run, monkeypatch):
    """Any number of them in the memory of one group, with the texts that they have together."""
    words = ("generate", "run", "--prompt", "the", "--max-tokens", "4", "--samples", "5", "--seed", "3")
    together = run(*words)
    monkeypatch.setattr("exlstm.cli.generate.GROUP", 2)
    assert run(*words) == together
    assert together.count("--- seed ") == 5
