"""Exported files give the model's numbers, for any batch, in fed-back steps and in chunks, without exlstm."""

import json
import subprocess
import sys

import numpy as np
import onnx
import pytest
import torch
from exporting_cases import (
    INPUT,
    MODELS,
    by_steps,
    difference,
    encoder,
    inputs,
    language_model,
    net,
    own_numbers,
)

import exlstm
from exlstm.exporting.graphs import graph_of
from exlstm.exporting.host import open_exported, read
from exlstm.exporting.onnx_file import operators
from exlstm.exporting.trace import trace

FORMATS = {"onnx": "onnx", "torch": "pt2"}
formats = pytest.mark.parametrize("form", FORMATS)


def exported(model, folder, form="onnx", part="step", **options):
    """The file of this part, opened."""
    path = folder / f"{part}.{FORMATS[form]}"
    exlstm.export(model, path, format=form, part=part, **options)
    return open_exported(path)


@formats
def test_steps_and_chunks(form, tmp_path):
    """From one file any batch, and sequences as whole chunks with the rest by steps."""
    model = encoder()
    step, chunk = (exported(model, tmp_path, form, part, steps=4) for part in ("step", "chunk"))
    for batch in (1, 3, 8):
        x = inputs(model, batch, 11)
        expected = own_numbers(model, x)
        assert difference(by_steps(step, x), expected) <= 1e-5
        assert difference(read(chunk, step, x.numpy()), expected) <= 1e-5


@pytest.mark.slow
@formats
@pytest.mark.parametrize("name", MODELS)
def test_a_thousand_steps(name, form, tmp_path):
    """Fed back, from one file at three batches: outputs and states within 1e-5 of the model's own call."""
    model = MODELS[name]()
    step = exported(model, tmp_path, form)
    for batch in (1, 3, 8):
        x = inputs(model, batch, 1000)
        assert difference(by_steps(step, x), own_numbers(model, x)) <= 1e-5


@pytest.mark.slow
@formats
@pytest.mark.parametrize("steps", [16, 64])
@pytest.mark.parametrize("name", MODELS)
def test_chunks_then_steps(name, steps, form, tmp_path):
    model = MODELS[name]()
    step, chunk = (exported(model, tmp_path, form, part, steps=steps) for part in ("step", "chunk"))
    axis = int(chunk.about["time_axis"])
    x = inputs(model, 2, 200)
    for length in (1, steps - 1, steps, steps + 1, 100, 200):
        part = x[:, :length]
        y, state = read(chunk, step, part.numpy() if axis else part.transpose(0, 1).numpy())
        found = (y if axis else y.swapaxes(0, 1)), state
        assert difference(found, own_numbers(model, part)) <= 1e-5


def test_the_file_says_what_it_takes(tmp_path):
    """A host needs nothing else: names, shapes, dtypes and zeros are in the metadata, and in ONNX's own ports."""
    model = encoder()
    step = exported(model, tmp_path)
    given, state = json.loads(step.about["input"]), json.loads(step.about["state"])
    assert given == {"name": "x", "dtype": "float32", "shape": ["batch", INPUT]}
    assert [part["name"] for part in state][:2] == ["blocks.0.conv.past", "blocks.0.cell.c"]
    assert all(part["zero"] == 0 and part["after"] == f"{part['name']}_n" for part in state)
    assert (step.about["opset"], step.about["version"], step.about["part"]) == ("18", exlstm.__version__, "step")
    file = onnx.load(tmp_path / "step.onnx")
    assert [x.name for x in file.graph.input] == ["x", *(part["name"] for part in state)]
    assert [x.name for x in file.graph.output] == ["y", *(part["after"] for part in state)]
    assert [x.version for x in file.opset_import if x.domain == ""] == [18]
    assert str(tmp_path.parents[2]) not in str(file)


ALONE = """
import sys
class Nothing:
    def find_spec(self, name, *_):
        assert name.partition(".")[0] != "exlstm", "the file needs exlstm"
sys.meta_path.insert(0, Nothing())
import numpy as np, torch
torch.set_num_threads(1)
program = torch.export.load(sys.argv[1]).module()
arrays = np.load(sys.argv[2])
with torch.no_grad():
    found = program(*(torch.from_numpy(arrays[name]) for name in arrays))
np.savez(sys.argv[3], *(x.numpy() for x in found))
"""


