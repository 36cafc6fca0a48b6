"""The commands of the README run as they are written, in order, in one folder, with a smaller budget.

`tests/test_docs.py` runs the README's Python; here are its `exlstm` commands. SHORTER is appended, and a later option
wins over an earlier one, so that whatever the README says is parsed and used, only less of it.
"""

import io
import re
import shutil
import sys
from datetime import date, timedelta

import exlstm
from document_commands import ROOT, commands_of, runs
from exlstm.cli import main

SMALL = ["--batch", "2", "--length", "32", "--validations", "1", "--samples", "0", "--no-yardsticks"]
SHORTER = {
    "train": ["--steps", "2", *SMALL],
    "resume": ["--steps", "4"],
    "eval": ["--tokens", "1000", "--minutes", "0.02"],
    "generate": ["--max-tokens", "5"],
    "convert": ["--tokens", "300"],
    "forecast": ["--steps", "3", "--windows", "2"],
    "study run": ["--size", "quick", "--only", "task=parity,model=lstm"],
}


COMMANDS = [words[1:] for words in commands_of(ROOT / "README.md") if runs(words)]


def test_the_main_commands_are_shown():
    assert {words[0] for words in COMMANDS} >= {"train", "eval", "generate"}


def test_commands_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for folder in ("notes", "letters"):
        (tmp_path / folder).mkdir()
    shutil.copytree(ROOT / "study", tmp_path / "study", ignore=shutil.ignore_patterns("results"))
    for number in range(60):
        lines = [f"{number} times {factor} is {number * factor}, as everybody knows\n" for factor in range(400)]
        for folder in ("notes", "letters"):
            (tmp_path / f"{folder}/{number:02}.txt").write_text("".join(lines))
    config = exlstm.lm_from_pattern("MM", vocab_size=257, width=64)
    exlstm.save(exlstm.LM(config), "some-checkpoint", layout="xlstm-large")
    (tmp_path / "some-checkpoint/tokenizer.json").write_text('{"kind": "bytes"}')
    days = [date(2024, 1, 1) + timedelta(days=day) for day in range(200)]
    rows = [f"{day},{day.weekday() * 10 + number % 7}" for number, day in enumerate(days)]
    (tmp_path / "sales.csv").write_text("\n".join(["day,sold", *rows]))
    for words in COMMANDS:
        kind = "resume" if "--resume" in words else " ".join(words[: 1 + (words[0] == "study")])
        monkeypatch.setattr(sys, "stdin", io.StringIO("how many\n"))
        code = main([*words, *SHORTER.get(kind, [])])
        out, err = capsys.readouterr()
        # notes on speed and state stand in brackets beside the text
        complaints = [line for line in err.splitlines() if not re.fullmatch(r"\[.*\]", line)]
        assert (code, complaints) == (0, []), f"exlstm {' '.join(words)}: {err}"
        assert out.strip() != ""
