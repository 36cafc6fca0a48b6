"""The paper's search in real numbers: the value of the nearest vector so far.

A score is the share of the variance that is explained.

B batch  T time  D numbers of an input
"""

from typing import Any

import torch
from torch import Tensor

from exlstm.data.tasks import RealBatch, nearest_neighbours
from exlstm.data.tasks.contract import SplitName
from exlstm.models.lm import LMConfig
from exlstm.study.problems.contract import REAL, ROWS, Lesson
from exlstm.study.problems.models import Model, Regressor

_EXPLAINED = 0.02  # share of the variance; less is at chance


class RealProblem:
    """Nearest-neighbour search as in the paper: the squared error of the value of the nearest vector so far."""

    def __init__(self, lessons: tuple[Lesson, ...]) -> None:
        self.lessons = lessons

    def build(self, architecture: LMConfig) -> Regressor:
        """A model of x, y and a value per step."""
        return Regressor(architecture, 3)

    def batch(self, split: SplitName, low: int, high: int, *, seed: int, first: int, rows: int) -> RealBatch:
        """Rows of a split."""
        return nearest_neighbours(seed=seed, split=split, first=first, size=rows, min_length=low, max_length=high)

    def loss(self, model: Model, step: int, *, seed: int, rows: int, device: torch.device) -> tuple[Tensor, int]:
        """Mean squared error over all steps but the first."""
        low, high = self.lessons[0].train
        batch = self.batch("train", low, high, seed=seed, first=step * rows, rows=rows)
        error_BT = model(batch.inputs_BTD.to(device)) - batch.targets_BT.to(device)
        return error_BT[batch.asked_BT.to(device)].square().mean(), batch.asked_BT.numel()

    def score(self, model: Model, lesson: int, part: int, split: SplitName, rows: int) -> dict[str, Any]:
        """The squared error, and the share of the variance of the targets that it leaves out."""
        low, high = self.lessons[lesson].test[part]
        device = next(model.parameters()).device
        errors, targets = [], []
        for first in range(0, rows, ROWS):
            batch = self.batch(split, low, high, seed=0, first=first, rows=min(ROWS, rows - first))
            y_BT = model(batch.inputs_BTD.to(device)).cpu()
            errors.append((y_BT - batch.targets_BT)[batch.asked_BT])
            targets.append(batch.targets_BT[batch.asked_BT])
        error = float(torch.cat(errors).double().square().mean())
        explained = 1 - error / float(torch.cat(targets).double().var(correction=0))
        return {"task": REAL, "low": low, "high": high, "score": explained, "squared_error": error,
                "at_chance": explained <= _EXPLAINED, "asked": sum(len(x) for x in targets)}  # fmt: skip
