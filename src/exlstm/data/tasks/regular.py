"""Regular languages of the paper (Beck et al. 2024, appendix B.1.1): parity, even pairs, cycle navigation.

Rows and tokens are those of the paper's code.
"""

import numpy as np

from exlstm.data.tasks.contract import Ints, Numbers, prefix_task


def _two_letters(numbers: Numbers, T: int) -> Ints:
    return 1 + numbers.below("symbols", 2, T)


def _parity(tokens_BT: Ints) -> Ints:
    """1 where the number of b so far is even, 2 where it is odd.

    a b b a b | b      tokens: a = 1, b = 2
    """
    return 1 + np.cumsum(tokens_BT == 2, axis=1) % 2


def _even_pairs(tokens_BT: Ints) -> Ints:
    """1 where the number of pairs ab and ba so far is even, 2 where it is odd.

    a b b a b | b      the pairs are ab, ba, ab; tokens: a = 1, b = 2

    It is even exactly where the last symbol equals the first.
    """
    return np.where(tokens_BT == tokens_BT[:, :1], 1, 2)


def _moves(numbers: Numbers, T: int) -> Ints:
    return 1 + numbers.below("moves", 3, T)


def _cycle_navigation(tokens_BT: Ints) -> Ints:
    """The place on a cycle of 5 places that the moves lead to, from place 0.

    + 0 + - + | 2      tokens: stay 0 = 1, forward + = 2, back - = 3, places 0 to 4 = 4 to 8
    """
    steps = np.array([0, 0, 1, -1])[tokens_BT]
    return 4 + np.cumsum(steps, axis=1) % 5


parity = prefix_task(name="parity", vocab_size=3, chance=1 / 2, shortest=2, symbols=_two_letters, labels=_parity)
even_pairs = prefix_task(
    name="even_pairs", vocab_size=3, chance=1 / 2, shortest=3, symbols=_two_letters, labels=_even_pairs
)
cycle_navigation = prefix_task(
    name="cycle_navigation", vocab_size=9, chance=1 / 5, shortest=2, symbols=_moves, labels=_cycle_navigation
)
