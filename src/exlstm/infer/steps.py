"""Decoding steps that are done again rather than called: what loops ask of them, whatever does them.

B batch  C classes (vocabulary)
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from exlstm.mixers.state import LMState, leaves, map_state
from exlstm.models.lm import LM


class Memory:
    """Where the states of some rows are while they are decoded: buffers, in one set or in two that take turns.

    A step of some neighbouring rows reads them in the set whose turn it is. With two sets it writes the other and then
    it is the other's turn; with one it writes where it read.
    """

    def __init__(self, state: LMState, sides: int) -> None:
        first: LMState = map_state(lambda x: x.clone(memory_format=torch.contiguous_format), state)
        self.sides: list[LMState] = [first, *(map_state(torch.zeros_like, first) for _ in range(sides - 1))]
        self.turn = 0

    @property
    def now(self) -> LMState:
        """The buffers that hold the states."""
        return self.sides[self.turn]

    def cut(self, side: int, start: int, count: int) -> LMState:
        """Some neighbouring rows of one set: the memory itself."""
        cut: LMState = map_state(lambda x: x[start : start + count], self.sides[side])
        return cut

    def copy(self) -> LMState:
        """The states of all rows; later steps do not change it."""
        state: LMState = map_state(torch.clone, self.now)
        return state

    def write(self, rows: Sequence[int], state: LMState) -> None:
        """Puts the rows of `state` in the place of these."""
        for x, new in zip(leaves(self.now), leaves(state), strict=True):
            for row, new_row in zip(rows, new, strict=True):
                x[row].copy_(new_row)

    @property
    def nbytes(self) -> int:
        """Bytes of all sets."""
        return sum(x.numel() * x.element_size() for x in leaves(tuple(self.sides)))


class Steps(ABC):
    """The steps of some neighbouring rows in a `Memory`, one token per row each.

    tokens_B1: int64, of the right batch, not changed. start: the first of the rows. What is in the memory stays as it
    is until `do`. Making one raises NotCapturable if that step cannot be done again.
    """

    sides: ClassVar[int]  # sets of buffers that the memory must have
    logits_B1C: Tensor  # of the step that was done last

    def __init__(self, model: LM, tokens_B1: Tensor, memory: Memory, start: int = 0) -> None:
        # memory of its own, which every step reads and later ones write to
        self.model, self.tokens_B1, self.memory, self.start = model, tokens_B1.clone(), memory, start
        self.weights = [
            (held, name, held[name].data_ptr()) for held in holders(model) for name in held if held[name] is not None
        ]

    @staticmethod
    @abstractmethod
    def obstacle(model: LM) -> str | None:
        """Why steps of this model are not even tried, or None."""

    @abstractmethod
    def do(self) -> None:
        """One step, from the tokens and the rows in memory to `logits_B1C` and the rows' next state in memory."""

    def fits(self, tokens_B: Tensor) -> bool:
        """Whether there is one token per row, the model is for use, and its weights are where they were."""
        there = tokens_B.shape == self.tokens_B1.shape[:1] and tokens_B.device == self.tokens_B1.device
        return there and self.current()

    def current(self) -> bool:
        """Whether the model is for use, and its weights are where they were."""
        return not draws(self.model) and all(
            held[name].data_ptr() == address for held, name, address in self.weights
        )  # fmt: skip

    def step(self, tokens_B: Tensor) -> Tensor:
        """The logits after one more token of every row, [B, C]: a copy, for the next step overwrites them.

        It is then the turn of the memory's next set; who steps its rows in groups gives the turn back in between.
        """
        self.tokens_B1.copy_(tokens_B[:, None])
        self.do()
        self.memory.turn = (self.memory.turn + 1) % self.sides
        return self.logits_B1C[:, 0].clone()


def draws(model: LM) -> bool:
    """Whether a step draws random numbers, which would be the same ones again and again."""
    return model.training and model.config.draws


def holders(model: LM) -> Iterator[dict[str, Any]]:
    """Of every module, its parameters and its buffers by name."""
    for module in model.modules():
        yield module._parameters
        yield module._buffers