@pytest.mark.slow
@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("part", ["step", "chunk"])
@pytest.mark.parametrize("name", MODELS)
def test_programs_of_torch_run_alone(name, part, strict, tmp_path):
    """Exported, saved and run in a process that cannot import exlstm: the numbers of the definitions within 1e-6."""
    graph = graph_of(MODELS[name](), part, steps=4)
    torch.export.save(trace(graph, strict=strict), tmp_path / "graph.pt2")
    shape = [2 if n == "batch" else n for n in graph.ports.x.shape]
    x = torch.randint(11, shape) if graph.ports.x.dtype is torch.int64 else torch.randn(shape)
    given = [x, *(torch.rand_like(port.zeros(batch=2)) for port in graph.ports.state)]
    np.savez(tmp_path / "given.npz", *(value.numpy() for value in given))
    files = [str(tmp_path / name) for name in ("graph.pt2", "given.npz", "found.npz")]
    done = subprocess.run([sys.executable, "-c", ALONE, *files], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for layer in graph.modules():
        if hasattr(layer, "backend"):
            layer.backend = "auto" if type(layer).__name__ in ("Linear", "BlockLinear") else "recurrent"
    with torch.no_grad():
        expected = graph(*given)
    with np.load(tmp_path / "found.npz") as found:
        for name, wanted in zip(found, expected, strict=True):
            assert np.abs(found[name] - wanted.numpy()).max() <= 1e-6 * max(1, float(wanted.abs().max()))


@pytest.mark.slow
@pytest.mark.parametrize("part", ["step", "chunk", "sequence"])
@pytest.mark.parametrize("name", MODELS)
def test_files_are_portable(name, part, tmp_path):
    """Operators of ONNX alone, and no numbers that some runtimes lack."""
    path = tmp_path / "graph.onnx"
    exlstm.export(MODELS[name](), path, part=part, steps=16)
    file = onnx.load(path)
    onnx.checker.check_model(file, full_check=True)
    assert {x.domain for x in file.opset_import} <= {"", "ai.onnx"}
    assert not file.functions
    assert not [operator for operator in operators(file) if ":" in operator]
    assert ("Scan" in operators(file)) == (part == "sequence")
    text = str(file)
    assert "elem_type: 11" not in text, "float64"
    assert "elem_type: 16" not in text, "bfloat16"


@pytest.mark.slow
@formats
@pytest.mark.parametrize("name", MODELS)
def test_sequences(name, form, tmp_path):
    """Any batch and length from one file, unlike those it was traced with."""
    model = MODELS[name]()
    host = exported(model, tmp_path, form, "sequence")
    axis = int(host.about["time_axis"])
    for batch, steps in ((1, 1), (5, 1), (5, 7), (1, 64), (2, 1000)):
        x = inputs(model, batch, steps)
        y, state = host(x.numpy() if axis else x.transpose(0, 1).numpy())
        assert difference((y if axis else y.swapaxes(0, 1), state), own_numbers(model, x)) <= 1e-5


BOTH_WAYS = {
    "SLSTM": lambda: net("slstm", num_layers=2, bidirectional=True),
    "MLSTM": lambda: net("mlstm", bidirectional=True, batch_first=True),
    "XLSTM": lambda: encoder("msms", bidirectional=True),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", BOTH_WAYS)
def test_sequences_of_both_directions(name, tmp_path):
    model = BOTH_WAYS[name]()
    host = exported(model, tmp_path, "onnx", "sequence")
    axis = int(host.about["time_axis"])
    for batch, steps in ((1, 1), (3, 8), (1, 64)):
        x = inputs(model, batch, steps)
        y, state = host(x.numpy() if axis else x.transpose(0, 1).numpy())
        assert difference((y if axis else y.swapaxes(0, 1), state), own_numbers(model, x)) <= 1e-5


def test_the_model_stays_as_it_is():
    """A copy is traced: training, dtype and backend of the model do not change, and plain weights are not copied."""
    model = language_model().train()
    model.blocks[0].mixer.backend = "recurrent"
    graph = graph_of(model, "step")
    assert model.training
    assert not graph.model.training
    assert model.blocks[0].mixer.backend == "recurrent"
    assert graph.model.blocks[0].mixer.backend == "auto"
    assert graph.model.embed.weight is model.embed.weight
    narrow = language_model().bfloat16()
    assert graph_of(narrow, "step").model.head.weight.dtype is torch.float32
    assert narrow.head.weight.dtype is torch.bfloat16


def test_quantised_models_are_expanded():
    small = exlstm.quantize(language_model(width=64), "int8")
    graph = graph_of(small, "step")
    tokens_B, state = torch.tensor([3, 1]), [port.zeros(batch=2) for port in graph.ports.state]
    found = graph(tokens_B, *state)[0]
    torch.testing.assert_close(found, small(tokens_B[:, None])[0][:, 0], rtol=0, atol=1e-4)


def test_attention_keeps_its_context(tmp_path):
    """As without a file up to that many steps."""
    model = language_model("a")
    with pytest.raises(ValueError, match=r"attention without a window, grows .* context=1024"):
        graph_of(model, "step")
    graph = graph_of(model, "step", context=7)
    state = [port.zeros(batch=2) for port in graph.ports.state]
    tokens_BT = inputs(model, 2, 8)
    expected = model(tokens_BT)[0]
    for t in range(8):
        y, *state = graph(tokens_BT[:, t], *state)
        torch.testing.assert_close(y, expected[:, t], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"part": "steps"}, r"^part is 'steps'; it must be one of step, chunk, sequence\.$"),
        ({"part": "chunk", "steps": 0}, r"^steps is 0; a chunk has at least 1\.$"),
        ({"format": "tflite"}, r"^format is 'tflite'; it must be one of onnx, torch\.$"),
        ({"format": "torch", "int8": True}, r"^int8 is for format 'onnx'; leave it out, or export to ONNX\.$"),
    ],
)
def test_refusals(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        exlstm.export(net("lstm"), tmp_path / "x.onnx", **options)
    assert not list(tmp_path.iterdir())


def test_refused_models(tmp_path):
    with pytest.raises(TypeError, match="export takes an LM, XLSTM, SLSTM, MLSTM or LSTM of exlstm, not a Linear"):
        exlstm.export(torch.nn.Linear(1, 1), tmp_path / "x.onnx")
    with pytest.raises(ValueError, match=r"part is 'step', and this SLSTM reads to both ends; export the sequence"):
        exlstm.export(net("slstm", bidirectional=True), tmp_path / "x.onnx")
    (tmp_path / "there").write_text("")
    with pytest.raises(ValueError, match="there exists; replace a file with overwrite=True"):
        exlstm.export(net("lstm"), tmp_path / "there")
    with pytest.raises(ValueError, match="there is no folder"):
        exlstm.export(net("lstm"), tmp_path / "nowhere" / "x.onnx")
