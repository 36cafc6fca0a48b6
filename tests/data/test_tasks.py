"""Every row of every task against a slow solver that reads the question alone, and what a batch of rows promises."""

import hashlib
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from task_solvers import CLASSES, DEFINED, DENSE, DRAWS, SOLVERS, rows_of, split_row

from exlstm.data.packing import IGNORE
from exlstm.data.tasks import FORMAL_LANGUAGES, TASKS, best_constant, task_batch
from exlstm.data.tasks.contract import Ints, Numbers, Rows, task_rows


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
    # an exchange twice and a cycle of five are the identity
    assert labels["s5_generators"](np.array([[25, 25, 34, 34, 34, 34, 34]]))[0, [1, -1]].tolist() == [1, 1]
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
    "s5_generators": "095e04966943eb78",
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
