"""Decoding: a model, a state, and one token after another.

The first step is captured: on a CPU as a list of kernels, on a GPU as a CUDA graph. All others replay it without the
interpreter, so a token costs what its kernels cost. Numbers agree with those of calls to rounding. A step that cannot
be captured is a call of the model each time.

B batch  C classes (vocabulary)
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from exlstm.infer.captured_step import CapturedStep, StateBuffers, draws, replay_steps
from exlstm.infer.cpu_graph import CPUGraphStep
from exlstm.infer.cuda_graph import CUDAGraphStep
from exlstm.mixers.state import LMState, leaves
from exlstm.models.lm import LM
from exlstm.models.states.batching import join_rows, take_rows
from exlstm.runtime.capture import NotCapturable
from exlstm.runtime.internals import has_hooks

STEP_CLASSES: dict[str, type[CapturedStep]] = {"cpu": CPUGraphStep, "cuda": CUDAGraphStep}  # by type of device


class TokenLoop:
    """logits_BC = loop(tokens_B), again and again, without gradients. `loop.state` is the state after the last token.

        loop = TokenLoop(model, state)             # state: what the model returned, or None for nothing
        while True:
            token_B = loop(token_B).argmax(-1)

    model: an LM, in evaluation mode; its weights may change in between. replay: False calls the model at every step.
    why_not: the reason for which steps are not replayed, or None. Raises ValueError for input that does not fit.
    """

    def __init__(self, model: nn.Module, state: LMState | None = None, *, replay: bool = True) -> None:
        self.model: Any = model
        self.uncaptured = state  # the state while no step is captured
        self.captured: CapturedStep | None = None
        self.why_not = obstacle(model) if replay else "it was not asked for"

    @property
    def state(self) -> LMState | None:
        """The state after the last token; later tokens do not change it."""
        return self.uncaptured if self.captured is None else self.captured.buffers.copy()

    @torch.inference_mode(False)
    @torch.no_grad()
    def write(self, rows: Sequence[int], state: LMState) -> None:
        """Replaces the states of some rows between two steps; no step is captured again.

        Raises ValueError for rows that are not there, a state that does not fit, and a loop that has no state yet.
        """
        held: Any = self.uncaptured if self.captured is None else self.captured.buffers.current
        size = 0 if held is None else len(leaves(held)[0])
        if wrong := [row for row in rows if not 0 <= row < size]:
            raise ValueError(f"row {wrong[0]} cannot be written: the loop has a state of {size} rows.")
        self.model.check(torch.zeros(len(rows), 1, dtype=torch.long), state, None, None)
        if self.captured is not None:
            self.captured.buffers.write(rows, state)
            return
        parts = {row: take_rows(state, [place]) for place, row in enumerate(rows)}
        self.uncaptured = join_rows([parts[row] if row in parts else take_rows(held, [row]) for row in range(size)])

    @torch.inference_mode(False)
    @torch.no_grad()
    def __call__(self, tokens_B: Tensor) -> Tensor:
        """The logits after one more token of every row, [B, C]. tokens: [B] integers.

        Raises ValueError for tokens that are not in the vocabulary or not one for every row of the state.
        """
        tokens_B1 = tokens_B[:, None]
        if self.captured is not None and self.captured.fits(tokens_B):
            self.model.check(tokens_B1, None, None, None)
            return replay_steps([self.captured], tokens_B)
        self.uncaptured, self.captured = self.state, None
        if self.why_not is None:
            self.model.check(tokens_B1, self.uncaptured, None, None)
            try:
                step = step_class(self.model)
                state = self.model.zero_state(len(tokens_B)) if self.uncaptured is None else self.uncaptured
                captured = step(self.model, tokens_B1.long(), StateBuffers(state, step.num_sides))
            except NotCapturable as reason:
                self.why_not = str(reason)
            else:
                self.captured = captured
                return replay_steps([captured], tokens_B)
        logits_B1C: Tensor
        logits_B1C, self.uncaptured = self.model(tokens_B1, self.uncaptured)
        return logits_B1C[:, 0]


def obstacle(model: nn.Module) -> str | None:
    """The reason for which no capture of this model is tried, or None."""
    if not isinstance(model, LM):
        return f"it is a {type(model).__name__}, not an LM"
    device = model.embed.weight.device
    if model.positions is not None:
        return "it has a table of positions, whose end a replay would not notice"
    if device.type not in STEP_CLASSES:
        return f"its weights are on {device}, where no step can be captured"
    if any(map(has_hooks, model.modules())):
        return "there are hooks, which see the calls of their modules"
    return STEP_CLASSES[device.type].obstacle(model)


def step_class(model: LM) -> type[CapturedStep]:
    """The class of captured steps for the device of this model. NotCapturable for a model that has to be called."""
    # weights may have moved since a loop was made
    if (problem := obstacle(model)) is not None:
        raise NotCapturable(problem)
    if draws(model):
        raise NotCapturable(
            "it is in training mode, where dropout or a graph draws anew at every step; call its eval() first"
        )
    return STEP_CLASSES[model.embed.weight.device.type]
