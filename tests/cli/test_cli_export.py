"""`exlstm export`: a run becomes a file, which is compared with the model."""

import re

import numpy as np
import onnx
import pytest

from exlstm.exporting.host import open_exported
from exlstm.models.locate import locate


def weight_bytes(path):
    """Of the numbers in a file; its operators and names take 25 KB more, which is much beside so small a model."""
    return sum(len(tensor.raw_data) for tensor in onnx.load(path).graph.initializer)


@pytest.mark.slow
def test_a_run_is_exported(here, run, refused, tmp_path):
    out = run("export", "run", "--output", str(tmp_path / "step.onnx"), "--check", "20")
    assert re.search(r"step\.onnx: step \(ONNX, opset 18\), [\d,]+ bytes\ntokens \[batch\] -> logits", out)
    largest = float(re.search(r"logits differ by at most (\S+), of", out)[1])
    assert largest <= 1e-4
    small = run("export", "run", "--int8", "--output", str(tmp_path / "small.onnx"), "--check", "50")
    before, after = map(float, re.search(r"own tokens: (\S+) -> (\S+) nats", small).groups())
    assert after <= 1.01 * before
    assert weight_bytes(tmp_path / "small.onnx") <= 0.3 * weight_bytes(tmp_path / "step.onnx")
    logits, _ = open_exported(tmp_path / "step.onnx")(np.array([7]))
    assert logits.shape == (1, locate("run").config().vocab_size)
    assert "--overwrite" in refused("export", "run", "--output", str(tmp_path / "step.onnx"))


def test_options_that_do_not_fit(here, refused):
    assert "--steps is 0; it must be at least 1" in refused("export", "run", "--steps", "0")
    assert "int8 is for format 'onnx'" in refused("export", "run", "--format", "torch", "--int8")
    assert "there is no run or model at nothing" in refused("export", "nothing")
