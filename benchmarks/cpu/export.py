"""A step of a small model, batch 1: ours, the same model in plain torch, and its exported files in their runtimes.

Each timing is of several steps in a row, each of which gets the state of the one before. The language model is decoded
as `generate` does it (a replayed step), by calls, and by ONNX Runtime; the nets by calls. "torch.export" is the program
of plain torch that is the other file. All on one thread.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import exlstm
from benchmarks.bench import Bench
from benchmarks.harness import Run, Timing, rounded
from exlstm.exporting.graphs import graph_of
from exlstm.exporting.host import ExportedGraph, open_exported

STEPS = 32
ALLOWED = 1e-4  # of an output, in fed-back float32
FILES = {"ONNX Runtime": ("onnx", "step.onnx"), "torch.export": ("torch", "step.pt2")}
NETS = {"slstm": exlstm.SLSTM, "mlstm": exlstm.MLSTM, "lstm": exlstm.LSTM}


def run(bench: Bench) -> None:
    """Times nets of several widths, and a language model."""
    for width in (32,) if bench.quick else (64, 256):
        for kind, make in NETS.items():
            if bench.wants(f"{kind}_w{width}"):
                torch.manual_seed(0)
                measure(
                    bench, f"{kind}_w{width}", make(width, width).eval(), f"exlstm.{make.__name__} of width {width}"
                )
    if bench.wants("lm"):
        torch.manual_seed(0)
        name = "laptop-tiny" if bench.quick else "laptop-small"
        measure(bench, "lm", exlstm.LM(exlstm.preset(name)).eval(), f"language model {name}")


def measure(bench: Bench, name: str, model: nn.Module, about: str) -> None:
    """One model, beside its files."""
    with TemporaryDirectory() as folder:
        hosts = {file: exported(model, Path(folder, path), form) for file, (form, path) in FILES.items()}
        runs: dict[str, Run] = {"exlstm": partial(by_calls, model)}
        if isinstance(model, exlstm.LM):
            runs = {
                "exlstm": partial(by_loop, exlstm.TokenLoop(model), first(model)),
                "exlstm, model called": runs["exlstm"],
            }
        runs |= {file: partial(by_host, host, first(model)) for file, host in hosts.items()}
        bench.measure(
            name, f"{STEPS} steps in a row, batch 1, {about}", runs, partial(check, model, hosts), derive=per_step
        )


def exported(model: nn.Module, path: Path, form: Any) -> ExportedGraph:
    exlstm.export(model, path, format=form)
    return open_exported(path)


def first(model: nn.Module) -> Tensor:
    """The input of every step."""
    if isinstance(model, exlstm.LM):
        return torch.zeros(1, dtype=torch.long)
    return torch.zeros(1, model.input_size)  # type: ignore[arg-type]


def by_loop(loop: exlstm.TokenLoop, token_B: Tensor) -> None:
    """Steps that were captured once, and are replayed."""
    for _ in range(STEPS):
        loop(token_B)


@torch.inference_mode()
def by_calls(model: nn.Module) -> None:
    """Steps that are calls of the model."""
    x, state = first(model)[None], None
    for _ in range(STEPS):
        _, state = model(x, state)


def by_host(host: ExportedGraph, x: Tensor) -> None:
    """Steps of a file, whose state is arrays of numpy."""
    given, state = x.numpy(), host.zero_state(1)
    for _ in range(STEPS):
        _, state = host(given, state)


@torch.no_grad()
def check(model: nn.Module, hosts: Mapping[str, ExportedGraph]) -> dict[str, Any]:
    """Fed-back steps of every file give the outputs of the model."""
    graph, found = graph_of(model, "step"), {}
    for name, host in hosts.items():
        generator = torch.Generator().manual_seed(1)
        state, theirs, worst = [port.zeros(batch=1) for port in graph.ports.state], host.zero_state(1), 0.0
        for _ in range(STEPS):
            x = first(model)
            if x.is_floating_point():
                x = torch.randn(x.shape, generator=generator)
            else:
                x = torch.randint(graph.ports.y.shape[-1], x.shape, generator=generator)  # type: ignore[call-overload]
            y, *state = graph(x, *state)
            other, theirs = host(x.numpy(), theirs)
            worst = max(worst, float(np.abs(y.numpy() - other).max()))
        assert worst <= ALLOWED, f"{name} differs by {worst:.1e}"
        found[name] = rounded(worst)
    return {"rule": f"outputs within {ALLOWED:.0e} of the model", "largest_difference": found}


def per_step(timings: Mapping[str, Timing], _speed: dict[str, float]) -> dict[str, Any]:
    """Microseconds of a step, and the time of every file as a multiple of ours."""
    each = {name: 1e6 * timing.median / STEPS for name, timing in timings.items()}
    mine = each["exlstm"]
    return {
        "microseconds_per_step": {name: rounded(value) for name, value in each.items()},
        "times_of_exlstm": {name: rounded(value / mine) for name, value in each.items()},
    }
