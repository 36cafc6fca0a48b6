"""Exported files give the model's numbers, for any batch, in fed-back steps and in chunks, without exlstm."""

import json
import subprocess
import sys
from functools import cache

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
from exlstm.exporting.export import write
from exlstm.exporting.graphs import graph_of
from exlstm.exporting.host import open_exported, read
from exlstm.exporting.onnx_file import operators
from exlstm.exporting.trace import trace

FORMATS = {"onnx": "onnx", "torch": "pt2"}
formats = pytest.mark.parametrize("form", FORMATS)
names = pytest.mark.parametrize("name", MODELS)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """files(name, form, part, steps): a file of one of MODELS, opened; each is made once."""
    folder = tmp_path_factory.mktemp("files")

    @cache
    def made(name, form, part, steps):
        path = folder / f"{name}_{part}{steps}.{FORMATS[form]}".replace(" ", "_")
        exlstm.export(MODELS[name](), path, format=form, part=part, steps=steps)
        return open_exported(path)

    def opened(name, form, part, steps=16):
        return made(name, form, part, steps)

    opened.folder = folder
    return opened


def in_time_first(host, x):
    """A sequence, batch first, as this file takes it."""
    return x.numpy() if int(host.about["time_axis"]) else x.transpose(0, 1).numpy()


def batch_first(host, found):
    """Outputs of a sequence with the batch first, and the state."""
    return found if int(host.about["time_axis"]) else (found[0].swapaxes(0, 1), found[1])


def test_a_step_in_both_formats(tmp_path):
    """From one trace, at batches unlike the example's: the numbers of the model's own call."""
    model = encoder()
    graph = graph_of(model, "step")
    program = trace(graph)
    for form, ending in FORMATS.items():
        write(program, graph, tmp_path / f"step.{ending}", form=form)
        step = open_exported(tmp_path / f"step.{ending}")
        for batch in (1, 3, 8):
            x = inputs(model, batch, 6)
            assert difference(by_steps(step, x), own_numbers(model, x)) <= 1e-5
    check_description(step := open_exported(tmp_path / "step.onnx"), onnx.load(tmp_path / "step.onnx"))
    assert (step.about["opset"], step.about["version"], step.about["part"]) == ("18", exlstm.__version__, "step")


def check_description(step, file):
    """A host needs nothing else: names, shapes, dtypes and zeros are in the metadata, and in ONNX's own ports."""
    given, state = json.loads(step.about["input"]), json.loads(step.about["state"])
    assert given == {"name": "x", "dtype": "float32", "shape": ["batch", INPUT]}
    assert [part["name"] for part in state][:2] == ["blocks.0.conv.past", "blocks.0.cell.c"]
    assert all(part["zero"] == 0 and part["after"] == f"{part['name']}_n" for part in state)
    assert [x.name for x in file.graph.input] == ["x", *(part["name"] for part in state)]
    assert [x.name for x in file.graph.output] == ["y", *(part["after"] for part in state)]
    assert [x.version for x in file.opset_import if x.domain == ""] == [18]
    assert "exporting_cases.py" not in str(file)


def test_a_chunk_and_the_rest_by_steps(tmp_path):
    """A sequence of any length, by programs of torch."""
    model = encoder()
    hosts = []
    for part in ("chunk", "step"):
        exlstm.export(model, tmp_path / f"{part}.pt2", format="torch", part=part, steps=4)
        hosts.append(open_exported(tmp_path / f"{part}.pt2"))
    for batch, length in ((1, 3), (5, 11)):
        x = inputs(model, batch, length)
        assert difference(read(*hosts, x.numpy()), own_numbers(model, x)) <= 1e-5


@pytest.mark.slow
@formats
@names
def test_a_thousand_steps(name, form, files):
    """Fed back, from one file at three batches: within 1e-5 of the model's own call, of numbers above 1 a share of it.

    Outputs are within 1e-4 in any case.
    """
    model, step = MODELS[name](), files(name, form, "step")
    for batch in (1, 3, 8):
        x = inputs(model, batch, 1000)
        found, own = by_steps(step, x), own_numbers(model, x)
        assert difference(found, own, shares=True) <= 1e-5
        assert difference(found, own) <= 1e-4


