"""Output that cannot be written, and Ctrl-C before a command has begun."""

import importlib.abc
import os
import subprocess
import sys

import pytest
from processes import run_process

import exlstm.cli
from exlstm.cli import INTERRUPTED, MISTAKE, READER_GONE, main

UNIX = pytest.mark.skipif(sys.platform == "win32", reason="as Unix shells close and break streams")


def started(words, **streams):
    command = [sys.executable, "-m", "exlstm", *words]
    return subprocess.run(command, check=False, text=True, **{"stderr": subprocess.PIPE, **streams})


@UNIX
@pytest.mark.parametrize("words", [["--version"], ["--help"], ["train", "--help"]], ids=" ".join)
def test_a_reader_that_has_gone(words):
    """A closed pipe, as in `exlstm --help | head -1`, behind print, rich or tyro."""
    reads, writes = os.pipe()
    os.close(reads)
    done = started(words, stdout=writes)
    os.close(writes)
    assert (done.returncode, done.stderr) == (READER_GONE, "")


@UNIX
@pytest.mark.parametrize("words", [["--version"], ["train", "--help"]], ids=" ".join)
def test_a_closed_output_is_dropped(words):
    done = started(words, preexec_fn=lambda: os.close(1))
    assert (done.returncode, done.stderr) == (0, "")


@UNIX
def test_a_closed_error_output():
    done = started(["nonsense"], preexec_fn=lambda: os.close(2), stderr=None, stdout=subprocess.PIPE)
    assert (done.returncode, done.stdout) == (MISTAKE, "")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux has a device that is always full")
@pytest.mark.parametrize("words", [["--version"], ["--help"]], ids=" ".join)
def test_a_full_disk_is_one_sentence(words):
    with open("/dev/full", "w") as full:
        done = started(words, stdout=full)
        assert started(words, stdout=full, stderr=full).returncode == MISTAKE
    assert done.returncode == MISTAKE
    assert done.stderr == "exlstm: [Errno 28] No space left on device\n"


def test_ctrl_c_while_importing(monkeypatch, capsys):
    class Pressed(importlib.abc.MetaPathFinder):
        def find_spec(self, name, path, target=None):
            if name == "exlstm.cli.dispatch":
                raise KeyboardInterrupt

    monkeypatch.delitem(sys.modules, "exlstm.cli.dispatch", raising=False)
    monkeypatch.delattr(exlstm.cli, "dispatch", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Pressed(), *sys.meta_path])
    assert main(["presets"]) == INTERRUPTED
    assert capsys.readouterr() == ("", "\n")


def test_what_is_imported_before_ctrl_c_is_answered():
    """And before help is shown: neither torch nor what parses options."""
    code = "import sys, exlstm.cli; print(*{'torch', 'numpy', 'tyro', 'rich'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == ""


def test_help_is_shown_without_torch():
    code = "import sys; from exlstm.cli import main; main(['train', '--help']); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.endswith("False\n")


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("Unable to allocate 7 TiB for an array"),
        type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_memory_that_is_not_enough_is_one_sentence(error, monkeypatch, refused):
    def greedy(*_):
        raise error

    monkeypatch.setattr("exlstm.cli.dispatch._run", greedy)
    assert "the memory is not enough; use a smaller batch, length or model." in refused("presets")


def test_the_name_xlstm_keeps_its_small_x():
    assert "\nxLSTM language models: " in run_process("--help").stdout
