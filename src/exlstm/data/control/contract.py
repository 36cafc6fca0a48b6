"""The contract of a task of control, and the rows of episodes that an agent acts in.

A task is pure functions of states: the first state from random numbers, what is observed of a state, and what follows
an action. `Environments` runs so many of it side by side. A row whose episode has ended begins the next one in the same
step, so every observation that it returns is one to act on:

    step            0     1     2     3     4
    observation     a0    a1    a2    b0    b1      two episodes, of three actions and more
    begins          yes   no    no    yes   no      reset= of a memory that reads the observation of that step
    reward of       a0    a1    a2    b0            the action at that step, returned beside the next observation

Episode e of row b of B has the random numbers of index e B + b: it is the same whatever happened before it.

B rows  D width of an observation
"""

from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from exlstm.data.tasks.contract import Ints, Numbers, SplitName, numbers_at

Floats = NDArray[np.float32]
Flags = NDArray[np.bool_]


class ControlStep(NamedTuple):
    """What an action leads to. begins_B: the observation is the first of an episode, and the reward the last of one."""

    observation_BD: Floats
    reward_B: Floats
    begins_B: Flags


class ControlTask(Protocol):
    """Rules. A state is a NamedTuple of arrays, rows first, which no function changes."""

    @property
    def name(self) -> str:
        """The name in tables, and the seed of its random numbers."""

    @property
    def inputs(self) -> int:
        """Width of an observation."""

    @property
    def actions(self) -> int:
        """Number of actions: 0, 1, ..."""

    @property
    def longest(self) -> int:
        """The largest number of actions in an episode."""

    @property
    def solved(self) -> float:
        """The mean return from which on the task counts as solved."""

    @property
    def without_memory(self) -> float | None:
        """The best mean return of a policy that sees the newest observation only; None: it is not known."""

    def begin(self, numbers: Numbers) -> Any:
        """First states, a row for each of the random numbers."""

    def observe(self, state: Any) -> Floats:
        """Observations [B, D]."""

    def advance(self, state: Any, action_B: Ints) -> tuple[Any, Floats, Flags]:
        """The next state, the reward, and whether the episode has ended."""

    def answers(self, state: Any) -> Ints:
        """The action that is right in each row, IGNORE where others are as good or none is known."""


class Environments:
    """Rows of episodes of one task, which begin anew by themselves. ValueError for less than one row."""

    def __init__(self, task: ControlTask, rows: int, *, seed: int, split: SplitName) -> None:
        if rows < 1:
            raise ValueError(f"rows is {rows}; use at least 1.")
        self.task, self.rows, self.seed, self.split = task, rows, seed, split
        self.episode_B = np.zeros(rows, dtype=np.uint64)
        self.state = self._begin(np.arange(rows))

    def _begin(self, index: Ints) -> Any:
        """First states of the newest episodes of some rows."""
        place = self.episode_B[index] * np.uint64(self.rows) + index.astype(np.uint64)
        return self.task.begin(numbers_at(self.task.name, place, seed=self.seed, split=self.split))

    def first(self) -> Floats:
        """The observations of the present states."""
        return self.task.observe(self.state)

    def answers(self) -> Ints:
        """The right actions in the present states, IGNORE where there is none."""
        return self.task.answers(self.state)

    def step(self, action_B: Ints) -> ControlStep:
        """Acts in every row. ValueError for actions that there are not."""
        if action_B.shape != (self.rows,) or action_B.min() < 0 or action_B.max() >= self.task.actions:
            raise ValueError(
                f"actions of shape {action_B.shape} from {action_B.min()} to {action_B.max()} do not fit; pass "
                f"{self.rows} of 0 to {self.task.actions - 1}."
            )
        self.state, reward_B, ended_B = self.task.advance(self.state, action_B)
        if ended_B.any():
            index = np.flatnonzero(ended_B)
            self.episode_B[index] += np.uint64(1)
            parts = zip(self.state, self._begin(index), strict=True)
            self.state = type(self.state)(*(_replaced(whole, index, fresh) for whole, fresh in parts))
        return ControlStep(self.task.observe(self.state), reward_B, ended_B)


def _replaced(whole: Any, index: Ints, fresh: Any) -> Any:
    changed = whole.copy()
    changed[index] = fresh
    return changed
