"""Fixtures for the command line: a small run, and commands that must work or be refused."""

import re

import pytest
from processes import TINY, run_process, write_text

from exlstm.cli import main


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A folder with text.txt and a run of a few steps in it; tests that change a run copy it."""
    folder = tmp_path_factory.mktemp("cli")
    write_text(folder / "text.txt")
    done = run_process("train", "--data", "text.txt", "--run", "run", "--steps", "40", *TINY, cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def here(trained, monkeypatch):
    monkeypatch.chdir(trained)
    return trained


@pytest.fixture
def run(capsys):
    """Runs a command here; returns what it wrote to stdout."""

    def run(*words):
        code = main(words)
        out, err = capsys.readouterr()
        # notes on speed and state stand in brackets beside the text
        assert code == 0, err
        assert all(line.startswith("[") and line.endswith("]") for line in err.splitlines()), err
        return out

    return run


@pytest.fixture
def refused(capsys):
    """Runs a command that must fail; returns the one sentence that it wrote to stderr."""

    def refused(*words):
        code = main(words)
        out, err = capsys.readouterr()
        assert code == 2, (code, out)
        assert re.fullmatch(r"exlstm[^:\n]*: [^\n]+\.\n", err), err
        assert "Traceback" not in err
        return err.strip()

    return refused
