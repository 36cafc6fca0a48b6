"""The contract of a task: rows of tokens from random numbers, and the batches that models read.

A row is a question and its answer in one sequence of tokens; token 0 is padding. Its length counts both, as in the
paper's code: a row of parity of length 40 is 39 symbols and their parity. A model reads a row without its answers: the
input at an answer is 0, and the answer is the target of the step before, like the next token of a language model.

    length 6      a b b a b | b         the row; the answer is behind the bar
    inputs        a b b a b             5 steps
    targets       . . . . b             . is IGNORE
    dense         a b a a b             the answer to every prefix, for tasks that have one

Row i of a split is a function of (task, seed, split, i, length) alone, not of its batch. Its random numbers are a hash
of these and of a place, so all rows of a batch are made at once. The hash has only additions, products and shifts of
integers, so it is the same on every machine and in every version of numpy; numpy's own distributions are not.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from exlstm.data.packing import IGNORE, Batch

Ints = NDArray[np.int64]
SplitName = Literal["train", "validation", "test"]
PAD = 0


@dataclass(frozen=True)
class Numbers:
    """Random numbers of some rows. Each purpose has a stream of its own, independent of how much others draw."""

    keys_B: NDArray[np.uint64]

    def bits(self, purpose: str, count: int) -> NDArray[np.uint64]:
        """[B, count] uniform 64-bit numbers: splitmix64, one generator per row and purpose."""
        starts = _mix(self.keys_B ^ np.array([_key(purpose)], dtype=np.uint64))
        return _mix(starts[:, None] + _GOLDEN * np.arange(1, count + 1, dtype=np.uint64))

    def below(self, purpose: str, bound: int | Ints, count: int) -> Ints:
        """[B, count] integers in [0, bound); bound may be [B, 1]. Their bias is bound / 2^64."""
        return (self.bits(purpose, count) % np.asarray(bound, dtype=np.uint64)).astype(np.int64)

    def uniform(self, purpose: str, count: int) -> NDArray[np.float64]:
        """[B, count] numbers in [0, 1), multiples of 2^-53."""
        return (self.bits(purpose, count) >> np.uint64(11)).astype(np.float64) * 2.0**-53


class Rows(NamedTuple):
    """Tokens of questions and answers, 0 beyond the length of a row. `answer_BT` is true at answers."""

    tokens_BT: Ints
    answer_BT: NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Task:
    """A task: `rows(numbers, lengths_B)` makes rows of exactly these lengths.

    chance: the accuracy of guessing among possible answers, s_rand of the paper.
    shortest: the smallest length; all lengths are a multiple of `stride` away from it.
    labels: `labels(tokens_BT)` is the answer to the tokens up to and including each place, IGNORE where there is none.
    None for a task with answers at the end only.
    """

    name: str
    vocab_size: int
    chance: float
    shortest: int
    stride: int = 1
    rows: Callable[[Numbers, Ints], Rows]
    labels: Callable[[Ints], Ints] | None = None

    def lengths(self, low: int, high: int) -> range:
        """Lengths that rows can have, from low to high, both included."""
        first = max(self.shortest, low + (self.shortest - low) % self.stride)
        return range(first, high + 1, self.stride)


def numbers_for(name: str, *, seed: int, split: SplitName, first: int, size: int) -> Numbers:
    """Random numbers of rows first, first + 1, ... of a split. Raises ValueError for an unknown split or no rows."""
    if first < 0 or size < 1:
        raise ValueError(f"first={first} and size={size} name no rows; use first >= 0 and size >= 1.")
    return numbers_at(name, np.arange(first, first + size, dtype=np.uint64), seed=seed, split=split)


def numbers_at(name: str, index_B: NDArray[np.uint64], *, seed: int, split: SplitName) -> Numbers:
    """Random numbers of the rows of these indices. Raises ValueError for an unknown split."""
    if split not in ("train", "validation", "test"):
        raise ValueError(f"split={split!r} is unknown; use 'train', 'validation' or 'test'.")
    return Numbers(_mix(np.array([_key(f"{name}:{seed}:{split}")], dtype=np.uint64) + _GOLDEN * index_B))


def task_rows(
    task: Task, *, seed: int, split: SplitName, first: int, size: int, min_length: int, max_length: int
) -> tuple[Rows, Ints]:
    """Rows first .. first + size - 1 of a split, and their lengths, uniform over those of the task in the range."""
    lengths = task.lengths(min_length, max_length)
    if not lengths:
        near = task.lengths(min_length, task.shortest + max(min_length, 0) + task.stride)
        raise ValueError(
            f"{task.name} has no rows of {min_length} to {max_length} tokens; use a range that contains {near[0]}."
        )
    numbers = numbers_for(task.name, seed=seed, split=split, first=first, size=size)
    lengths_B = lengths.start + lengths.step * numbers.below("length", len(lengths), 1)[:, 0]
    return task.rows(numbers, lengths_B), lengths_B


def task_batch(
    task: Task,
    *,
    seed: int,
    split: SplitName,
    first: int,
    size: int,
    min_length: int,
    max_length: int,
    dense: bool = False,
) -> Batch:
    """Rows first .. first + size - 1 of a split for a model to read, padded to the longest of them.

    Targets are the answers; with dense=True also the answer to every prefix. A row of length n has n - 1 steps.
    Raises ValueError when the task has no rows in the range of lengths, or no answers to prefixes.
    """
    if dense and task.labels is None:
        raise ValueError(f"{task.name} has no answers to prefixes; use dense=False.")
    rows, lengths_B = task_rows(
        task, seed=seed, split=split, first=first, size=size, min_length=min_length, max_length=max_length
    )
    question = np.where(rows.answer_BT, PAD, rows.tokens_BT)
    if dense and task.labels is not None:
        steps = np.arange(question.shape[1]) < lengths_B[:, None] - 1
        targets = np.where(steps, task.labels(question), IGNORE)[:, :-1]
    else:
        targets = np.where(rows.answer_BT, rows.tokens_BT, IGNORE)[:, 1:]
    inputs_BT = torch.from_numpy(question[:, :-1].copy())
    reset_BT = torch.zeros_like(inputs_BT, dtype=torch.bool)
    reset_BT[:, 0] = True
    return Batch(inputs_BT, torch.from_numpy(targets.copy()), reset_BT, torch.from_numpy(lengths_B - 1))


def prefix_task(
    *,
    name: str,
    vocab_size: int,
    chance: float,
    shortest: int,
    symbols: Callable[[Numbers, int], Ints],
    labels: Callable[[Ints], Ints],
    stride: int = 1,
) -> Task:
    """A task whose row is symbols and then the answer to all of them; `symbols(numbers, T)` makes [B, T] of them."""

    def rows(numbers: Numbers, lengths_B: Ints) -> Rows:
        tokens_BT = symbols(numbers, int(lengths_B.max()))
        return with_answer(tokens_BT, lengths_B, at(labels(tokens_BT), lengths_B - 2))

    return Task(
        name=name, vocab_size=vocab_size, chance=chance, shortest=shortest, stride=stride, rows=rows, labels=labels
    )


def with_answer(tokens_BT: Ints, lengths_B: Ints, answer_B: Ints) -> Rows:
    """Rows of questions that end in one answer, with padding beyond it."""
    place = np.arange(tokens_BT.shape[1])
    answer_BT = place == lengths_B[:, None] - 1
    question = np.where(place < lengths_B[:, None] - 1, tokens_BT, PAD)
    return Rows(np.where(answer_BT, answer_B[:, None], question), answer_BT)


def at(values: Ints, index_B: Ints) -> Ints:
    """values[b, index_B[b]] for every row b."""
    return np.take_along_axis(values, index_B[:, None], axis=1)[:, 0]


_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _key(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of splitmix64 (Steele, Lea and Flood 2014)."""
    x = (x ^ x >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ x >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return x ^ x >> np.uint64(31)
