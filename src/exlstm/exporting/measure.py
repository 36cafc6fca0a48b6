"""An exported step beside the model: how far its outputs are from the model's, and how long both take.

B batch  C classes (vocabulary)
"""

from dataclasses import dataclass
from time import perf_counter

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from exlstm.exporting.export import Exported
from exlstm.exporting.graphs import graph_of
from exlstm.exporting.host import open_exported
from exlstm.models.lm import LM


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A file beside its model over some steps of fed-back states.

    largest: the largest difference of an output; scale: the largest output. nats: of a language model, the mean loss
    of both on tokens that the model itself drew; None for others.
    seconds: of a step, of the file.
    """

    steps: int
    largest: float
    scale: float
    nats: tuple[float, float] | None
    seconds: float


def compare(
    model: nn.Module, exported: Exported, *, steps: int = 100, batch: int = 1, context: int | None = None
) -> Comparison:
    """The exported step and the model, each with its own states, on the same inputs: tokens that the model draws."""
    host = open_exported(exported.path)
    graph = graph_of(model, "step", context=context)
    generator = torch.Generator().manual_seed(0)
    x, state = graph.ports.x.zeros(batch=batch), [port.zeros(batch=batch) for port in graph.ports.state]
    theirs, seconds = host.zero_state(batch), 0.0
    largest, scale, losses = 0.0, 0.0, []
    for _ in range(steps):
        if not isinstance(model, LM):
            x = torch.randn(x.shape, generator=generator)
        with torch.no_grad():
            y, *state = graph(x, *state)
        begin = perf_counter()
        found, theirs = host(x.numpy(), theirs)
        seconds += perf_counter() - begin
        largest = max(largest, float(np.abs(found - y.numpy()).max()))
        scale = max(scale, float(y.abs().max()))
        if isinstance(model, LM):
            x = torch.multinomial(y.softmax(-1), 1, generator=generator)[:, 0]
            losses.append([float(cross_entropy(z, x)) for z in (y, torch.from_numpy(found))])
    nats = tuple(np.mean(losses, axis=0).tolist()) if losses else None
    return Comparison(steps=steps, largest=largest, scale=scale, nats=nats, seconds=seconds / steps)
