"""A decoding step on a CPU, captured as a list of kernels: its replay runs no interpreter and allocates nothing."""

import torch
from torch import Tensor

from exlstm.infer.captured_step import CapturedStep, StateBuffers
from exlstm.mixers.state import leaves
from exlstm.models.lm import LM
from exlstm.runtime.availability import no_numba


class CPUGraphStep(CapturedStep):
    """Captured step on two sides of buffers: a replay reads one and writes the other."""

    num_sides = 2

    def __init__(self, model: LM, tokens_B1: Tensor, buffers: StateBuffers, start: int = 0) -> None:
        from exlstm.runtime.cpu.aten import capture_step
        from exlstm.runtime.cpu.graph import CapturedGraph, State

        super().__init__(model, tokens_B1, buffers, start)
        first, second = (buffers.view(side, start, len(tokens_B1)) for side in (0, 1))
        # the states that the capture computes are discarded; the graph is bound to the buffers in their place
        graph, (self.logits_B1C, after) = capture_step(lambda: model.advance(self.tokens_B1, first))
        states = zip(leaves(first), leaves(after), leaves(second), strict=True)
        self.graph = CapturedGraph(graph, [State(read, written, (read, other)) for read, written, other in states])

    @staticmethod
    def obstacle(model: LM) -> str | None:
        """A dtype that the kernels do not take, or a missing Numba."""
        dtype = model.embed.weight.dtype
        if dtype not in (torch.float32, torch.bfloat16):
            return f"its weights are {dtype}, and kernels that are replayed take float32 and bfloat16"
        return no_numba()

    def replay(self) -> None:
        """See `CapturedStep`."""
        self.graph.replay(self.buffers.side)
