"""Slow solvers of tasks: the answers to a question from its tokens alone, and what drawing and splitting rows take."""

import itertools
from collections import Counter
from collections.abc import Callable

from hypothesis import strategies as st

from exlstm.data.tasks import Task
from exlstm.data.tasks.contract import Ints, Rows, task_rows

SPLITS = ["train", "validation", "test"]


def walked(moves: list[int]) -> int:
    place = 0
    for move in moves:
        if move == 2:
            place = 0 if place == 4 else place + 1
        elif move == 3:
            place = 4 if place == 0 else place - 1
        else:
            assert move == 1
    return 4 + place


def spelled(tokens: list[int], signs: str) -> str:
    """Tokens as Python writes them: signs are tokens 1, 2, ..., digits follow."""
    return " ".join(signs[t - 1] if t <= len(signs) else str(t - len(signs) - 1) for t in tokens)


def computed(tokens: list[int], signs: str) -> list[int]:
    return [len(signs) + 1 + eval(spelled(tokens, signs).removesuffix(" =")) % 5]


def solved(tokens: list[int]) -> list[int]:
    left, right = spelled(tokens, "+-*=()x>").removesuffix(" >").split(" = ")
    assert left.count("x") == 1
    roots = [x for x in range(5) if (eval(left, {"x": x}) - int(right)) % 5 == 0]
    assert len(roots) == 1, "an equation with several solutions"
    return [9 + roots[0]]


def doubled(tokens: list[int]) -> list[int]:
    half = len(tokens) // 2
    first, second = tokens[:half], tokens[half:]
    (hole,) = [i for i, token in enumerate(second) if token == 1]
    assert 1 not in first
    assert [t for i, t in enumerate(first) if i != hole] == [t for t in second if t != 1]
    return [first[hole]]


def before_act(tokens: list[int]) -> list[int]:
    assert tokens[-1] == 1
    assert 1 not in tokens[:-1]
    return tokens[:-1]


def played(tokens: list[int]) -> list[int]:
    stack: list[int] = []
    acting = False
    for token in before_act(tokens):
        if token == 2:
            acting = True
            stack.pop()
            assert stack, "a pop that empties the stack"
        elif token >= 7:
            acting = True
            stack.append(token - 4)
        else:
            assert not acting, "a symbol of the stack after an action"
            stack.append(token)
    return stack[::-1]


def most_frequent(tokens: list[int]) -> tuple[int, int]:
    count = max(Counter(tokens).values())
    reached = [i for i in range(len(tokens)) if tokens[: i + 1].count(tokens[i]) == count]
    return tokens[reached[0]], count


def nearest(tokens: list[int]) -> list[int]:
    key, pairs = tokens[0], list(zip(tokens[1::2], tokens[2::2], strict=True))
    around = [min((d - key) % 64, (key - d) % 64) for d, _ in pairs]
    return [pairs[around.index(min(around))][1]]


def composed(tokens: list[int], degree: int) -> list[int]:
    elements = sorted(itertools.permutations(range(degree)))
    images = list(range(degree))
    for token in tokens:
        images = [elements[token - 1][i] for i in images]
    return [1 + elements.index(tuple(images))]


# what a question's answers are, from its tokens alone
SOLVERS: dict[str, Callable[[list[int]], list[int]]] = {
    "parity": lambda x: [2 if x.count(2) % 2 else 1],
    "even_pairs": lambda x: [1 + sum(a != b for a, b in itertools.pairwise(x)) % 2],
    "cycle_navigation": lambda x: [walked(x)],
    "modular_arithmetic": lambda x: computed(x, "+-*="),
    "modular_arithmetic_brackets": lambda x: computed(x, "+-*=()"),
    "solve_equation": solved,
    "bucket_sort": lambda x: [letter for letter in range(1, 11) for _ in range(x.count(letter))],
    "missing_duplicate": doubled,
    "odds_first": lambda x: before_act(x)[::2] + before_act(x)[1::2],
    "repetition": before_act,
    "reverse_string": lambda x: list(reversed(before_act(x))),
    "stack_manipulation": played,
    "set": lambda x: list(dict.fromkeys(before_act(x))),
    "majority": lambda x: [most_frequent(x)[0]],
    "majority_count": lambda x: [min(63, most_frequent(x)[1])],
    "nearest_neighbour": nearest,
    "s3": lambda x: composed(x, 3),
    "s5": lambda x: composed(x, 5),
    "s5_generators": lambda x: composed(x, 5),
}
CLASSES = {
    "parity": {1, 2},
    "even_pairs": {1, 2},
    "cycle_navigation": set(range(4, 9)),
    "modular_arithmetic": set(range(5, 10)),
    "modular_arithmetic_brackets": set(range(7, 12)),
    "solve_equation": set(range(9, 14)),
    "bucket_sort": set(range(1, 11)),
    "missing_duplicate": set(range(2, 11)),
    **{name: set(range(2, 12)) for name in ("odds_first", "repetition", "reverse_string")},
    "stack_manipulation": set(range(3, 7)),
    "set": set(range(2, 128)),
    "majority": set(range(1, 64)),
    "nearest_neighbour": set(range(65, 81)),
    "s3": set(range(1, 7)),
    "s5": set(range(1, 121)),
    "s5_generators": set(range(1, 121)),
}
DENSE = ["parity", "even_pairs", "cycle_navigation", "modular_arithmetic", "majority", "majority_count"]
DENSE += ["nearest_neighbour", "s3", "s5", "s5_generators"]
# where a prefix of a row is a question: everywhere, if not here
DEFINED = {"nearest_neighbour": lambda t, row: t > 0 and t % 2 == 0}
DEFINED["modular_arithmetic"] = lambda t, row: row[t] >= 5 or row[t] == 4
# everything random about a row: which task, whose numbers, how long
DRAWS = {"seed": st.integers(0, 2**40), "split": st.sampled_from(SPLITS), "first": st.integers(0, 2**40)}


def rows_of(task: Task, *, seed: int = 0, split: str = "train", first: int = 0, size: int, low: int, high: int):
    return task_rows(task, seed=seed, split=split, first=first, size=size, min_length=low, max_length=high)


def split_row(rows: Rows, lengths_B: Ints, b: int) -> tuple[list[int], list[int]]:
    """Question and answers of a row, with what holds for rows of all tasks but recall."""
    tokens, answer, length = rows.tokens_BT[b], rows.answer_BT[b], int(lengths_B[b])
    assert (tokens[:length] > 0).all()
    assert (tokens[length:] == 0).all()
    asked = int(answer.sum())
    assert answer[length - asked : length].all()
    return tokens[: length - asked].tolist(), tokens[length - asked : length].tolist()
