"""Classification of rows: the Long Range Arena and stand-ins for it, with scaled accuracy.

B batch  T time  C classes
"""

import math
from dataclasses import replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from exlstm.data.long_range import CLASS_TASKS, ClassBatch, class_batch
from exlstm.data.tasks.contract import SplitName
from exlstm.data.tasks.scores import scaled
from exlstm.models.lm import LMConfig
from exlstm.study.problems.contract import ROWS, Lesson
from exlstm.study.problems.models import Classifier, Model

_SIGMA = 3.0  # standard errors above guessing that count as learned
_TOKENS = 65_536  # of a batch in scoring


@lru_cache(maxsize=2048)  # all models of a study see the same rows, and an image takes longer to draw than to read
def cached_batch(task: str, split: SplitName, low: int, high: int, seed: int, first: int, rows: int) -> ClassBatch:
    """Rows of a split, not to be changed."""
    return class_batch(CLASS_TASKS[task], seed=seed, split=split, first=first, size=rows, low=low, high=high)


class ClassProblem:
    """One task whose rows have a class."""

    def __init__(self, lessons: tuple[Lesson, ...]) -> None:
        self.lessons = lessons
        (self.lesson,) = lessons
        self.task = CLASS_TASKS[self.lesson.task]

    def build(self, architecture: LMConfig) -> Classifier:
        """A classifier of the task's tokens."""
        config = replace(architecture, vocab_size=self.task.vocab_size)
        return Classifier(config, self.task.classes, both_ways=self.lesson.both_ways)

    def batch(self, split: SplitName, low: int, high: int, *, seed: int, first: int, rows: int) -> ClassBatch:
        """Rows of a split."""
        return cached_batch(self.task.name, split, low, high, seed, first, rows)

    def loss(self, model: Model, step: int, *, seed: int, rows: int, device: torch.device) -> tuple[Tensor, int]:
        """Cross entropy per row."""
        assert isinstance(model, Classifier)
        low, high = self.lesson.train
        tokens_BT, lengths_B, classes_B = self.batch("train", low, high, seed=seed, first=step * rows, rows=rows)
        logits_BC = model(tokens_BT.to(device), lengths_B.to(device))
        return functional.cross_entropy(logits_BC.float(), classes_B.to(device)), tokens_BT.numel()

    def score(self, model: Model, lesson: int, part: int, split: SplitName, rows: int) -> dict[str, Any]:
        """Accuracy beside that of guessing."""
        assert isinstance(model, Classifier)
        (low, high), device, right = self.lesson.test[part], model.head.weight.device, 0
        size = max(1, min(ROWS, _TOKENS // high))
        for first in range(0, rows, size):
            batch = self.batch(split, low, high, seed=0, first=first, rows=min(size, rows - first))
            logits_BC = model(batch.inputs_BT.to(device), batch.lengths_B.to(device))
            right += int((logits_BC.argmax(-1).cpu() == batch.classes_B).sum())
        accuracy, chance = right / rows, self.task.chance
        return {
            "task": self.task.name,
            "low": low,
            "high": high,
            "score": scaled(accuracy, chance),
            "accuracy": accuracy,
            "chance": chance,
            "at_chance": accuracy <= chance + _SIGMA * math.sqrt(chance * (1 - chance) / rows),
            "asked": rows,
        }
