"""Decoding: a model, a state, and one token after another.

The first step runs as every call of a model does, and is recorded, where that is possible. From then on it is played:
no interpreter, nothing allocated; a token costs what its kernels cost. The numbers agree to rounding.

B batch  C classes (vocabulary)
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from exlstm.mixers.contract import leaves, map_state
from exlstm.models.lm import LM, LMState
from exlstm.ops.shared import has_numba
from exlstm.ops.tape import NotRecordable

if TYPE_CHECKING:
    from exlstm.ops.numba_replay import Program


@dataclass
class Recorded:
    """A step that can be played, and the memory it works on."""

    program: "Program"
    tokens_B1: Tensor
    logits_B1C: Tensor
    states: tuple[LMState, LMState]  # read and written in turn
    weights: list[tuple[dict[str, Any], str, int]]  # who holds each, its name there, and its address

    def fits(self, tokens_B: Tensor) -> bool:
        """Whether there is one token per row, and the weights are where they were."""
        return tokens_B.shape == self.tokens_B1.shape[:1] and all(
            held[name].data_ptr() == address for held, name, address in self.weights
        )


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
        self.recorded: Recorded | None = None
        self.why_not = None if replay else "it was not asked for"
        if replay and (obstacle := self.obstacle()):
            self.why_not = obstacle

    def obstacle(self) -> str | None:
        """Why a step of this model is not even tried to be recorded, or None."""
        if not isinstance(self.model, LM):
            return f"it is a {type(self.model).__name__}, not an LM"
        weight = self.model.embed.weight
        if weight.device.type != "cpu" or weight.dtype not in (torch.float32, torch.bfloat16):
            return f"its weights are {weight.dtype} on {weight.device}, and kernels that play take two dtypes on a CPU"
        if any(module._forward_hooks or module._forward_pre_hooks for module in self.model.modules()):
            return "there are hooks, which see the calls of their modules"
        return None if has_numba() else "Numba is not installed"

    @property
    def state(self) -> LMState | None:
        """The state after the last token; later tokens do not change it."""
        if self.recorded is None:
            return self.before
        state: LMState = map_state(torch.clone, self.recorded.states[self.recorded.program.turn])
        return state

    @torch.inference_mode(False)
    @torch.no_grad()
    def __call__(self, tokens_B: Tensor) -> Tensor:
        """The logits after one more token of every row, [B, C]. tokens: [B] integers.

        Raises ValueError for tokens that are not in the vocabulary or not one for every row of the state.
        """
        tokens_B1, recorded = tokens_B[:, None], self.recorded
        if recorded is not None and recorded.fits(tokens_B):
            self.model.check(tokens_B1, None, None, None)
            recorded.tokens_B1.copy_(tokens_B1)
            recorded.program.play()
            return self.logits(recorded)
        self.before, self.recorded = self.state, None
        if self.why_not is None:
            self.model.check(tokens_B1, self.before, None, None)
            try:
                self.recorded = self.record(tokens_B1.long())
                return self.logits(self.recorded)
            except NotRecordable as reason:
                self.why_not = str(reason)
        logits_B1C: Tensor
        logits_B1C, self.before = self.model(tokens_B1, self.before)
        return logits_B1C[:, 0]

    @staticmethod
    def logits(recorded: Recorded) -> Tensor:
        """Of the step that was played last, [B, C]; a copy, for the next step overwrites them."""
        return recorded.logits_B1C[:, 0].clone()

    def record(self, tokens_B1: Tensor) -> Recorded:
        """The next step, and what it takes to go on from there. NotRecordable if that is not possible."""
        from exlstm.ops.numba_replay import Program, record

        state = self.model.zero_state(len(tokens_B1)) if self.before is None else self.before
        # memory of its own, which later steps write to
        tokens_B1, state = tokens_B1.clone(), map_state(torch.clone, state)
        tape, (logits_B1C, after) = record(lambda: self.model.advance(tokens_B1, state))
        program = Program(tape, list(zip(leaves(state), leaves(after), strict=True)))
        program.play()  # once more from the same state, so that no number depends on when a loop began
        return Recorded(program, tokens_B1, logits_B1C, (state, after), list(self.weights()))

    def weights(self) -> Iterator[tuple[dict[str, Any], str, int]]:
        """Every tensor of the model: who holds it, its name there, and its address."""
        for module in self.model.modules():
            for held in (module._parameters, module._buffers):
                for name, x in held.items():
                    if x is not None:
                        yield held, name, x.data_ptr()
