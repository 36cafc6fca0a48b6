"""A step on a CPU, recorded once and then played: no interpreter, nothing allocated."""

import torch
from torch import Tensor

from exlstm.infer.steps import Steps
from exlstm.mixers.contract import leaves
from exlstm.models.lm import LM, LMState
from exlstm.ops.shared import has_numba


class RecordedSteps(Steps):
    """Two sets of state buffers take turns: a step reads one and writes the other."""

    def __init__(self, model: LM, tokens_B1: Tensor, state: LMState | None) -> None:
        from exlstm.ops.numba_replay import Program, record

        super().__init__(model, tokens_B1, state)
        tape, (self.logits_B1C, after) = record(lambda: model.advance(self.tokens_B1, self.first))
        # what was recorded is done once more from the same state, so that no number depends on when a loop began
        self.program: Program = Program(tape, list(zip(leaves(self.first), leaves(after), strict=True)))
        self.states: tuple[LMState, LMState] = (self.first, after)

    @staticmethod
    def obstacle(model: LM) -> str | None:
        """Dtypes that no kernel plays, or no Numba."""
        dtype = model.embed.weight.dtype
        if dtype not in (torch.float32, torch.bfloat16):
            return f"its weights are {dtype}, and kernels that play take float32 and bfloat16"
        return None if has_numba() else "Numba is not installed"

    def do(self) -> None:
        """One call."""
        self.program.play()

    def last(self) -> LMState:
        """What the last step wrote."""
        return self.states[self.program.turn]
