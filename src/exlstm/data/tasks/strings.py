"""Tasks that rewrite a string (Deletang et al. 2023, in the encoding of Beck et al. 2024, appendix B.1.1).

`>` is the token that asks for the answer.
"""

from collections.abc import Callable

import numpy as np

from exlstm.data.tasks.contract import PAD, Ints, Numbers, Rows, Task, at, with_answer

_ACT = 1
_LETTERS = 10


def _rewriting(name: str, source: Callable[[Ints, Ints], Ints]) -> Task:
    """A task of k letters, `>`, and the letters in another order: letter j of the answer is letter source(j, k)."""

    def rows(numbers: Numbers, lengths_B: Ints) -> Rows:
        T, k = int(lengths_B.max()), lengths_B[:, None] // 2
        letters = 2 + numbers.below("letters", _LETTERS, T)
        place = np.arange(T)
        answer_BT = (place > k) & (place < lengths_B[:, None])
        moved = np.take_along_axis(letters, np.where(answer_BT, source(place - k - 1, k), 0), axis=1)
        question = np.where(place < k, letters, np.where(place == k, _ACT, PAD))
        return Rows(np.where(answer_BT, moved, question), answer_BT)

    return Task(name=name, vocab_size=12, chance=1 / _LETTERS, shortest=3, stride=2, rows=rows)


def _reversed(j: Ints, k: Ints) -> Ints:
    """4 7 2 5 > | 5 2 7 4      tokens: > = 1, letters 2 to 11"""
    return k - 1 - j


def _repeated(j: Ints, k: Ints) -> Ints:
    """4 7 2 5 > | 4 7 2 5      tokens: > = 1, letters 2 to 11"""
    return j


def _odds_first(j: Ints, k: Ints) -> Ints:
    """The 1st, 3rd, 5th, ... letter, then the 2nd, 4th, ..., as in the paper; Deletang et al. begin with the 2nd.

    4 7 2 5 8 > | 4 2 8 7 5      tokens: > = 1, letters 2 to 11
    """
    odds = (k + 1) // 2
    return np.where(j < odds, 2 * j, 2 * (j - odds) + 1)


def _bucket_sort(numbers: Numbers, lengths_B: Ints) -> Rows:
    """Rows of letters and the same letters sorted. No token asks for the answer: the paper's vocabulary has none.

    4 7 2 4 | 2 4 4 7      letters are tokens 1 to 10
    """
    T, k = int(lengths_B.max()), lengths_B[:, None] // 2
    place = np.arange(T)
    letters = np.where(place < k, 1 + numbers.below("letters", _LETTERS, T), _LETTERS + 1)
    answer_BT = (place >= k) & (place < lengths_B[:, None])
    ordered = np.take_along_axis(np.sort(letters, axis=1), np.where(answer_BT, place - k, 0), axis=1)
    return Rows(np.where(answer_BT, ordered, np.where(place < k, letters, PAD)), answer_BT)


def _missing_duplicate(numbers: Numbers, lengths_B: Ints) -> Rows:
    """Rows of a string and its copy with a hidden letter, which is the answer.

    4 7 2 4 _ 2 | 7      tokens: _ = 1, letters 2 to 10
    """
    T, k = int(lengths_B.max()), lengths_B[:, None] // 2
    place = np.arange(T)
    letters = 2 + numbers.below("letters", _LETTERS - 1, T)
    hidden = numbers.below("hidden", k, 1)
    twice = np.take_along_axis(letters, place % k, axis=1)
    return with_answer(np.where(place == k + hidden, 1, twice), lengths_B, at(letters, hidden[:, 0]))


reverse_string = _rewriting("reverse_string", _reversed)
repetition = _rewriting("repetition", _repeated)
odds_first = _rewriting("odds_first", _odds_first)
bucket_sort = Task(name="bucket_sort", vocab_size=11, chance=1 / _LETTERS, shortest=2, stride=2, rows=_bucket_sort)
missing_duplicate = Task(
    name="missing_duplicate", vocab_size=11, chance=1 / 9, shortest=3, stride=2, rows=_missing_duplicate
)
