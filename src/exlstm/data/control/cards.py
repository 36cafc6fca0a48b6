"""RepeatPrevious of POPGym (Morad et al. 2023, arXiv:2303.01859): say the suit of the card before so many.

B rows  N cards  D width of an observation
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from exlstm.data.control.contract import Flags, Floats
from exlstm.data.packing import IGNORE
from exlstm.data.tasks.contract import Ints, Numbers

SUITS = 4
_DECK = 52


class CardState(NamedTuple):
    """Suits in the order of dealing, and the number of the newest card."""

    suit_BN: Ints
    place_B: Ints


@dataclass(frozen=True, kw_only=True)
class RepeatPrevious:
    """The suit of a card, dealt one at a time, is to be said `lag` cards later; the newest card counts as lag 1.

    Rewards are 1 / (cards - lag) for the right suit and as much below zero for a wrong one, so returns are in [-1, 1].
    Nothing is asked before there are so many cards; the last card of the decks is not asked for.
    """

    lag: int
    decks: int
    solved: float = 0.9
    without_memory: float = -0.5

    def __post_init__(self) -> None:
        if not 1 <= self.lag < self.cards or self.decks < 1:
            raise ValueError(f"lag={self.lag} does not fit {self.decks} decks; use 1 to {self.cards - 1}.")

    @property
    def name(self) -> str:
        """Such as repeat_previous_4."""
        return f"repeat_previous_{self.lag}"

    @property
    def cards(self) -> int:
        """Cards of all decks."""
        return _DECK * self.decks

    @property
    def inputs(self) -> int:
        """The suit, one-hot."""
        return SUITS

    @property
    def actions(self) -> int:
        """A suit."""
        return SUITS

    @property
    def longest(self) -> int:
        """One less than there are cards."""
        return self.cards - 1

    def begin(self, numbers: Numbers) -> CardState:
        """Decks in a random order."""
        order_BN = np.argsort(numbers.bits("cards", self.cards), axis=1)
        return CardState(order_BN % SUITS, np.zeros(len(order_BN), dtype=np.int64))

    def observe(self, state: CardState) -> Floats:
        """The suit of the newest card, one-hot."""
        return np.eye(SUITS, dtype=np.float32)[_suit(state, 0)]

    def answers(self, state: CardState) -> Ints:
        """The suit that is asked for."""
        return np.where(state.place_B + 1 >= self.lag, _suit(state, self.lag - 1), IGNORE)

    def advance(self, state: CardState, action_B: Ints) -> tuple[CardState, Floats, Flags]:
        """Deals a card."""
        answer_B = self.answers(state)
        sign_B = np.where(answer_B == IGNORE, 0, np.where(answer_B == action_B, 1, -1))
        reward_B = (sign_B / (self.cards - self.lag)).astype(np.float32)
        place_B = state.place_B + 1
        return CardState(state.suit_BN, place_B), reward_B, place_B == self.longest


def _suit(state: CardState, before: int) -> Ints:
    """The suit so many cards before the newest, of the first card where there are less."""
    place_B1 = np.maximum(state.place_B - before, 0)[:, None]
    return np.take_along_axis(state.suit_BN, place_B1, axis=1)[:, 0]
