"""Decoding: a model, a state, and one token after another.

The first step is called, as every step of a model is, to find out what it does: on a CPU it is recorded, on a GPU it is
captured. From then on it is played or replayed, without the interpreter; a token costs what its kernels cost. The
numbers agree to rounding.

B batch  C classes (vocabulary)
"""

from typing import Any

import torch
from torch import Tensor, nn

from exlstm.infer.cuda_graph import GraphSteps
from exlstm.infer.recorded import RecordedSteps
from exlstm.infer.steps import Steps, draws
from exlstm.models.lm import LM, LMState
from exlstm.ops.tape import NotRecordable

KINDS: dict[str, type[Steps]] = {"cpu": RecordedSteps, "cuda": GraphSteps}  # by type of device


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
        return self.before if self.steps is None else self.steps.state()

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
                steps = steps_of(self.model, tokens_B1.long(), self.before)
            except NotRecordable as reason:
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


def steps_of(model: LM, tokens_B1: Tensor, state: LMState | None) -> Steps:
    """The steps from this one on. NotRecordable if they have to be called."""
    # weights may have moved since the loop was made
    if (problem := obstacle(model)) is not None:
        raise NotRecordable(problem)
    if draws(model):
        raise NotRecordable("it is in training mode, where dropout draws anew at every step; call its eval() first")
    return KINDS[model.embed.weight.device.type](model, tokens_B1, state)
