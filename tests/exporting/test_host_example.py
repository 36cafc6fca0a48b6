"""The example of a host: in a process that has numpy and onnxruntime, and neither exlstm nor torch."""

import subprocess
import sys
from pathlib import Path

import pytest
from exporting_cases import language_model

import exlstm

HOST = Path(__file__).parents[2] / "examples" / "07_onnx_without_exlstm.py"
ALONE = """
import runpy, sys
class Nothing:
    def find_spec(self, name, *_):
        if name.partition(".")[0] in ("exlstm", "torch", "onnx"):
            raise ImportError(name)
sys.meta_path.insert(0, Nothing())
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.slow
def test_it_writes_the_text_of_generate(tmp_path):
    """Greedy, from a step and a chunk; the prompt is shorter than a chunk, and not whole chunks."""
    model = language_model("ms", vocabulary=257)
    for part in ("step", "chunk"):
        exlstm.export(model, tmp_path / f"{part}.onnx", part=part, steps=3)
    files = [str(HOST), str(tmp_path / "step.onnx"), str(tmp_path / "chunk.onnx")]
    done = subprocess.run([sys.executable, "-W", "error", "-c", ALONE, *files], capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    greedy = exlstm.SamplingConfig(temperature=0.0)
    (found,) = exlstm.generate(model, [list(b"def ")], max_tokens=60, sampling=greedy)
    text = bytes(token for token in [*b"def ", *found.tokens] if token < 256).decode(errors="replace")
    assert done.stdout.decode().startswith(text + "\n")
    assert b"nothing of exlstm or torch" in done.stdout