@pytest.mark.slow
@formats
@pytest.mark.parametrize("steps", [16, 64])
@names
def test_chunks_then_steps(name, steps, form, files):
    model, step, chunk = MODELS[name](), files(name, form, "step"), files(name, form, "chunk", steps)
    x = inputs(model, 2, 200)
    for length in (1, steps - 1, steps, steps + 1, 100, 200):
        found = batch_first(chunk, read(chunk, step, in_time_first(chunk, x[:, :length])))
        assert difference(found, own_numbers(model, x[:, :length])) <= 1e-5


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
@names
def test_files_are_portable(name, part, files):
    """Operators of ONNX alone, and no numbers that some runtimes lack."""
    files(name, "onnx", part)
    (path,) = files.folder.glob(f"{name}_{part}16.onnx".replace(" ", "_"))
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
@names
def test_sequences(name, form, files):
    """Any batch and length from one file, unlike those it was traced with."""
    model, host = MODELS[name](), files(name, form, "sequence")
    for batch, steps in ((1, 1), (5, 1), (5, 7), (1, 64), (2, 1000)):
        x = inputs(model, batch, steps)
        found = batch_first(host, host(in_time_first(host, x)))
        assert difference(found, own_numbers(model, x)) <= 1e-5


BOTH_WAYS = {
    "SLSTM": lambda: net("slstm", num_layers=2, bidirectional=True),
    "MLSTM": lambda: net("mlstm", bidirectional=True, batch_first=True),
    "XLSTM": lambda: encoder("msms", bidirectional=True),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", BOTH_WAYS)
def test_sequences_of_both_directions(name, tmp_path):
    model = BOTH_WAYS[name]()
    exlstm.export(model, tmp_path / "sequence.onnx", part="sequence")
    host = open_exported(tmp_path / "sequence.onnx")
    for batch, steps in ((1, 1), (3, 8), (1, 64)):
        x = inputs(model, batch, steps)
        found = batch_first(host, host(in_time_first(host, x)))
        assert difference(found, own_numbers(model, x)) <= 1e-5


def test_the_model_stays_as_it_is():
    """A copy is traced: training, dtype and backend of the model do not change, and plain weights are not copied."""
    model = language_model().train()
    model.blocks[0].mixer.backend = "recurrent"
    graph = graph_of(model, "step")
    assert model.training
    assert not graph.model.training
    assert model.blocks[0].mixer.backend == "recurrent"
    assert graph.model.blocks[0].mixer.backend == "auto"
    assert graph.model.embed.weight.data_ptr() == model.embed.weight.data_ptr()
    assert model.embed.weight.requires_grad
    narrow = language_model().bfloat16()
    assert graph_of(narrow, "step").model.head.weight.dtype is torch.float32
    assert narrow.head.weight.dtype is torch.bfloat16


def test_quantised_models_are_expanded():
    small = exlstm.quantize(language_model(width=64), "int8")
    graph = graph_of(small, "step")
    tokens_B, state = torch.tensor([3, 1]), [port.zeros(batch=2) for port in graph.ports.state]
    found = graph(tokens_B, *state)[0]
    torch.testing.assert_close(found, small(tokens_B[:, None])[0][:, 0], rtol=0, atol=1e-4)


@pytest.mark.slow
def test_a_file_of_int8_is_small(tmp_path):
    """At a size where weights are most of the file, as in any model that is used: less than 0.3 of float32."""
    model = language_model(vocabulary=1000, width=256)
    sizes = []
    for int8 in (False, True):
        path = tmp_path / f"{int8}.onnx"
        exlstm.export(model, path, int8=int8)
        sizes.append(path.stat().st_size)
    assert sizes[1] <= 0.3 * sizes[0]


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
