"""An exported file in its runtime, as a function of arrays of numpy: what a host program does, for checks and timings.

B batch  T time
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import is_zipfile

import numpy as np
import torch
from numpy.typing import NDArray

from exlstm.exporting.export import ABOUT
from exlstm.exporting.onnx_file import check_installed

Array = NDArray[Any]
Call = Callable[[Sequence[Array]], list[Array]]


class ExportedGraph(NamedTuple):
    """`y, state = graph(x, state)`, for any part and format. about: what the file tells about itself."""

    call: Call
    about: dict[str, str]

    def __call__(self, x: Array, state: Sequence[Array] | None = None) -> tuple[Array, list[Array]]:
        """One step, or as many as the part has; state: None before the first step."""
        if state is None:
            state = self.zero_state(x.shape[batch_axis(json.loads(self.about["input"])["shape"])])
        y, *after = self.call([x, *state])
        return y, after

    def zero_state(self, batch: int) -> list[Array]:
        """The state before the first step of `batch` rows."""
        return [
            np.full([batch if isinstance(n, str) else n for n in part["shape"]], part["zero"], dtype=part["dtype"])
            for part in json.loads(self.about["state"])
        ]


def batch_axis(shape: Sequence[int | str]) -> int:
    """The place of the batch among the axes of an input."""
    return list(shape).index("batch")


def read(chunk: ExportedGraph, step: ExportedGraph, x: Array) -> tuple[Array, list[Array]]:
    """A sequence of any length: whole chunks, then the rest by steps. Outputs along time, and the last state."""
    axis, size = int(chunk.about["time_axis"]), int(chunk.about["steps"])
    whole, state, outputs = x.shape[axis] // size * size, None, []
    for start in range(0, whole, size):
        y, state = chunk(x.take(range(start, start + size), axis), state)
        outputs.append(y)
    for t in range(whole, x.shape[axis]):
        y, state = step(x.take(t, axis), state)
        outputs.append(np.expand_dims(y, axis))
    return np.concatenate(outputs, axis), state or []


def open_exported(path: str | Path, *, threads: int = 1) -> ExportedGraph:
    """The file, by ONNX Runtime or by torch. ValueError without onnxruntime for the first."""
    if is_zipfile(path):  # of torch
        files = {ABOUT: ""}
        module = torch.export.load(path, extra_files=files).module()
        return ExportedGraph(by_torch(module), json.loads(files[ABOUT]))
    check_installed("onnxruntime")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    about = session.get_modelmeta().custom_metadata_map
    names = [value.name for value in session.get_inputs()]

    def call(arrays: Sequence[Array]) -> list[Array]:
        found: list[Array] = session.run(None, dict(zip(names, arrays, strict=True)))
        return found

    return ExportedGraph(call, {name.removeprefix("exlstm."): text for name, text in about.items()})


def by_torch(module: torch.nn.Module) -> Call:
    """A program of torch as a function of arrays."""

    def call(arrays: Sequence[Array]) -> list[Array]:
        with torch.no_grad():
            return [x.numpy() for x in module(*map(torch.from_numpy, arrays))]

    return call
