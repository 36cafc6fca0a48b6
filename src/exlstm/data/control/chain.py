"""memory_len of bsuite (Osband et al. 2020, arXiv:1908.03568): a bit at the start is asked for at the end.

B rows  D width of an observation
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from exlstm.data.control.contract import Flags, Floats
from exlstm.data.packing import IGNORE
from exlstm.data.tasks.contract import Ints, Numbers


class ChainState(NamedTuple):
    """The bit, and the number of actions so far."""

    bit_B: Ints
    place_B: Ints


@dataclass(frozen=True, kw_only=True)
class MemoryChain:
    """An episode of length + 1 actions, of which the last one counts: 1 for the bit, -1 for the other.

    An observation is the time that is left, the number of the bit that is asked (always 0 here), and the bit as -1 or
    1, which is shown before the first two actions and is 0 later: bsuite's first observation comes twice.
    solved: bsuite's bar, a mean regret of less than 0.75 where guessing has 1, is a mean return of more than 0.25.
    """

    length: int
    solved: float = 0.25
    without_memory: float = 0.0

    def __post_init__(self) -> None:
        if self.length < 1:
            raise ValueError(f"length is {self.length}; use at least 1.")

    @property
    def name(self) -> str:
        """Such as memory_len_10."""
        return f"memory_len_{self.length}"

    @property
    def inputs(self) -> int:
        """Time, query, bit."""
        return 3

    @property
    def actions(self) -> int:
        """A bit."""
        return 2

    @property
    def longest(self) -> int:
        """All episodes have this many actions."""
        return self.length + 1

    def begin(self, numbers: Numbers) -> ChainState:
        """A random bit."""
        bit_B = numbers.below("bit", 2, 1)[:, 0]
        return ChainState(bit_B, np.zeros_like(bit_B))

    def observe(self, state: ChainState) -> Floats:
        """Time, query, and the bit while it is shown."""
        time_B = np.maximum(state.place_B - 1, 0)
        shown_B = np.where(time_B == 0, 2 * state.bit_B - 1, 0)
        return np.stack([1 - time_B / self.length, np.zeros(len(time_B)), shown_B], axis=1).astype(np.float32)

    def answers(self, state: ChainState) -> Ints:
        """The bit, at the last action."""
        return np.where(state.place_B == self.length, state.bit_B, IGNORE)

    def advance(self, state: ChainState, action_B: Ints) -> tuple[ChainState, Floats, Flags]:
        """Time goes on."""
        last_B = state.place_B == self.length
        reward_B = np.where(last_B, np.where(action_B == state.bit_B, 1, -1), 0).astype(np.float32)
        return ChainState(state.bit_B, state.place_B + 1), reward_B, last_B
