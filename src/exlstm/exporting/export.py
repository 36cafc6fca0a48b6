"""`exlstm.export`: a model as a file that runs where exlstm is not installed."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import nn

from exlstm import __version__
from exlstm.exporting.graphs import ExportGraph, Part, graph_of
from exlstm.exporting.onnx_file import OPSET, in_int8, onnx_model, write_onnx
from exlstm.exporting.ports import Ports
from exlstm.exporting.trace import trace
from exlstm.models.locate import locate

if TYPE_CHECKING:
    from torch.export import ExportedProgram

Format = Literal["onnx", "torch"]
FORMATS: tuple[Format, ...] = get_args(Format)
ABOUT = "exlstm.json"  # in a file of torch


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What was written.

    opset: of ONNX, None for torch. nbytes: of the file, and of the weights beside it if they are more than a file
    holds. ports: names, dtypes and shapes of what enters and leaves.
    """

    path: Path
    format: Format
    part: Part
    steps: int | None
    opset: int | None
    nbytes: int
    ports: Ports


def export(
    model: nn.Module | str | Path,
    path: str | Path,
    *,
    format: Format = "onnx",  # noqa: A002 - what everybody calls it
    part: Part = "step",
    steps: int = 16,
    context: int | None = None,
    int8: bool = False,
    overwrite: bool = False,
) -> Exported:
    """Writes a part of a model as a graph with its state as inputs and outputs, in float32, for a batch of any size.

    model: an LM, XLSTM, SLSTM, MLSTM or LSTM of exlstm, or the path of a language model on disk. path: the file.
    format: "onnx", of standard operators alone (opset 18), or "torch", a program of `torch.export`. Neither needs
    exlstm where it runs.
    part: "step", one step; "chunk", `steps` of them at a time, and the rest by the step; "sequence", any number of
    them in a loop inside of the graph. Zeros are the state before the first step. A model that reads both ways has
    sequences only.
    context: for attention without a window, whose state grows: the newest steps that are kept.
    int8: of ONNX, matrices in int8.
    Raises ValueError for a model or a part that has no such form, for a file that is there, and without the packages
    of the extra `export`; TypeError for another model.
    """
    target = Path(path)
    check_target(target, format, int8=int8, overwrite=overwrite)
    if not isinstance(model, nn.Module):
        model = locate(model).load()
    graph = graph_of(model, part, steps=steps, context=context)
    return write(trace(graph), graph, target, form=format, int8=int8)


def write(
    program: "ExportedProgram", graph: ExportGraph, target: Path, *, form: Format, int8: bool = False
) -> Exported:
    """`export` of a graph that has been traced."""
    about = about_graph(graph)
    if form == "onnx":
        found = onnx_model(program, graph, about | {"opset": str(OPSET), "weights": "int8" if int8 else "float32"})
        write_onnx(in_int8(found) if int8 else found, target)
    else:
        torch.export.save(program, target, extra_files={ABOUT: json.dumps(about | {"weights": "float32"})})
    beside = target.with_name(f"{target.name}.data")
    return Exported(
        path=target,
        format=form,
        part=graph.part,
        steps=graph.steps,
        opset=OPSET if form == "onnx" else None,
        nbytes=sum(file.stat().st_size for file in (target, beside) if file.exists()),
        ports=graph.ports,
    )


def about_graph(graph: ExportGraph) -> dict[str, str]:
    """What a host has to know, as texts: names, dtypes and shapes; JSON where it is more than a word."""
    return {
        "version": __version__,
        "model": graph.of,
        "part": graph.part,
        "steps": str(graph.steps or ""),
        "time_axis": str("" if graph.part == "step" else graph.time_axis),
        **graph.ports.to_json(),
    }


def check_target(path: Path, format: Any, *, int8: bool, overwrite: bool) -> None:  # noqa: A002
    """ValueError for another format, for options that do not go together, and for a file that cannot be written."""
    if format not in FORMATS:
        raise ValueError(f"format is {format!r}; it must be one of {', '.join(FORMATS)}.")
    if int8 and format != "onnx":
        raise ValueError("int8 is for format 'onnx'; leave it out, or export to ONNX.")
    if path.is_dir() or (path.exists() and not overwrite):
        raise ValueError(f"{path} exists; replace a file with overwrite=True (--overwrite), or use another name.")
    if not path.parent.is_dir():
        raise ValueError(f"there is no folder {path.parent}; make it first.")
