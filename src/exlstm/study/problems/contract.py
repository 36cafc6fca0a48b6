"""The contract of a problem: what a model learns in a run, its loss, and its scores.

A score is 0 for guessing and 1 for no errors.

B batch  T time  D width of the input or of the model
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from exlstm.data.long_range import CLASS_TASKS
from exlstm.data.tasks import TASKS
from exlstm.data.tasks.contract import SplitName
from exlstm.models.lm import LMConfig
from exlstm.study.problems.models import Model
from exlstm.study.texts import TEXTS, is_text

REAL = "nearest_neighbours"  # the only lesson in real numbers
ROWS = 64  # rows of a batch in scoring


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """A task, the lengths of its rows in training, and the ranges of lengths in tests (validation has the first).

    task: a name in TASKS; "nearest_neighbours", the paper's search in real numbers; a name in CLASS_TASKS, where a row
    has a class; or a text and the size of its vocabulary, such as "english/1024", whose rows are all of the longer
    length. dense: training has the answers to all prefixes as targets, not only the last one. Targets of tests are the
    paper's. both_ways: rows that have a class are read from both ends.
    """

    task: str
    train: tuple[int, int]
    test: tuple[tuple[int, int], ...]
    dense: bool = False
    both_ways: bool = False

    def __post_init__(self) -> None:
        if self.task not in {*TASKS, REAL, *CLASS_TASKS} and not is_text(self.task):
            names = (*TASKS, REAL, *CLASS_TASKS, *(f"{name}/1024" for name in TEXTS))
            raise ValueError(f"there is no task {self.task!r}; use one of {', '.join(names)}.")
        if self.both_ways and self.task not in CLASS_TASKS:
            raise ValueError(f"{self.task} is read from its beginning alone; use both_ways=False.")
        if not self.test:
            raise ValueError(f"the lesson {self.task} is tested on no lengths; give at least one range.")
        if self.dense and (self.task not in TASKS or TASKS[self.task].labels is None):
            raise ValueError(f"{self.task} has no answers to prefixes; use dense=False.")


class Problem(Protocol):
    """A model to build, a loss to lower, scores to report."""

    lessons: tuple[Lesson, ...]

    def build(self, architecture: LMConfig) -> Model:
        """The model, initialized from torch's random generator."""

    def loss(self, model: Model, step: int, *, seed: int, rows: int, device: torch.device) -> tuple[Tensor, int]:
        """The mean loss of the batch of a training step, and its number of tokens."""

    def score(self, model: Model, lesson: int, part: int, split: SplitName, rows: int) -> dict[str, Any]:
        """Scores of a model in evaluation mode on the first rows of a split, in one range of lengths."""


def ranges(lesson: Lesson) -> Iterator[tuple[int, int, int]]:
    """(number, low, high) of every range of lengths in a lesson's tests."""
    for part, (low, high) in enumerate(lesson.test):
        yield part, low, high
