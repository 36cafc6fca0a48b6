"""A step on a CPU, captured once and then replayed: no interpreter, nothing allocated."""

import torch
from torch import Tensor

from exlstm.infer.steps import Memory, Steps
from exlstm.mixers.state import leaves
from exlstm.models.lm import LM
from exlstm.runtime.availability import no_numba


class CapturedSteps(Steps):
    """Two sets of state buffers take turns: a step reads one and writes the other."""

    sides = 2

    def __init__(self, model: LM, tokens_B1: Tensor, memory: Memory, start: int = 0) -> None:
        from exlstm.runtime.cpu.aten import capture_step
        from exlstm.runtime.cpu.graph import CapturedGraph, State

        super().__init__(model, tokens_B1, memory, start)
        here, there = (memory.cut(side, start, len(tokens_B1)) for side in (0, 1))
        # what this run computes is discarded: replays read one set of buffers and write the other
        graph, (self.logits_B1C, after) = capture_step(lambda: model.advance(self.tokens_B1, here))
        states = zip(leaves(here), leaves(after), leaves(there), strict=True)
        self.graph = CapturedGraph(graph, [State(read, written, (read, other)) for read, written, other in states])

    @staticmethod
    def obstacle(model: LM) -> str | None:
        """Dtypes that no kernel replays, or no Numba."""
        dtype = model.embed.weight.dtype
        if dtype not in (torch.float32, torch.bfloat16):
            return f"its weights are {dtype}, and kernels that are replayed take float32 and bfloat16"
        return no_numba()

    def do(self) -> None:
        """One call."""
        self.graph.replay(self.memory.turn)
