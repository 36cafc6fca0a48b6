"""Majority and majority count (Beck et al. 2024, appendix B.1.1): 63 symbols, tokens 1 to 63, drawn independently."""

import numpy as np

from exlstm.data.tasks.contract import Ints, Numbers, prefix_task

_SYMBOLS = 63


def _symbols(numbers: Numbers, T: int) -> Ints:
    return 1 + numbers.below("symbols", _SYMBOLS, T)


def _leaders(tokens_BT: Ints) -> tuple[Ints, Ints]:
    """The most frequent symbol so far, and its count."""
    rows = np.arange(len(tokens_BT))
    counts = np.zeros((len(tokens_BT), _SYMBOLS + 1), dtype=np.int64)
    leader, most = np.zeros_like(tokens_BT), np.zeros_like(tokens_BT)
    now, top = np.zeros_like(rows), np.zeros_like(rows)
    for t, symbol in enumerate(tokens_BT.T):
        counts[rows, symbol] += 1
        count = counts[rows, symbol]
        now, top = np.where(count > top, symbol, now), np.maximum(top, count)
        leader[:, t], most[:, t] = now, top
    return leader, most


def _majority(tokens_BT: Ints) -> Ints:
    """The symbol that occurred most often; of several, the first to reach that count.

    7 3 9 3 7 | 3

    The paper does not define ties. The smallest symbol would make small symbols the usual answer, since most short rows
    are ties; with this rule all symbols are equally likely.
    """
    return _leaders(tokens_BT)[0]


def _majority_count(tokens_BT: Ints) -> Ints:
    """The count of the most frequent symbol, at most 63.

    7 3 9 3 7 | 2

    Chance is 1/63 as in the paper, but counts are far from uniform: always answering 2 is right in nearly half of the
    rows of 3 to 40 tokens. Compare with the best constant answer (`best_constant`), not with zero.
    """
    return np.minimum(_leaders(tokens_BT)[1], _SYMBOLS)


majority = prefix_task(
    name="majority", vocab_size=64, chance=1 / _SYMBOLS, shortest=2, symbols=_symbols, labels=_majority
)
majority_count = prefix_task(
    name="majority_count", vocab_size=64, chance=1 / _SYMBOLS, shortest=2, symbols=_symbols, labels=_majority_count
)
