"""The commands of the README run as they are written, in order, in one folder, with a smaller budget.

`tests/test_docs.py` runs the README's Python and looks up its targets of make; here are its `exlstm` commands: every
line of a fenced block that begins with `exlstm` or `$ exlstm`. SHORTER is appended, and a later option wins over an
earlier one, so that whatever the README says is parsed and used, only less of it. Recipes and `exlstm demo` train for
minutes by themselves: they get a text and a budget of their own in tests/cli.
"""

import io
import re
import shlex
import shutil
import sys
from pathlib import Path

import exlstm
from exlstm.cli import main

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
FENCE = re.compile(r"^```[^\n]*\n(.*?)^```\s*$", re.MULTILINE | re.DOTALL)
SMALL = ["--batch", "2", "--length", "32", "--validations", "1", "--samples", "0", "--no-yardsticks"]
SHORTER = {
    "train": ["--steps", "2", *SMALL],
    "resume": ["--steps", "4"],
    "eval": ["--tokens", "1000", "--minutes", "0.02"],
    "generate": ["--max-tokens", "5"],
    "convert": ["--tokens", "300"],
    "study run": ["--size", "quick", "--only", "task=parity,model=lstm"],
}


def commands():
    """The words behind `exlstm` of every command in the README."""
    lines = "\n".join(FENCE.findall(README)).replace("\\\n", " ").splitlines()
    found = [shlex.split(line.removeprefix("$ "), comments=True) for line in lines]
    return [words[1:] for words in found if words[:1] == ["exlstm"]]


def slow(words):
    return words[0] == "demo" or any(word.startswith("--recipe") for word in words)


def test_the_main_commands_are_shown():
    assert {words[0] for words in commands()} >= {"train", "eval", "generate"}


def test_commands_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes").mkdir()
    shutil.copytree(ROOT / "study", tmp_path / "study", ignore=shutil.ignore_patterns("results"))
    for number in range(60):
        lines = [f"{number} times {factor} is {number * factor}, as everybody knows\n" for factor in range(400)]
        (tmp_path / f"notes/{number:02}.txt").write_text("".join(lines))
    config = exlstm.lm_from_pattern("MM", vocab_size=257, width=64)
    exlstm.save(exlstm.LM(config), "some-checkpoint", layout="xlstm-large")
    (tmp_path / "some-checkpoint/tokenizer.json").write_text('{"kind": "bytes"}')
    for words in commands():
        if slow(words):
            continue
        kind = "resume" if "--resume" in words else " ".join(words[: 1 + (words[0] == "study")])
        monkeypatch.setattr(sys, "stdin", io.StringIO("how many\n"))
        code = main([*words, *SHORTER.get(kind, [])])
        out, err = capsys.readouterr()
        # notes on speed and state stand in brackets beside the text
        complaints = [line for line in err.splitlines() if not re.fullmatch(r"\[.*\]", line)]
        assert (code, complaints) == (0, []), f"exlstm {' '.join(words)}: {err}"
        assert out.strip() != ""


def test_slow_commands_exist():
    for words in filter(slow, commands()):
        assert main([*words, "--help"]) == 0, words
