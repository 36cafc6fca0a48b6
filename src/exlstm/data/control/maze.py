"""The T-maze of Bakker 2002 (Reinforcement learning with LSTM, NIPS 14): a sign at the start says where to turn.

B rows  D width of an observation
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from exlstm.data.control.contract import Flags, Floats
from exlstm.data.tasks.contract import Ints, Numbers

NORTH, EAST, SOUTH, WEST = range(4)
GOAL, NUDGE = 4.0, -0.1
_SIGNS = np.array([[1, 1, 0], [0, 1, 1]], dtype=np.float32)  # the goal is in the south, in the north
_CORRIDOR, _JUNCTION = np.array([1, 0, 1], dtype=np.float32), np.array([0, 1, 0], dtype=np.float32)


class MazeState(NamedTuple):
    """Whether the goal is in the north, the place in the corridor, and the number of actions so far."""

    north_B: Ints
    place_B: Ints
    time_B: Ints


@dataclass(frozen=True, kw_only=True)
class TMaze:
    """A corridor of `length` steps to the east, and a turn to the north or the south at its end.

    The right turn has reward 4, the wrong one -0.1, and each ends the episode; an action that leaves the agent in its
    place has -0.1. The sign is seen at the start of the corridor alone. Ours is the limit of 8 length actions.
    """

    length: int
    solved: float = 3.5
    without_memory: float = (GOAL + NUDGE) / 2

    def __post_init__(self) -> None:
        if self.length < 1:
            raise ValueError(f"length is {self.length}; use at least 1.")

    @property
    def name(self) -> str:
        """Such as t_maze_10."""
        return f"t_maze_{self.length}"

    @property
    def inputs(self) -> int:
        """Bakker's code of sign, corridor and junction."""
        return 3

    @property
    def actions(self) -> int:
        """North, east, south, west."""
        return 4

    @property
    def longest(self) -> int:
        """The limit of actions."""
        return 8 * self.length

    def begin(self, numbers: Numbers) -> MazeState:
        """The start of the corridor, with a random goal."""
        north_B = numbers.below("north", 2, 1)[:, 0]
        return MazeState(north_B, np.zeros_like(north_B), np.zeros_like(north_B))

    def observe(self, state: MazeState) -> Floats:
        """The sign at the start, then corridor, then the junction."""
        place_B1 = state.place_B[:, None]
        later_BD = np.where(place_B1 == self.length, _JUNCTION, _CORRIDOR)
        return np.where(place_B1 == 0, _SIGNS[state.north_B], later_BD)

    def answers(self, state: MazeState) -> Ints:
        """East, and the turn at the end."""
        return np.where(state.place_B == self.length, np.where(state.north_B == 1, NORTH, SOUTH), EAST)

    def advance(self, state: MazeState, action_B: Ints) -> tuple[MazeState, Floats, Flags]:
        """Moves, unless there is a wall."""
        turns_B = (state.place_B == self.length) & ((action_B == NORTH) | (action_B == SOUTH))
        move_B = np.where(action_B == EAST, 1, np.where(action_B == WEST, -1, 0))
        place_B = np.clip(state.place_B + move_B, 0, self.length)
        right_B = turns_B & ((action_B == NORTH) == (state.north_B == 1))
        reward_B = np.where(right_B, GOAL, np.where(place_B == state.place_B, NUDGE, 0)).astype(np.float32)
        time_B = state.time_B + 1
        return MazeState(state.north_B, place_B, time_B), reward_B, turns_B | (time_B >= self.longest)
