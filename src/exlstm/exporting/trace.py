"""The one trace of a graph, from which both formats are made."""

from typing import TYPE_CHECKING

import torch

from exlstm.exporting.graphs import ExportGraph
from exlstm.exporting.ports import BATCH, TIME
from exlstm.runtime.tracing import portable_graph

if TYPE_CHECKING:
    from torch.export import ExportedProgram

MOST = {BATCH: 1 << 16, TIME: 1 << 24}  # of the axes of any size


def trace(graph: ExportGraph, *, strict: bool = False) -> "ExportedProgram":
    """The graph as a program of torch, with any batch, and of a sequence any number of steps.

    strict: torch reads the bytecode instead of running it; the program is the same.
    """
    from torch.export import Dim
    from torch.export import export as trace_by_torch

    dims = {name: Dim(name, min=1, max=most) for name, most in MOST.items()}
    axes = [{place: dims[name] for place, name in port.named_axes().items()} for port in graph.ports.inputs]
    shapes = (axes[0], *([tuple(axes[1:])] if axes[1:] else []))  # of x, and of all *state that there is
    with torch.no_grad(), portable_graph():
        program = trace_by_torch(graph, graph.example(), dynamic_shapes=shapes, strict=strict)
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # paths of this machine
    return program
