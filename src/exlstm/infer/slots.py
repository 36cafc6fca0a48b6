"""The states of sequences that are decoded together: one tensor per layer, a row for every slot.

Rows in use come first. Steps are made for a few sizes, 1, 2, 4, ..., so that few sequences do not pay for all slots,
and all sizes share the same memory: a row is written, read and moved between steps, and nothing is recorded anew.

B rows of a step  C classes (vocabulary)
"""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from exlstm.infer.steps import Memory, Steps
from exlstm.infer.token_loop import KINDS, kind_of_steps, obstacle
from exlstm.mixers.state import LMState, leaves, map_state, state_nbytes
from exlstm.models.lm import LM
from exlstm.models.states.batching import grows, join_rows, take_rows
from exlstm.runtime.capture import NotCapturable

# Where a step of all rows cannot be recorded, so many recorded groups of them are played. Up to 4 took 0.2 to 1.07
# times as long as one call in widths from 64 to 1024; 8 took up to 1.5 times. A rule and not a measurement, for both
# ways round differently.
MOST_GROUPS = 4


class Slots(Protocol):
    """Rows of states. A row's content is what was written to it, and then what the steps made of it."""

    def step(self, tokens: Sequence[int]) -> Tensor:
        """The logits [B, C] after one more token for each of the first B rows."""

    def write(self, row: int, state: LMState) -> None:
        """Puts the state of one sequence into a row."""

    def read(self, row: int) -> LMState:
        """The state in a row; later steps do not change it."""

    def move(self, source: int, target: int) -> None:
        """Puts a row in the place of another."""

    def free(self, row: int) -> None:
        """The state in a row is not needed any more."""

    @property
    def nbytes(self) -> int:
        """Bytes of the memory for states now."""


def slots_of(model: LM, count: int) -> Slots:
    """Room for the states of `count` sequences."""
    return GrowingSlots(model, count) if grows(model) else FixedSlots(model, count)


class FixedSlots:
    """For states of constant size. why_not: why steps are called and not played, if they are."""

    def __init__(self, model: LM, count: int) -> None:
        self.model, self.why_not = model, obstacle(model)
        kind = KINDS.get(model.embed.weight.device.type)
        self.memory = Memory(model.zero_state(count), 1 if kind is None or self.why_not else kind.sides)
        self.sizes = sizes_up_to(count)
        # for each size the groups of rows that are stepped one after another; none: all rows by a call of the model
        self.ways: dict[int, list[Steps]] = {}
        self.spare: dict[tuple[int, int], Steps] = {}

    @property
    def nbytes(self) -> int:
        """Both sets, where there are two."""
        return self.memory.nbytes

    def write(self, row: int, state: LMState) -> None:
        """See `Slots`."""
        self.memory.write([row], state)

    def read(self, row: int) -> LMState:
        """See `Slots`."""
        state: LMState = map_state(torch.clone, self.memory.cut(self.memory.turn, row, 1))
        return state

    def move(self, source: int, target: int) -> None:
        """See `Slots`."""
        self.memory.write([target], self.memory.cut(self.memory.turn, source, 1))

    def free(self, row: int) -> None:
        """Nothing to do: the memory is there for the next."""

    def step(self, tokens: Sequence[int]) -> Tensor:
        """See `Slots`."""
        size = next(size for size in self.sizes if size >= len(tokens))
        device = self.model.embed.weight.device
        tokens_B = torch.tensor([*tokens, *[0] * (size - len(tokens))], device=device)
        way = self.ways.get(size)
        if way is None or not all(steps.current() for steps in way[:1]):
            if way:
                self.ways, self.spare = {}, {}  # the weights have moved
            way = self.ways[size] = self._way(size, tokens_B)
        if not way:
            return self._called(tokens_B[: len(tokens)])
        return self._played(way, tokens_B)[: len(tokens)]

    def _played(self, way: list[Steps], tokens_B: Tensor) -> Tensor:
        if len(way) == 1:
            return way[0].step(tokens_B)
        turn, logits = self.memory.turn, []
        for steps in way:
            self.memory.turn = turn
            logits.append(steps.step(tokens_B[steps.start : steps.start + len(steps.tokens_B1)]))
        return torch.cat(logits)

    def _called(self, tokens_B: Tensor) -> Tensor:
        before = self.memory.cut(self.memory.turn, 0, len(tokens_B))
        logits_B1C: Tensor
        logits_B1C, after = self.model(tokens_B[:, None], before)
        for x, new in zip(leaves(before), leaves(after), strict=True):
            x.copy_(new)
        return logits_B1C[:, 0]

    def _way(self, size: int, tokens_B: Tensor) -> list[Steps]:
        """How to step so many rows: at once, or else in a few groups that can be recorded, or by calls."""
        if self.why_not is not None:
            return []
        for group in [each for each in reversed(self.sizes) if each <= size <= MOST_GROUPS * each]:
            try:
                way = [self._steps(start, min(group, size - start), tokens_B) for start in range(0, size, group)]
            except NotCapturable as reason:
                self.why_not = str(reason)
                continue
            self.why_not = None
            return way
        return []

    def _steps(self, start: int, count: int, tokens_B: Tensor) -> Steps:
        if (start, count) not in self.spare:
            kind = kind_of_steps(self.model)
            self.spare[start, count] = kind(self.model, tokens_B[start : start + count, None], self.memory, start)
        return self.spare[start, count]


class GrowingSlots:
    """For states that grow (attention): rows of any lengths are joined, and called together, until others come.

    A row that has seen less is filled up with entries that nobody looks at.
    """

    why_not = "the state grows"

    def __init__(self, model: LM, count: int) -> None:
        self.model = model
        self.rows: list[LMState] = [model.zero_state(1)] * count
        self.joined: tuple[int, LMState] | None = None  # of the first so many rows

    @property
    def nbytes(self) -> int:
        """Of what is there now."""
        joined = 0 if self.joined is None else state_nbytes(self.joined[1])
        return joined + sum(state_nbytes(row) for row in self.rows)

    def write(self, row: int, state: LMState) -> None:
        """See `Slots`."""
        self._take_apart()
        self.rows[row] = state

    def read(self, row: int) -> LMState:
        """See `Slots`."""
        self._take_apart()
        return self.rows[row]

    def move(self, source: int, target: int) -> None:
        """See `Slots`."""
        self._take_apart()
        self.rows[target] = self.rows[source]

    def free(self, row: int) -> None:
        """See `Slots`."""
        self._take_apart()
        self.rows[row] = self.model.zero_state(1)

    def step(self, tokens: Sequence[int]) -> Tensor:
        """See `Slots`."""
        if self.joined is None or self.joined[0] != len(tokens):
            self._take_apart()
            self.joined = len(tokens), join_rows(self.rows[: len(tokens)])
            self.rows = [self.model.zero_state(1)] * len(tokens) + self.rows[len(tokens) :]
        tokens_B = torch.tensor(tokens, device=self.model.embed.weight.device)
        logits_B1C: Tensor
        logits_B1C, after = self.model(tokens_B[:, None], self.joined[1])
        self.joined = len(tokens), after
        return logits_B1C[:, 0]

    def _take_apart(self) -> None:
        if self.joined is not None:
            count, state = self.joined
            self.rows[:count] = [take_rows(state, [row]) for row in range(count)]
            self.joined = None


def sizes_up_to(count: int) -> list[int]:
    """1, 2, 4, ... and `count` itself."""
    return [*(1 << power for power in range((count - 1).bit_length())), count]
