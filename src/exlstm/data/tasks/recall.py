"""Multi-query associative recall (Arora et al. 2023, with the settings of Beck et al. 2024, appendix B.1.2)."""

import numpy as np

from exlstm.data.tasks.contract import PAD, Ints, Numbers, Rows, Task

# Small numbers mean early queries: slot i (from 1) of the gaps has weight i ** (_POWER - 1).
_POWER = 0.01


def recall(*, pairs: int, vocab_size: int = 8192) -> Task:
    """A task of pairs of a key and a value, then each key once more, to be answered by its value.

    c 8 a 5 c | 8 . . a | 5 . .      two pairs in a context of 12; . is the filler 0

    Keys are distinct tokens of the lower half of the vocabulary (without 0), values distinct tokens of the upper half.
    After the pairs come slots of two tokens, one for a key and one for its answer. Each key draws a slot in the order
    of the pairs, without replacement, slot i with a probability that falls like 1 / i: most are early, some late. The
    length of a row is the context, at least 4 x pairs. The filler is 0 as in the paper's experiments; random tokens
    could be keys without a label.

    chance is that of guessing any value. A model that knows the values of the row but not their keys reaches
    1 / pairs. Raises ValueError for a vocabulary with fewer keys than pairs.
    """
    keys, half = vocab_size // 2 - 1, vocab_size // 2
    if pairs < 1 or keys < pairs or vocab_size % 2:
        raise ValueError(
            f"vocab_size={vocab_size} and pairs={pairs} do not fit; use at least 1 pair and an even vocabulary of "
            f"{2 * (max(pairs, 1) + 1)} or more."
        )

    def rows(numbers: Numbers, lengths_B: Ints) -> Rows:
        T, B = int(lengths_B.max()), len(lengths_B)
        key = 1 + _distinct(numbers, "keys", keys, pairs)
        value = half + _distinct(numbers, "values", half, pairs)
        slot = 2 * pairs + 2 * _gaps(numbers, lengths_B // 2 - pairs, pairs)
        tokens_BT = np.full((B, T), PAD)
        answer_BT = np.zeros((B, T), dtype=bool)
        tokens_BT[:, 0 : 2 * pairs : 2], tokens_BT[:, 1 : 2 * pairs : 2] = key, value
        np.put_along_axis(tokens_BT, slot, key, axis=1)
        np.put_along_axis(tokens_BT, slot + 1, value, axis=1)
        np.put_along_axis(answer_BT, slot + 1, True, axis=1)
        return Rows(tokens_BT, answer_BT)

    return Task(
        name=f"recall_{pairs}_of_{vocab_size}",
        vocab_size=vocab_size,
        chance=1 / half,
        shortest=4 * pairs,
        stride=2,
        rows=rows,
    )


def _distinct(numbers: Numbers, purpose: str, among: int, count: int) -> Ints:
    """[B, count] distinct numbers below `among`, in every order equally likely (Fisher and Yates)."""
    B = len(numbers.keys_B)
    rows = np.arange(B)
    jumps = numbers.below(purpose, among - np.arange(count), count)
    pool = np.tile(np.arange(among, dtype=np.int32), (B, 1))
    for j in range(count):
        other = j + jumps[:, j]
        pool[rows, j], pool[rows, other] = pool[rows, other], pool[rows, j]
    return pool[:, :count].astype(np.int64)


def _gaps(numbers: Numbers, slots_B: Ints, pairs: int) -> Ints:
    """[B, pairs] distinct slots below slots_B, drawn in order with weight (slot + 1) ** (_POWER - 1).

    The order of exponential waiting times is such a draw (Efraimidis and Spirakis 2006).
    """
    place = np.arange(int(slots_B.max()))
    waits = -np.log1p(-numbers.uniform("gaps", len(place))) * (place + 1.0) ** (1 - _POWER)
    waits[place >= slots_B[:, None]] = np.inf
    return np.argsort(waits, axis=1, kind="stable")[:, :pairs]
