"""A captured decoding step and the state buffers that its replays read and write, on any device.

B batch  C classes (vocabulary)
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from exlstm.mixers.state import LMState, leaves, map_state
from exlstm.models.lm import LM
from exlstm.runtime.internals import held_tensors


class StateBuffers:
    """Buffers for the states of rows that are decoded, on one side or on two.

    With two sides a step reads the current one and writes the other, which then becomes current. With one side it
    writes where it read.
    """

    def __init__(self, state: LMState, sides: int) -> None:
        first: LMState = map_state(lambda x: x.clone(memory_format=torch.contiguous_format), state)
        self.sides: list[LMState] = [first, *(map_state(torch.zeros_like, first) for _ in range(sides - 1))]
        self.side = 0

    @property
    def current(self) -> LMState:
        """The buffers that hold the states now."""
        return self.sides[self.side]

    def view(self, side: int, start: int, count: int) -> LMState:
        """Neighboring rows of one side, without a copy."""
        view: LMState = map_state(lambda x: x[start : start + count], self.sides[side])
        return view

    def copy(self) -> LMState:
        """A copy of the states of all rows, which later steps do not change."""
        state: LMState = map_state(torch.clone, self.current)
        return state

    def write(self, rows: Sequence[int], state: LMState) -> None:
        """Writes the rows of `state` to these rows."""
        for x, new in zip(leaves(self.current), leaves(state), strict=True):
            for row, new_row in zip(rows, new, strict=True):
                x[row].copy_(new_row)

    def flip(self) -> None:
        """Makes the side current that the last step wrote."""
        self.side = (self.side + 1) % len(self.sides)

    @property
    def nbytes(self) -> int:
        """Bytes of all sides."""
        return sum(x.numel() * x.element_size() for x in leaves(tuple(self.sides)))


class CapturedStep(ABC):
    """A step of neighboring rows of `StateBuffers`, one token per row, captured when it is made.

    tokens_B1: int64, as many as rows; a copy is kept. start: the first row. The capture changes no state in the
    buffers; it raises NotCapturable for a step that cannot be replayed.
    """

    num_sides: ClassVar[int]  # that the buffers must have
    logits_B1C: Tensor  # of the last replay

    def __init__(self, model: LM, tokens_B1: Tensor, buffers: StateBuffers, start: int = 0) -> None:
        # every replay reads tokens at this address
        self.model, self.tokens_B1, self.buffers, self.start = model, tokens_B1.clone(), buffers, start
        self.weights = [
            (tensors, name, x.data_ptr()) for tensors in parameters_and_buffers(model) for name, x in tensors.items()
            if x is not None
        ]  # fmt: skip

    @staticmethod
    @abstractmethod
    def obstacle(model: LM) -> str | None:
        """The reason for which no capture of this model is tried, or None."""

    @abstractmethod
    def replay(self) -> None:
        """Replays the step: it reads tokens and the current side, and writes `logits_B1C` and the other side."""

    def fits(self, tokens_B: Tensor) -> bool:
        """Whether a replay can take these tokens."""
        same_shape = tokens_B.shape == self.tokens_B1.shape[:1] and tokens_B.device == self.tokens_B1.device
        return same_shape and self.is_valid()

    def is_valid(self) -> bool:
        """Whether a replay does what a call would: weights are at their addresses, and no random numbers are drawn."""
        return not draws(self.model) and all(
            tensors[name].data_ptr() == address for tensors, name, address in self.weights
        )  # fmt: skip

    def run(self, tokens_B: Tensor) -> Tensor:
        """The logits [B, C] after a replay with these tokens: a copy, since the next replay overwrites them."""
        self.tokens_B1.copy_(tokens_B[:, None])
        self.replay()
        return self.logits_B1C[:, 0].clone()


def replay_steps(steps: Sequence[CapturedStep], tokens_B: Tensor) -> Tensor:
    """The logits [B, C] after one more token of every row. steps: of neighboring rows in the same buffers, in order."""
    if len(steps) == 1:
        logits_BC = steps[0].run(tokens_B)
    else:
        logits_BC = torch.cat([step.run(tokens_B[step.start : step.start + len(step.tokens_B1)]) for step in steps])
    steps[0].buffers.flip()
    return logits_BC


def draws(model: LM) -> bool:
    """Whether a step draws random numbers; a replay would repeat those of the capture."""
    return model.training and model.config.draws


def parameters_and_buffers(model: nn.Module) -> Iterator[dict[str, Any]]:
    """The parameters of every module by name, and its buffers."""
    for module in model.modules():
        yield from held_tensors(module)
