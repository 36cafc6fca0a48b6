"""Decoding: a model, a state, and one token after another.

The first step is called, as every step of a model is, to find out what it does: on a CPU it is recorded, on a GPU it is
captured. From then on it is played or replayed, without the interpreter; a token costs what its kernels cost. The
numbers agree to rounding.

B batch  C classes (vocabulary)
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from exlstm.infer.captured import CapturedSteps
from exlstm.infer.cuda_graph import GraphSteps
from exlstm.infer.steps import Memory, Steps, draws
from exlstm.mixers.state import LMState, leaves
from exlstm.models.lm import LM
from exlstm.models.states.batching import join_rows, take_rows
from exlstm.runtime.capture import NotCapturable

KINDS: dict[str, type[Steps]] = {"cpu": CapturedSteps, "cuda": GraphSteps}  # by type of device


class TokenLoop:
    """logits_BC = loop(tokens_B), again and again, without gradients. `loop.state` is the state after the last token.

        loop = TokenLoop(model, state)             # state: what the model returned, or None for nothing
        while True:
            token_B = loop(token_B).argmax(-1)

    model: an LM, in evaluation mode; its weights may change in between. replay: False calls the model at every step.
    why_not: why steps are not played, if they are not. Raises ValueError for input that does not fit.
    """

    def __init__(self, model: nn.Module, state: LMState | None = None, *, replay: bool = True) -> None:
        self.model: Any = model
        self.before = state
        self.steps: Steps | None = None
        self.why_not = obstacle(model) if replay else "it was not asked for"

    @property
    def state(self) -> LMState | None:
        """The state after the last token; later tokens do not change it."""
        return self.before if self.steps is None else self.steps.memory.copy()

    @torch.inference_mode(False)
    @torch.no_grad()
    def write(self, rows: Sequence[int], state: LMState) -> None:
        """Other states for some rows, between two steps, without recording or capturing a step again.

        Raises ValueError for rows that are not there, a state that does not fit, and a loop that has no state yet.
        """
        held: Any = self.before if self.steps is None else self.steps.memory.now
        size = 0 if held is None else len(leaves(held)[0])
        if wrong := [row for row in rows if not 0 <= row < size]:
            raise ValueError(f"row {wrong[0]} cannot be written: the loop has a state of {size} rows.")
        self.model.check(torch.zeros(len(rows), 1, dtype=torch.long), state, None, None)
        if self.steps is not None:
            self.steps.memory.write(rows, state)
            return
        parts = {row: take_rows(state, [place]) for place, row in enumerate(rows)}
        self.before = join_rows([parts[row] if row in parts else take_rows(held, [row]) for row in range(size)])

    @torch.inference_mode(False)
    @torch.no_grad()
    def __call__(self, tokens_B: Tensor) -> Tensor:
        """The logits after one more token of every row, [B, C]. tokens: [B] integers.

        Raises ValueError for tokens that are not in the vocabulary or not one for every row of the state.
        """
        tokens_B1 = tokens_B[:, None]
        if self.steps is not None and self.steps.fits(tokens_B):
            self.model.check(tokens_B1, None, None, None)
            return self.steps.step(tokens_B)
        self.before, self.steps = self.state, None
        if self.why_not is None:
            self.model.check(tokens_B1, self.before, None, None)
            try:
                kind = kind_of_steps(self.model)
                before = self.model.zero_state(len(tokens_B)) if self.before is None else self.before
                steps = kind(self.model, tokens_B1.long(), Memory(before, kind.sides))
            except NotCapturable as reason:
                self.why_not = str(reason)
            else:
                self.steps = steps
                return steps.step(tokens_B)
        logits_B1C: Tensor
        logits_B1C, self.before = self.model(tokens_B1, self.before)
        return logits_B1C[:, 0]


def obstacle(model: nn.Module) -> str | None:
    """Why a step of this model is not even tried to be played, or None."""
    if not isinstance(model, LM):
        return f"it is a {type(model).__name__}, not an LM"
    device = model.embed.weight.device
    if device.type not in KINDS:
        return f"its weights are on {device}, where nothing plays steps"
    if any(module._forward_hooks or module._forward_pre_hooks for module in model.modules()):
        return "there are hooks, which see the calls of their modules"
    return KINDS[device.type].obstacle(model)


def kind_of_steps(model: LM) -> type[Steps]:
    """What does steps of this model again. NotCapturable if they have to be called."""
    # weights may have moved since a loop was made
    if (problem := obstacle(model)) is not None:
        raise NotCapturable(problem)
    if draws(model):
        raise NotCapturable(
            "it is in training mode, where dropout or a graph draws anew at every step; call its eval() first"
        )
    return KINDS[model.embed.weight.device.type]
