"""A traced graph as an ONNX file of standard operators, and its weights in int8."""

import logging
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from exlstm.exporting.graphs import ExportGraph

if TYPE_CHECKING:
    from onnx import ModelProto
    from torch.export import ExportedProgram

OPSET = 18  # the first that torch's exporter writes; runtimes of 2022 know it
LARGEST = 1_500_000_000  # bytes of a file with its weights inside; above them are beside it
LEAST_INT8 = 1024  # numbers of a matrix that is worth a scale
NUMBERS = {"FLOAT", "INT64", "INT32", "BOOL", "INT8", "UINT8"}  # element types that all runtimes compute with


def check_installed(*packages: str) -> None:
    """ValueError unless these packages are there."""
    if missing := [package for package in packages if find_spec(package) is None]:
        raise ValueError(f"export to ONNX needs {' and '.join(missing)}; install it with: pip install 'exlstm[export]'")


def onnx_model(program: "ExportedProgram", graph: ExportGraph, about: Mapping[str, str]) -> "ModelProto":
    """The program as a checked ONNX model with these texts as its metadata.

    Raises ValueError for what the standard has no operator for.
    """
    check_installed("onnx", "onnxscript")
    import onnx
    from onnx.inliner import inline_local_functions

    with quiet():
        try:
            found: Any = torch.onnx.export(
                program,
                input_names=[port.name for port in graph.ports.inputs],
                output_names=[port.name for port in graph.ports.outputs],
                opset_version=OPSET,
                verbose=False,
            )
        except torch.onnx.OnnxExporterError as error:
            raise ValueError(f"ONNX has no form of this model's {graph.part}: {reason_of(error)}.") from error
        model = inline_local_functions(found.model_proto)
    name_axes(model, graph)
    without_notes(model)
    onnx.helper.set_model_props(model, {f"exlstm.{name}": text for name, text in about.items()})
    onnx.checker.check_model(model, full_check=True)
    check_portable(model)
    return model


@contextmanager
def quiet() -> Iterator[None]:
    """A context without the notes of exporter and quantiser to their own developers."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def reason_of(error: BaseException) -> str:
    """The innermost cause, in one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error).strip().partition("\n")[0].rstrip(".") or type(error).__name__


def name_axes(model: "ModelProto", graph: ExportGraph) -> None:
    """Gives the axes of any size their names."""
    ports = [*graph.ports.inputs, *graph.ports.outputs]
    for value, port in zip([*model.graph.input, *model.graph.output], ports, strict=True):
        assert value.name == port.name
        for axis, size in zip(value.type.tensor_type.shape.dim, port.shape, strict=True):
            if isinstance(size, str):
                axis.dim_param = size
            else:
                axis.dim_value = size


def without_notes(model: "ModelProto") -> None:
    """Removes the exporter's notes at every node: half of a small file, with paths of this machine."""
    for graph in graphs_in(model.graph):
        for part in [graph, *graph.node, *graph.value_info, *graph.initializer, *graph.input, *graph.output]:
            del part.metadata_props[:]
            part.doc_string = ""


def graphs_in(graph: Any) -> Iterator[Any]:
    """A graph of ONNX, and those inside of its nodes: bodies of loops."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in [*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])]:
                yield from graphs_in(inner)


def operators(model: "ModelProto") -> set[str]:
    """The names of all operators, with their domain if that is not ONNX's own."""
    nodes = (node for graph in graphs_in(model.graph) for node in graph.node)
    return {f"{node.domain}::{node.op_type}" if node.domain else node.op_type for node in nodes}


def check_portable(model: "ModelProto") -> None:
    """ValueError for operators outside of the standard, and for numbers that many runtimes do not compute with."""
    from onnx import TensorProto

    if foreign := sorted(name for name in operators(model) if "::" in name):
        raise ValueError(f"the graph has {foreign[0]}, which is no operator of ONNX; report this model to exlstm.")
    kinds = set()
    for graph in graphs_in(model.graph):
        kinds |= {x.data_type for x in graph.initializer}
        kinds |= {x.type.tensor_type.elem_type for x in [*graph.value_info, *graph.input, *graph.output]}
        kinds |= {a.t.data_type for node in graph.node for a in node.attribute if a.HasField("t")}
    names = {TensorProto.DataType.Name(kind) for kind in kinds if kind}
    if other := sorted(names - NUMBERS):
        raise ValueError(f"the graph has tensors of {other[0]}, which many runtimes do not compute with.")


def write_onnx(model: "ModelProto", path: Path) -> None:
    """Writes a file, and beside it one of the weights if they are more than a file may hold."""
    import onnx

    large = model.ByteSize() > LARGEST
    onnx.save_model(model, path, save_as_external_data=large, location=f"{path.name}.data" if large else None)


def in_int8(model: "ModelProto") -> "ModelProto":
    """The model with matrices in int8, and activations rounded as they come (onnxruntime's dynamic quantisation).

    Matrices that it leaves, such as recurrent weights, are stored in int8 and expanded where they are used.
    """
    check_installed("onnx", "onnxruntime")
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with tempfile.TemporaryDirectory() as folder, quiet():
        before, after = Path(folder, "float32.onnx"), Path(folder, "int8.onnx")
        write_onnx(model, before)
        quantize_dynamic(before, after, weight_type=QuantType.QInt8)
        small = onnx.load(after)
    store_in_int8(small)
    del small.metadata_props[:]
    small.metadata_props.extend(model.metadata_props)
    return small


def store_in_int8(model: "ModelProto") -> None:
    """Changes every large float matrix of the graph to int8, with a scale for each slice of its first axis."""
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    nodes = []
    for x in [x for x in model.graph.initializer if x.data_type == TensorProto.FLOAT and len(x.dims) > 1]:
        wide = numpy_helper.to_array(x)
        if wide.size < LEAST_INT8:
            continue
        scale = np.abs(wide).reshape(len(wide), -1).max(axis=1) / 127
        scale = np.where(scale == 0, 1, scale).astype(np.float32)
        small = np.rint(wide / scale.reshape(-1, *[1] * (wide.ndim - 1))).astype(np.int8)
        model.graph.initializer.remove(x)
        for ending, part in (("int8", small), ("scale", scale)):
            model.graph.initializer.append(numpy_helper.from_array(part, f"{x.name}_{ending}"))
        nodes.append(helper.make_node("DequantizeLinear", [f"{x.name}_int8", f"{x.name}_scale"], [x.name], axis=0))
    for node in reversed(nodes):
        model.graph.node.insert(0, node)
