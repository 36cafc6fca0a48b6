"""The states of sequences that are decoded together: one tensor per layer, a row for every slot.

Rows in use come first. Steps are captured for a few sizes, 1, 2, 4, ..., so that few sequences do not pay for all
slots. All sizes share the same buffers: rows are written, read and moved between steps without a new capture.

B rows of a step  C classes (vocabulary)
"""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from exlstm.infer.captured_step import CapturedStep, StateBuffers, replay_steps
from exlstm.infer.token_loop import STEP_CLASSES, obstacle, step_class
from exlstm.mixers.state import LMState, leaves, map_state, state_nbytes
from exlstm.models.lm import LM
from exlstm.models.states.batching import grows, join_rows, take_rows
from exlstm.runtime.capture import NotCapturable

# Where a step of all rows cannot be captured, at most so many captured groups of rows are replayed. Up to 4 took 0.2 to
# 1.07 times as long as one call in widths from 64 to 1024; 8 took up to 1.5 times. It is a rule and not a measurement,
# since replays and calls round differently.
MOST_GROUPS = 4


class Slots(Protocol):
    """Rows of states: each is written once and then advanced by the steps."""

    def step(self, tokens: Sequence[int]) -> Tensor:
        """The logits [B, C] after one more token for each of the first B rows."""

    def write(self, row: int, state: LMState) -> None:
        """Writes the state of one sequence to a row."""

    def read(self, row: int) -> LMState:
        """The state in a row; later steps do not change it."""

    def move(self, source: int, target: int) -> None:
        """Copies a row over another."""

    def free(self, row: int) -> None:
        """Drops the state in a row."""

    @property
    def nbytes(self) -> int:
        """Bytes that states take now."""


def slots_of(model: LM, count: int) -> Slots:
    """Room for the states of `count` sequences."""
    return GrowingSlots(model, count) if grows(model) else FixedSlots(model, count)


class FixedSlots:
    """Slots for states of constant size. why_not: the reason for which steps are not replayed, or None."""

    def __init__(self, model: LM, count: int) -> None:
        self.model, self.why_not = model, obstacle(model)
        step = STEP_CLASSES.get(model.embed.weight.device.type)
        num_sides = 1 if step is None or self.why_not else step.num_sides
        self.buffers = StateBuffers(model.zero_state(count), num_sides)
        self.sizes = sizes_up_to(count)
        # for each size the captured steps of its groups of rows; none: the model is called on all rows
        self.groups: dict[int, list[CapturedStep]] = {}
        self.captured: dict[tuple[int, int], CapturedStep] = {}  # by first row and number of rows

    @property
    def nbytes(self) -> int:
        """See `Slots`; both sides, where there are two."""
        return self.buffers.nbytes

    def write(self, row: int, state: LMState) -> None:
        """See `Slots`."""
        self.buffers.write([row], state)

    def read(self, row: int) -> LMState:
        """See `Slots`."""
        state: LMState = map_state(torch.clone, self._view(row, 1))
        return state

    def move(self, source: int, target: int) -> None:
        """See `Slots`."""
        self.buffers.write([target], self._view(source, 1))

    def free(self, row: int) -> None:
        """See `Slots`; the buffers stay for the next sequence."""

    def step(self, tokens: Sequence[int]) -> Tensor:
        """See `Slots`."""
        size = next(size for size in self.sizes if size >= len(tokens))
        device = self.model.embed.weight.device
        tokens_B = torch.tensor([*tokens, *[0] * (size - len(tokens))], device=device)
        steps = self.groups.get(size)
        if steps and not steps[0].is_valid():
            self.groups, self.captured, steps = {}, {}, None  # the weights have moved
        if steps is None:
            steps = self.groups[size] = self._capture_groups(size, tokens_B)
        if not steps:
            return self._call(tokens_B[: len(tokens)])
        return replay_steps(steps, tokens_B)[: len(tokens)]

    def _view(self, start: int, count: int) -> LMState:
        return self.buffers.view(self.buffers.side, start, count)

    def _call(self, tokens_B: Tensor) -> Tensor:
        before = self._view(0, len(tokens_B))
        logits_B1C: Tensor
        logits_B1C, after = self.model(tokens_B[:, None], before)
        for x, new in zip(leaves(before), leaves(after), strict=True):
            x.copy_(new)
        return logits_B1C[:, 0]

    def _capture_groups(self, size: int, tokens_B: Tensor) -> list[CapturedStep]:
        """Captured steps that cover `size` rows: as few groups of equal size as can be captured, or none."""
        if self.why_not is not None:
            return []
        for group in [each for each in reversed(self.sizes) if each <= size <= MOST_GROUPS * each]:
            try:
                steps = [self._capture(start, min(group, size - start), tokens_B) for start in range(0, size, group)]
            except NotCapturable as reason:
                self.why_not = str(reason)
                continue
            self.why_not = None
            return steps
        return []

    def _capture(self, start: int, count: int, tokens_B: Tensor) -> CapturedStep:
        if (start, count) not in self.captured:
            step = step_class(self.model)
            self.captured[start, count] = step(
                self.model, tokens_B[start : start + count, None], self.buffers, start
            )  # fmt: skip
        return self.captured[start, count]


class GrowingSlots:
    """Slots for states that grow (attention): rows of any lengths are joined for a call, until the rows change.

    A row that has seen less is padded with entries that attention masks.
    """

    why_not = "the state grows"

    def __init__(self, model: LM, count: int) -> None:
        self.model = model
        self.rows: list[LMState] = [model.zero_state(1)] * count
        self.joined: tuple[int, LMState] | None = None  # number of first rows, and their states

    @property
    def nbytes(self) -> int:
        """See `Slots`."""
        joined = 0 if self.joined is None else state_nbytes(self.joined[1])
        return joined + sum(state_nbytes(row) for row in self.rows)

    def write(self, row: int, state: LMState) -> None:
        """See `Slots`."""
        self._split()
        self.rows[row] = state

    def read(self, row: int) -> LMState:
        """See `Slots`."""
        self._split()
        return self.rows[row]

    def move(self, source: int, target: int) -> None:
        """See `Slots`."""
        self._split()
        self.rows[target] = self.rows[source]

    def free(self, row: int) -> None:
        """See `Slots`."""
        self._split()
        self.rows[row] = self.model.zero_state(1)

    def step(self, tokens: Sequence[int]) -> Tensor:
        """See `Slots`."""
        if self.joined is None or self.joined[0] != len(tokens):
            self._split()
            self.joined = len(tokens), join_rows(self.rows[: len(tokens)])
            self.rows = [self.model.zero_state(1)] * len(tokens) + self.rows[len(tokens) :]
        tokens_B = torch.tensor(tokens, device=self.model.embed.weight.device)
        logits_B1C: Tensor
        logits_B1C, after = self.model(tokens_B[:, None], self.joined[1])
        self.joined = len(tokens), after
        return logits_B1C[:, 0]

    def _split(self) -> None:
        if self.joined is not None:
            count, state = self.joined
            self.rows[:count] = [take_rows(state, [row]) for row in range(count)]
            self.joined = None


def sizes_up_to(count: int) -> list[int]:
    """1, 2, 4, ... and `count` itself."""
    return [*(1 << power for power in range((count - 1).bit_length())), count]
