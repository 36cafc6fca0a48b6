"""Every example runs, prints something, warns of nothing, and leaves no files; one of them in its own process."""

import runpy
import subprocess
import sys
from pathlib import Path

import pytest

import exlstm

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.py"))
SAYS = {
    "01_forward_and_state": "after any number of tokens",
    "02_train_tiny_lm": "held out:",
    "03_generate": "greedy:",
    "04_packed_documents": "without the reset the second document sees the first",
    "05_hybrid_blocks": "parameters without a gradient: []",
    "06_mixer_in_your_model": "stream of 20,000 bits: 100.00% right",
    "07_onnx_without_exlstm": "XLSTM: 100 steps",
    "08_ppo_with_memory": "8,192 frames  return",
    "09_forecast_a_series": "heat: error",
}


# what a program is told here, so that it ends in a second; it says less than with its own settings
ARGUMENTS = {"08_ppo_with_memory": ["8192"]}
# a program of one file has an environment, an agent and its learning in it, or all that a host of a graph needs
LINES = {"07_onnx_without_exlstm": 150, "08_ppo_with_memory": 120}


def files_for(name, folder):
    """Files that an example reads, as its arguments: the host of a graph gets one."""
    if name != "07_onnx_without_exlstm":
        return []
    exlstm.export(exlstm.XLSTM(3, 16, pattern="M"), folder / "step.onnx")
    return [str(folder / "step.onnx")]


def test_every_example_is_here():
    assert [path.stem for path in EXAMPLES] == list(SAYS)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_runs(path, tmp_path, tmp_path_factory, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    files = files_for(path.stem, tmp_path_factory.mktemp("files"))
    monkeypatch.setattr(sys, "argv", [str(path), *files, *ARGUMENTS.get(path.stem, [])])
    runpy.run_path(str(path), run_name="__main__")
    out, err = capsys.readouterr()
    assert err == ""
    assert SAYS[path.stem] in out
    assert list(tmp_path.iterdir()) == []


def test_an_example_is_a_program(tmp_path):
    done = subprocess.run(
        [sys.executable, "-W", "error", EXAMPLES[0]], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert SAYS[EXAMPLES[0].stem] in done.stdout


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_is_short(path):
    assert len(path.read_text().splitlines()) < LINES.get(path.stem, 60)
