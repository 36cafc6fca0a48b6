"""Every row of every task against a slow solver that reads the question alone, and what a batch of rows promises."""

import hashlib
import itertools
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from exlstm.data.packing import IGNORE
from exlstm.data.tasks import FORMAL_LANGUAGES, TASKS, Task, best_constant, nearest_neighbours, recall, task_batch
from exlstm.data.tasks.contract import Ints, Numbers, Rows, numbers_for, task_rows
from exlstm.data.tasks.contract import _mix as mix

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
}
DENSE = ["parity", "even_pairs", "cycle_navigation", "modular_arithmetic", "majority", "majority_count"]
DENSE += ["nearest_neighbour", "s3", "s5"]
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


@pytest.mark.parametrize("name", SOLVERS)
@settings(max_examples=10)
@given(low=st.integers(2, 60), more=st.integers(2, 80), **DRAWS)
def test_answers_are_what_a_solver_finds(name: str, low: int, more: int, seed: int, split: str, first: int) -> None:
    task = TASKS[name]
    low = max(low, task.shortest)
    rows, lengths_B = rows_of(task, seed=seed, split=split, first=first, size=6, low=low, high=low + more)
    assert rows.tokens_BT.max() < task.vocab_size
    assert rows.tokens_BT.shape == rows.answer_BT.shape == (6, lengths_B.max())
    for b, length in enumerate(lengths_B.tolist()):
        assert length in task.lengths(low, low + more)
        question, answers = split_row(rows, lengths_B, b)
        assert answers
        assert answers == SOLVERS[name](question)


@pytest.mark.parametrize("name", SOLVERS)
def test_the_shortest_rows(name: str) -> None:
    task = TASKS[name]
    for length in (task.shortest, task.shortest + task.stride):
        rows, lengths_B = rows_of(task, size=20, low=length, high=length)
        assert set(lengths_B.tolist()) == {length}
        for b in range(20):
            question, answers = split_row(rows, lengths_B, b)
            assert answers == SOLVERS[name](question)


