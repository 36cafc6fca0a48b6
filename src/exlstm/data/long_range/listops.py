"""ListOps (Nangia & Bowman 2018) by the grammar of the Long Range Arena (Tay et al. 2021): nested lists of digits.

    [MAX 4 3 [MIN 2 3 ] 1 0 [MEDIAN 1 5 8 9 2 ] ]    is 5

A node is a digit with probability 3/4, else an operator and a list of 2 to 10 nodes, no deeper than 10. Trees are drawn
until one has a length that is asked for. Brackets open with their operator, so they are one token.
"""

from collections.abc import Iterator
from functools import partial

import numpy as np

from exlstm.data.long_range.contract import ClassTask, Sampled
from exlstm.data.tasks.contract import SplitName

DIGIT = 0.75
OPERATORS = ("MIN", "MAX", "MEDIAN", "SUM")  # SUM is modulo 10
_DIGIT, _OPERATOR, _CLOSE = 1, 11, 15  # the first token of each kind; 0 is padding
_TRIES = 1_000_000


def value_of(tokens: list[int]) -> int:
    """The value of an expression in tokens."""
    stack: list[tuple[int, list[int]]] = []
    for token in tokens:
        if _OPERATOR <= token < _CLOSE:
            stack.append((token - _OPERATOR, []))
            continue
        if token == _CLOSE:
            operator, values = stack.pop()
            found = _apply(operator, values)
        else:
            found = token - _DIGIT
        if not stack:
            return found
        stack[-1][1].append(found)
    raise ValueError("the expression has no end; close every bracket.")


def _apply(operator: int, values: list[int]) -> int:
    name = OPERATORS[operator]
    if name == "SUM":
        return sum(values) % 10
    if name == "MEDIAN":
        return int(np.median(values))
    return min(values) if name == "MIN" else max(values)


def _tree(random: np.random.Generator, depth: int, most: int, room: int) -> Iterator[int]:
    """Tokens of a node. room: above it a tree is too long; more tokens than that are not made."""
    if depth == 0 or random.random() < DIGIT:
        yield _DIGIT + int(random.integers(10))
        return
    yield _OPERATOR + int(random.integers(len(OPERATORS)))
    made = 1
    for _ in range(int(random.integers(2, most + 1))):
        for token in _tree(random, depth - 1, most, room - made):
            made += 1
            yield token
            if made > room:
                return
    yield _CLOSE


def _sample(depth: int, most: int, split: SplitName, random: np.random.Generator, low: int, high: int) -> Sampled:
    for _ in range(_TRIES):
        tokens = list(_tree(random, depth, most, high))
        if low <= len(tokens) <= high:
            return tokens, value_of(tokens)
    raise ValueError(f"trees of {low} to {high} tokens are too rare; ask for a wider range of lengths.")


LISTOPS = ClassTask(
    name="listops",
    about="nested lists of digits, trees of depth 10 with up to 10 arguments; LRA's have 500 to 2,000 tokens",
    vocab_size=16,
    classes=10,
    sample=partial(_sample, 9, 10),
    is_lra=True,
)
LISTOPS_SMALL = ClassTask(
    name="listops_small",
    about="the same grammar with trees of depth 6 and up to 5 arguments, for short rows",
    vocab_size=16,
    classes=10,
    sample=partial(_sample, 5, 5),
)
