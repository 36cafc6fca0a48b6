"""Arithmetic modulo 5, without and with brackets, and equations (Deletang et al. 2023, encoded as by Beck et al. 2024).

Answers are not equally likely where `*` occurs: a product is 0 in 9 of 25 cases. Chance is the paper's 1/5 even so.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from exlstm.data.packing import IGNORE
from exlstm.data.tasks.contract import PAD, Ints, Numbers, Rows, Task, at, with_answer

_PLUS, _MINUS, _TIMES, _EQUALS = 1, 2, 3, 4
_OPEN, _CLOSE, _X, _ACT = 5, 6, 7, 8
_MODULUS = 5


def _modular_arithmetic(numbers: Numbers, lengths_B: Ints) -> Rows:
    """Expressions without brackets, products before sums. Rows and tokens are those of the paper's code.

    3 + 2 * 4 - 1 = | 0      tokens: + - * = are 1 to 4, digits 0 to 4 = 5 to 9
    """
    T = int(lengths_B.max())
    digits, operators = numbers.below("digits", _MODULUS, T), 1 + numbers.below("operators", 3, T)
    place = np.arange(T)
    written = np.where(place % 2 == 0, 5 + digits, operators)
    written = np.where(place == lengths_B[:, None] - 2, _EQUALS, written)
    return with_answer(written, lengths_B, at(_values_so_far(written), lengths_B - 2))


def _values_so_far(tokens_BT: Ints) -> Ints:
    """The value of the expression up to each place, as a token; IGNORE behind an operator.

    3 + 2 * 4 - 1 = | 0      3 . 0 . 1 . 0 0
    """
    values_BT = np.full_like(tokens_BT, IGNORE)
    digit = np.maximum(tokens_BT - 5, 0)
    total, product = np.zeros_like(tokens_BT[:, 0]), digit[:, 0]
    for t in range(0, tokens_BT.shape[1], 2):
        if t:
            operator = tokens_BT[:, t - 1]
            times, sign = operator == _TIMES, np.where(operator == _MINUS, -1, 1)
            total = np.where(times, total, (total + product) % _MODULUS)
            product = np.where(times, product * digit[:, t], sign * digit[:, t]) % _MODULUS
        values_BT[:, t] = 5 + (total + product) % _MODULUS
        if t + 1 < tokens_BT.shape[1]:
            values_BT[:, t + 1] = np.where(tokens_BT[:, t + 1] == _EQUALS, values_BT[:, t], IGNORE)
    return values_BT


def _bracketed(numbers: Numbers, lengths_B: Ints) -> Rows:
    """Expressions with brackets around every operation; a minus in front of a digit changes its sign.

    ( 3 * ( 4 - - 1 ) ) = | 0      tokens: + - * = ( ) are 1 to 6, digits 0 to 4 = 7 to 11
    """
    tokens_BT = np.full((len(lengths_B), int(lengths_B.max())), PAD)
    answer_B = np.zeros_like(lengths_B)
    # one random number per token is enough: an operation draws two and has three tokens of its own
    draws = numbers.bits("expression", tokens_BT.shape[1]).tolist()
    for row, length in enumerate(lengths_B.tolist()):
        tokens = _expression(length - 2, iter(draws[row]), (_PLUS, _MINUS, _TIMES), zero=7)
        tokens_BT[row, : length - 1] = [*tokens, _EQUALS]
        answer_B[row] = 7 + _value(tokens, zero=7)
    return with_answer(tokens_BT, lengths_B, answer_B)


def _equations(numbers: Numbers, lengths_B: Ints) -> Rows:
    """Equations to solve for x, which replaces a digit of an expression with brackets; all digits are equally likely.

    ( 3 + ( x - - 1 ) ) = 2 > | 3      tokens: + - * = ( ) x > are 1 to 8, digits 0 to 4 = 9 to 13

    The paper's vocabulary has `*`, with which an equation can have several solutions. As in Deletang et al.,
    expressions have + and - only: then x has a factor of 1 or -1, and there is one solution.
    """
    tokens_BT = np.full((len(lengths_B), int(lengths_B.max())), PAD)
    answer_B = np.zeros_like(lengths_B)
    draws = numbers.bits("expression", tokens_BT.shape[1]).tolist()
    chosen = numbers.bits("unknown", 1)[:, 0].tolist()
    for row, length in enumerate(lengths_B.tolist()):
        tokens = _expression(length - 4, iter(draws[row]), (_PLUS, _MINUS), zero=9)
        value = 9 + _value(tokens, zero=9)
        places = [place for place, token in enumerate(tokens) if token >= 9]
        place = places[chosen[row] % len(places)]
        answer_B[row], tokens[place] = tokens[place], _X
        tokens_BT[row, : length - 1] = [*tokens, _EQUALS, value, _ACT]
    return with_answer(tokens_BT, lengths_B, answer_B)


def _expression(length: int, draws: Iterator[int], operators: Sequence[int], *, zero: int) -> list[int]:
    """A random expression of `length` tokens: d, -d, (d), (-d), or (left operator right), cut at a random place."""
    tokens: list[int] = []
    # a stack of tokens to write, and of lengths of expressions to write, as negative numbers
    todo = [-length]
    while todo:
        item = todo.pop()
        if item > 0:
            tokens.append(item)
        elif item == -1:
            tokens.append(zero + next(draws) % _MODULUS)
        elif item == -2:
            tokens.append(_MINUS)
            todo.append(-1)
        else:
            tokens.append(_OPEN)
            todo.append(_CLOSE)
            if item >= -4:
                todo.append(item + 2)
            else:
                left = 1 + next(draws) % (-item - 4)
                todo += [item + 3 + left, operators[next(draws) % len(operators)], -left]
    return tokens


def _value(tokens: Sequence[int], *, zero: int) -> int:
    """The value of a bracketed expression modulo 5, in one pass."""
    outer: list[tuple[int | None, int | None, int]] = []
    # in the innermost bracket: the value so far, the operator without a right side yet, the sign of the next digit
    value: int | None = None
    operator: int | None = None
    sign = 1
    for token in tokens:
        if token == _OPEN:
            outer.append((value, operator, sign))
            value, operator, sign = None, None, 1
            continue
        if token in (_PLUS, _MINUS, _TIMES):
            if value is None or operator is not None:
                sign = -sign
            else:
                operator = token
            continue
        if token == _CLOSE:
            assert value is not None
            operand = value
            value, operator, sign = outer.pop()
        else:
            operand = sign * (token - zero)
            sign = 1
        value = operand if value is None else _apply(operator, value, operand)
        operator = None
    assert value is not None
    return value % _MODULUS


def _apply(operator: int | None, left: int, right: int) -> int:
    if operator == _TIMES:
        return left * right % _MODULUS
    return (left + right if operator == _PLUS else left - right) % _MODULUS


modular_arithmetic = Task(
    name="modular_arithmetic",
    vocab_size=10,
    chance=1 / 5,
    shortest=3,
    stride=2,
    rows=_modular_arithmetic,
    labels=_values_so_far,
)
modular_arithmetic_brackets = Task(
    name="modular_arithmetic_brackets", vocab_size=12, chance=1 / 5, shortest=3, rows=_bracketed
)
solve_equation = Task(name="solve_equation", vocab_size=14, chance=1 / 5, shortest=5, rows=_equations)