@settings(max_examples=30)
@given(pairs=st.integers(1, 20), more=st.integers(0, 40), vocab=st.sampled_from([64, 512, 8192]), **DRAWS)
def test_recall(pairs: int, more: int, vocab: int, seed: int, split: str, first: int) -> None:
    task = recall(pairs=pairs, vocab_size=vocab)
    low = 4 * pairs
    rows, lengths_B = rows_of(task, seed=seed, split=split, first=first, size=4, low=low, high=low + more)
    for tokens, answer, length in zip(
        rows.tokens_BT.tolist(), rows.answer_BT.tolist(), lengths_B.tolist(), strict=True
    ):
        assert length % 2 == 0
        table = dict(zip(tokens[0 : 2 * pairs : 2], tokens[1 : 2 * pairs : 2], strict=True))
        assert len(table) == len(set(table.values())) == pairs
        assert all(0 < key < vocab // 2 for key in table)
        assert all(vocab // 2 <= value < vocab for value in table.values())
        queries = [t for t in range(2 * pairs, len(tokens)) if 0 < tokens[t] < vocab // 2]
        assert sorted(tokens[t] for t in queries) == sorted(table)
        assert [t + 1 for t in queries] == [t for t, asked in enumerate(answer) if asked]
        assert all(t % 2 == 0 and t + 1 < length and tokens[t + 1] == table[tokens[t]] for t in queries)
        assert sum(token > 0 for token in tokens) == 4 * pairs


def test_recall_asks_soon_and_early_keys_sooner() -> None:
    """The first key takes slot i with a probability of i ** -0.99; of several slots none is taken twice."""
    rows, _ = rows_of(recall(pairs=2, vocab_size=64), size=4000, low=24, high=24)
    slots = np.array([[row[4::2].tolist().index(key) for key in (row[0], row[2])] for row in rows.tokens_BT])
    weights = np.arange(1, 11) ** -0.99
    expected = weights / weights.sum()
    found = np.bincount(slots[:, 0], minlength=10) / 4000
    # four standard deviations of a share
    assert (abs(found - expected) < 4 * np.sqrt(expected / 4000)).all()
    after = np.bincount(slots[slots[:, 0] == 0, 1], minlength=10)
    rest = np.where(np.arange(10) > 0, weights, 0) / weights[1:].sum()
    assert (abs(after / after.sum() - rest) <= 4 * np.sqrt(rest / after.sum())).all()
    assert slots[:, 0].mean() < slots[:, 1].mean()


def test_recall_draws_keys_in_every_order_equally_often() -> None:
    """Three of seven keys: 210 orders."""
    rows, _ = rows_of(recall(pairs=3, vocab_size=16), size=8000, low=12, high=12)
    counts = Counter(tuple(row[:6:2]) for row in rows.tokens_BT.tolist())
    assert len(counts) == 210
    assert all(abs(count - 8000 / 210) < 5 * (8000 / 210) ** 0.5 for count in counts.values())


@pytest.mark.parametrize("name", sorted(TASKS))
@settings(max_examples=3)
@given(more=st.integers(2, 30), **DRAWS)
def test_batches_ask_for_answers_and_hide_them(name: str, more: int, seed: int, split: str, first: int) -> None:
    task = TASKS[name]
    draw = {"seed": seed, "split": split, "first": first, "size": 3}
    lengths = {"min_length": task.shortest, "max_length": task.shortest + more}
    rows, lengths_B = task_rows(task, **draw, **lengths)
    batch = task_batch(task, **draw, **lengths)
    assert [part.dtype for part in batch] == [torch.int64, torch.int64, torch.bool, torch.int64]
    assert all(part.is_contiguous() for part in batch)
    assert batch.lengths_B.tolist() == (lengths_B - 1).tolist()
    assert batch.inputs_BT.shape == batch.targets_BT.shape == batch.reset_BT.shape == (3, lengths_B.max() - 1)
    assert batch.reset_BT[:, 0].all()
    assert not batch.reset_BT[:, 1:].any()
    for b, length in enumerate(lengths_B.tolist()):
        inputs, targets = batch.inputs_BT[b].tolist(), batch.targets_BT[b].tolist()
        for t, (read, asked) in enumerate(zip(inputs, targets, strict=True)):
            here, after = (int(rows.tokens_BT[b, s]) for s in (t, t + 1))
            assert read == (0 if rows.answer_BT[b, t] else here)
            assert asked == (after if rows.answer_BT[b, t + 1] else IGNORE)
            assert t < length - 1 or (read in (0, here) and asked == IGNORE)


@pytest.mark.parametrize("name", sorted(TASKS))
def test_no_answer_is_in_the_inputs(name: str) -> None:
    """Other answers in the source: other targets, the same inputs."""
    task = TASKS[name]

    def other(numbers: Numbers, lengths_B: Ints) -> Rows:
        rows = task.rows(numbers, lengths_B)
        return rows._replace(
            tokens_BT=np.where(rows.answer_BT, rows.tokens_BT % (task.vocab_size - 1) + 1, rows.tokens_BT)
        )

    draw = {
        "seed": 1,
        "split": "test",
        "first": 7,
        "size": 8,
        "min_length": task.shortest,
        "max_length": task.shortest + 9,
    }
    true, false = task_batch(task, **draw), task_batch(replace(task, rows=other), **draw)
    assert torch.equal(true.inputs_BT, false.inputs_BT)
    asked = true.targets_BT != IGNORE
    assert asked.any(1).all()
    assert torch.equal(asked, false.targets_BT != IGNORE)
    assert (true.targets_BT != false.targets_BT)[asked].all()


@pytest.mark.parametrize("name", sorted(TASKS))
def test_a_row_is_the_same_in_any_batch(name: str) -> None:
    task = TASKS[name]
    draw = {"seed": 3, "split": "train", "min_length": task.shortest, "max_length": task.shortest + 20}
    whole = task_batch(task, first=10, size=9, **draw)
    for b in (0, 4, 8):
        alone = task_batch(task, first=10 + b, size=1, **draw)
        steps = int(alone.lengths_B)
        assert int(whole.lengths_B[b]) == steps
        assert torch.equal(whole.inputs_BT[b, :steps], alone.inputs_BT[0])
        assert torch.equal(whole.targets_BT[b, :steps], alone.targets_BT[0])


@pytest.mark.parametrize("name", sorted(TASKS))
def test_seeds_splits_and_rows_differ(name: str) -> None:
    task = TASKS[name]
    length = task.lengths(max(task.shortest, 80), 2000)[0]
    found = [
        rows_of(task, seed=seed, split=split, first=first, size=4, low=length, high=length)[0].tokens_BT
        for seed, split, first in [
            (0, "train", 0),
            (1, "train", 0),
            (0, "validation", 0),
            (0, "test", 0),
            (0, "train", 4),
        ]
    ]
    rows = [row.tobytes() for part in found for row in part]
    assert len(set(rows)) == len(rows)


def test_tasks_differ() -> None:
    parity, pairs = (
        rows_of(TASKS[name], size=4, low=80, high=80)[0].tokens_BT[:, :79] for name in ("parity", "even_pairs")
    )
    assert not (parity == pairs).all(1).any()


@pytest.mark.parametrize("name", SOLVERS)
def test_lengths_are_those_that_the_task_has_each_equally_often(name: str) -> None:
    task = TASKS[name]
    _, lengths_B = rows_of(task, size=2000, low=3, high=11)
    expected = [n for n in range(3, 12) if n >= task.shortest and (n - task.shortest) % task.stride == 0]
    counts = Counter(lengths_B.tolist())
    assert sorted(counts) == expected
    share = 2000 / len(expected)
    assert all(abs(count - share) < 5 * share**0.5 for count in counts.values())


@pytest.mark.parametrize("name", DENSE)
def test_dense_targets_are_the_answers_to_prefixes(name: str) -> None:
    task = TASKS[name]
    draw = {"seed": 5, "split": "train", "first": 0, "size": 12, "min_length": task.shortest, "max_length": 25}
    sparse, dense = task_batch(task, **draw), task_batch(task, **draw, dense=True)
    assert torch.equal(sparse.inputs_BT, dense.inputs_BT)
    assert torch.equal(sparse.lengths_B, dense.lengths_B)
    asked = sparse.targets_BT != IGNORE
    assert torch.equal(dense.targets_BT[asked], sparse.targets_BT[asked])
    for row, targets, steps in zip(
        dense.inputs_BT.tolist(), dense.targets_BT.tolist(), dense.lengths_B.tolist(), strict=True
    ):
        for t, target in enumerate(targets):
            defined = t < steps and (name not in DEFINED or DEFINED[name](t, row))
            assert [target] == (SOLVERS[name](row[: t + 1]) if defined else [IGNORE])


@pytest.mark.parametrize("name", sorted(set(TASKS) - set(DENSE)))
def test_dense_targets_are_refused_where_there_are_none(name: str) -> None:
    task = TASKS[name]
    with pytest.raises(ValueError, match=f"{name} has no answers to prefixes; use dense=False"):
        task_batch(
            task, seed=0, split="train", first=0, size=1, min_length=3, max_length=4 * task.shortest + 4, dense=True
        )


@pytest.mark.parametrize("name", sorted(CLASSES))
def test_answers_are_equally_likely(name: str) -> None:
    """Every answer that can be, and none much more often than chance; products are 0 more often than that."""
    task = TASKS[name]
    length = task.lengths(39, 60)[0]
    batch = task_batch(task, seed=0, split="train", first=0, size=2000, min_length=length, max_length=length)
    answers = batch.targets_BT[batch.targets_BT != IGNORE]
    assert set(answers.tolist()) == CLASSES[name]
    assert task.chance == pytest.approx(1 / len(CLASSES[name]))
    biased = {"modular_arithmetic": 1.3, "modular_arithmetic_brackets": 1.6}
    # five standard deviations of the most frequent of several
    slack = 5 * (task.chance / 2000) ** 0.5
    assert best_constant(batch.targets_BT) < task.chance * biased.get(name, 1) + slack


def test_counts_are_not_equally_likely() -> None:
    """The docstring of majority_count is right about a constant answer."""
    batch = task_batch(TASKS["majority_count"], seed=0, split="train", first=0, size=4000, min_length=3, max_length=40)
    answers = batch.targets_BT[batch.targets_BT != IGNORE]
    assert int(answers.bincount().argmax()) == 2
    assert 0.4 < best_constant(batch.targets_BT) < 0.5


def test_a_count_beyond_the_vocabulary_is_its_last_token() -> None:
    labels = TASKS["majority_count"].labels
    assert labels is not None
    assert labels(np.full((1, 70), 9))[0].tolist() == [min(t, 63) for t in range(1, 71)]


def test_the_tasks_of_the_paper() -> None:
    """Vocabularies and chances of the paper's appendix B.1.1, and the pairs of its recall experiments."""
    table = {
        "bucket_sort": (11, 10),
        "cycle_navigation": (9, 5),
        "even_pairs": (3, 2),
        "majority": (64, 63),
        "majority_count": (64, 63),
        "missing_duplicate": (11, 9),
        "modular_arithmetic": (10, 5),
        "modular_arithmetic_brackets": (12, 5),
        "odds_first": (12, 10),
        "parity": (3, 2),
        "repetition": (12, 10),
        "reverse_string": (12, 10),
        "stack_manipulation": (11, 4),
        "set": (128, 126),
        "solve_equation": (14, 5),
    }
    assert sorted(FORMAL_LANGUAGES) == sorted(table)
    assert {n: (TASKS[n].vocab_size, round(1 / TASKS[n].chance)) for n in table} == table
    assert all(TASKS[name].name == name for name in TASKS)
    assert {4, 8, 16, 48, 96, 256} == {int(n.split("_")[1]) for n in TASKS if n.endswith("_of_8192")}
    # the lengths of its training and test all exist, for every language
    assert all(TASKS[n].lengths(3, 40) and TASKS[n].lengths(40, 256) for n in table)


def test_rows_of_the_documentation() -> None:
    """Docstrings show these: the layout of tokens, written out."""
    labels = {name: TASKS[name].labels for name in DENSE}
    assert labels["parity"](np.array([[1, 2, 2, 1, 2]]))[0].tolist() == [1, 2, 1, 1, 2]
    assert labels["even_pairs"](np.array([[1, 2, 2, 1, 2]]))[0].tolist() == [1, 2, 2, 1, 2]
    assert labels["cycle_navigation"](np.array([[2, 1, 2, 3, 2]]))[0].tolist() == [5, 5, 6, 5, 6]
    assert labels["majority"](np.array([[7, 3, 9, 3, 7]]))[0].tolist() == [7, 7, 7, 3, 3]
    assert labels["majority_count"](np.array([[7, 3, 9, 3, 7]]))[0].tolist() == [1, 1, 1, 2, 2]
    assert labels["s3"](np.array([[2, 3, 2]]))[0].tolist()[-1] == 6
    assert labels["nearest_neighbour"](np.array([[20, 50, 67, 22, 73, 10, 65, 0]]))[0, [2, 4, 6]].tolist() == [
        67,
        73,
        73,
    ]


def test_expressions_may_be_long() -> None:
    for name in ("modular_arithmetic_brackets", "solve_equation"):
        rows, lengths_B = rows_of(TASKS[name], size=1, low=4000, high=4000)
        tokens = rows.tokens_BT[0].tolist()
        assert lengths_B.tolist() == [len(tokens)] == [4000]
        assert tokens.count(5) == tokens.count(6) > 100


@settings(max_examples=20)
@given(low=st.integers(2, 20), more=st.integers(0, 40), **DRAWS)
def test_nearest_neighbours_of_real_numbers(low: int, more: int, seed: int, split: str, first: int) -> None:
    batch = nearest_neighbours(seed=seed, split=split, first=first, size=5, min_length=low, max_length=low + more)
    assert batch.inputs_BTD.shape == (5, int(batch.lengths_B.max()), 3)
    assert batch.inputs_BTD.dtype == batch.targets_BT.dtype == torch.float32
    for b, length in enumerate(batch.lengths_B.tolist()):
        assert low <= length <= low + more
        steps = batch.inputs_BTD[b, :length].double()
        assert torch.allclose(steps[:, :2].norm(dim=1), torch.ones(length, dtype=torch.float64), atol=1e-6)
        assert float(steps[0, 2]) == 0
        assert batch.asked_BT[b].tolist() == [0 < t < length for t in range(batch.asked_BT.shape[1])]
        for t in range(1, length):
            closest = max(range(1, t + 1), key=lambda s: float(steps[s, :2] @ steps[0, :2]))
            assert batch.targets_BT[b, t] == batch.inputs_BTD[b, closest, 2]
        assert not batch.inputs_BTD[b, length:].any()
        assert not batch.targets_BT[b, length:].any()
    assert batch.reset_BT[:, 0].all()
    assert not batch.reset_BT[:, 1:].any()


def test_real_values_are_spread_and_rows_independent_of_the_batch() -> None:
    draw = {"seed": 0, "split": "train", "min_length": 64, "max_length": 64}
    batch = nearest_neighbours(first=0, size=200, **draw)
    values = batch.inputs_BTD[:, 1:, 2]
    assert 0.49 < float(values.mean()) < 0.51
    assert 0.32 < float((values - 0.5).abs().gt(1 / 3).float().mean()) < 0.35
    assert (batch.inputs_BTD[..., :2].mean((0, 1)).abs() < 0.02).all()
    assert torch.equal(nearest_neighbours(first=150, size=1, **draw).inputs_BTD[0], batch.inputs_BTD[150])


def test_the_hash_is_splitmix64() -> None:
    """The published first outputs for seed 1234567."""
    counter = np.uint64(0x9E3779B97F4A7C15) * np.arange(1, 6, dtype=np.uint64)
    assert mix(np.array([1234567], dtype=np.uint64) + counter).tolist() == [
        *(6457827717110365317, 3203168211198807973, 9817491932198370423),
        *(4593380528125082431, 16408922859458223821),
    ]


def test_numbers_are_uniform_and_do_not_depend_on_how_many_are_drawn() -> None:
    numbers = numbers_for("x", seed=0, split="train", first=0, size=500)
    draws = numbers.below("a", 7, 100)
    assert (numbers.below("a", 7, 3) == draws[:, :3]).all()
    counts = np.bincount(draws.ravel(), minlength=7)
    assert (abs(counts - 50_000 / 7) < 4 * (50_000 / 7) ** 0.5).all()
    for other in (numbers.below("b", 7, 100), np.roll(draws, 1, axis=0), np.roll(draws, 1, axis=1)):
        assert abs((draws == other).mean() - 1 / 7) < 0.008
    uniform = numbers.uniform("a", 100)
    assert 0 <= uniform.min() < 0.001 < 0.999 < uniform.max() < 1


GOLDEN: dict[str, str] = {
    "bucket_sort": "25234a6ae03bdf4b",
    "cycle_navigation": "e940e3f25c299f40",
    "even_pairs": "7fa721fd62098682",
    "majority": "48964e6567fde33c",
    "majority_count": "d68e7e2dc6c1b14e",
    "missing_duplicate": "13c991a3e6156ed5",
    "modular_arithmetic": "0929705d2b3666a5",
    "modular_arithmetic_brackets": "0ee2685743a095f3",
    "nearest_neighbour": "7e5201dc9c7d0295",
    "odds_first": "1844184bf29924c7",
    "parity": "c1f686794cf223b8",
    "recall_16_of_512": "0c91018702366951",
    "recall_16_of_8192": "b774ab3743bfb657",
    "recall_256_of_8192": "39aff0b24810ddeb",
    "recall_48_of_512": "9b99255ee9c2c312",
    "recall_48_of_8192": "ead2f774c4495d05",
    "recall_4_of_512": "f62fb7104d8f524b",
    "recall_4_of_64": "e79b4faf1877e554",
    "recall_4_of_8192": "bea843c8435f5f15",
    "recall_8_of_512": "74a0cfb8030520bd",
    "recall_8_of_8192": "5848ee323f2a9677",
    "recall_96_of_8192": "2bd37314d6254f43",
    "repetition": "7a40e9212dd6b232",
    "reverse_string": "c9b4f42ccd7bff05",
    "s3": "d192909c9d956587",
    "s5": "a2cde389acc68515",
    "set": "b7a5ce89a9565621",
    "solve_equation": "46c65baedf865c47",
    "stack_manipulation": "19fcbd2a4c8cfab7",
}


@pytest.mark.parametrize("name", sorted(TASKS))
def test_rows_never_change(name: str) -> None:
    """Results that were published are of these rows."""
    task = TASKS[name]
    rows, _ = rows_of(task, seed=17, split="validation", first=100, size=16, low=task.shortest, high=task.shortest + 30)
    found = hashlib.sha256(rows.tokens_BT.astype("<i8").tobytes() + rows.answer_BT.tobytes()).hexdigest()
    assert found[:16] == GOLDEN[name]


def test_lengths_without_rows_are_refused_with_one_that_has() -> None:
    draw = {"seed": 0, "split": "train", "first": 0, "size": 1}
    with pytest.raises(ValueError, match="reverse_string has no rows of 4 to 4 tokens; use a range that contains 5"):
        task_batch(TASKS["reverse_string"], **draw, min_length=4, max_length=4)
    with pytest.raises(
        ValueError, match="recall_48_of_512 has no rows of 3 to 40 tokens; use a range that contains 192"
    ):
        task_batch(TASKS["recall_48_of_512"], **draw, min_length=3, max_length=40)
    with pytest.raises(ValueError, match="parity has no rows of 9 to 8 tokens; use a range that contains 9"):
        task_batch(TASKS["parity"], **draw, min_length=9, max_length=8)
    task_batch(TASKS["reverse_string"], **draw, min_length=4, max_length=5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"split": "eval"}, "split='eval' is unknown; use 'train', 'validation' or 'test'"),
        ({"size": 0}, "first=0 and size=0 name no rows"),
        ({"first": -1}, "first=-1 and size=1 name no rows"),
    ],
)
def test_rows_that_are_not_there(change: dict, message: str) -> None:
    draw = {"seed": 0, "split": "train", "first": 0, "size": 1, "min_length": 3, "max_length": 40}
    with pytest.raises(ValueError, match=message):
        task_batch(TASKS["parity"], **(draw | change))


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="min_length=1 and max_length=5 hold no rows; use at least 2 steps"):
        nearest_neighbours(seed=0, split="train", first=0, size=1, min_length=1, max_length=5)
    with pytest.raises(ValueError, match="min_length=6 and max_length=5"):
        nearest_neighbours(seed=0, split="train", first=0, size=1, min_length=6, max_length=5)
    for pairs, vocab in [(0, 64), (32, 64), (2, 63)]:
        with pytest.raises(ValueError, match=f"vocab_size={vocab} and pairs={pairs} do not fit"):
            recall(pairs=pairs, vocab_size=vocab)
    assert recall(pairs=31, vocab_size=64).shortest == 124
