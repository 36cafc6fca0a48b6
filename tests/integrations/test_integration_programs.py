"""The programs of examples/integrations run from the command line, and the Python of the page about them."""

import subprocess
import sys

import pytest

pytest.importorskip("darts", reason="these run by `make test-integrations`, in an environment of their own")

from document_commands import ROOT, blocks

pytestmark = pytest.mark.slow
FOLDER = ROOT / "examples/integrations"
# what each is told here, so that it ends soon, and what it says
PROGRAMS = {
    "darts_xlstm": (["2"], "the last year is forecast with a mean error of"),
    "neuralforecast_xlstm": (["5"], "recurrent  mean absolute error"),
    "sb3_policy": (["--steps", "256"], "of 500 after 256 steps"),
    "torchrl_module": (["2048"], "2,048 frames  mean return"),
}


def test_every_program_is_here():
    assert {path.stem for path in FOLDER.glob("*.py")} == set(PROGRAMS)


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_runs(name, tmp_path):
    arguments, says = PROGRAMS[name]
    command = [sys.executable, FOLDER / f"{name}.py", *arguments]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert says in done.stdout


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_is_short(name):
    assert len((FOLDER / f"{name}.py").read_text().splitlines()) < 190


def test_code_of_the_page_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "__main__"}
    page = ROOT / "docs/integrations.md"
    code = [(text, line) for language, text, line in blocks(page) if language == "py"]
    assert len(code) >= 4
    for text, line in code:
        exec(compile("\n" * line + text, str(page), "exec"), namespace)
