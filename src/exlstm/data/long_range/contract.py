"""The contract of a classification task: a row of tokens and its class, from a split and an index.

Row i of a split is a function of (task, split, i, lengths) alone, so evaluation sets are the same everywhere, and there
are as many training rows as a run asks for. Token 0 is padding.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from exlstm.data.tasks.contract import SplitName

Tokens = NDArray[np.int64]
Sampled = tuple[Sequence[int] | Tokens, int]  # the tokens of a row and its class
Sampler = Callable[[SplitName, np.random.Generator, int, int], Sampled]


class ClassBatch(NamedTuple):
    """Rows with padding behind their ends, the length of each, and its class."""

    inputs_BT: Tensor
    lengths_B: Tensor
    classes_B: Tensor


@dataclass(frozen=True, kw_only=True)
class ClassTask:
    """A task. sample: `sample(split, random, low, high)` makes a row of low to high tokens.

    is_lra: whether it is the task of the Long Range Arena (Tay et al. 2021) of that name, and no stand-in.
    """

    name: str
    about: str
    vocab_size: int
    classes: int
    sample: Sampler
    is_lra: bool = False

    @property
    def chance(self) -> float:
        """The accuracy of guessing."""
        return 1 / self.classes


def class_batch(
    task: ClassTask, *, seed: int, split: SplitName, first: int, size: int, low: int, high: int
) -> ClassBatch:
    """Rows `first` to `first + size` of a split. Raises ValueError for lengths that the task has no rows of."""
    rows = [task.sample(split, _random(task.name, seed, split, first + index), low, high) for index in range(size)]
    lengths = [len(tokens) for tokens, _ in rows]
    inputs_BT = torch.zeros(size, max(lengths), dtype=torch.int64)
    for row, (tokens, _) in enumerate(rows):
        inputs_BT[row, : len(tokens)] = torch.as_tensor(np.asarray(tokens))
    return ClassBatch(inputs_BT, torch.tensor(lengths), torch.tensor([label for _, label in rows]))


def _random(name: str, seed: int, split: SplitName, index: int) -> np.random.Generator:
    key = hashlib.blake2b(f"{name}:{seed}:{split}:{index}".encode(), digest_size=16).digest()
    return np.random.default_rng(int.from_bytes(key, "little"))
