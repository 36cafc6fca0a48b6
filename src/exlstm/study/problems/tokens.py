"""Tasks of tokens, with the paper's scaled accuracy.

B batch  T time  D model width  M steps with a target, of all rows
"""

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from exlstm.data.packing import IGNORE, Batch
from exlstm.data.tasks import TASKS, Task, task_batch
from exlstm.data.tasks.contract import SplitName
from exlstm.data.tasks.scores import LengthScore, best_constant, by_length, scaled
from exlstm.models.lm import LM, LMConfig
from exlstm.study.problems.contract import ROWS, Lesson
from exlstm.study.problems.models import Model
from exlstm.train.loss import linear_cross_entropy

_SIGMA = 3.0  # standard errors above guessing that count as learned


class TokenProblem:
    """One or several tasks of tokens. A batch is of one task, and tasks take turns.

    Tasks share the token 0, which is padding; all other tokens are of one task.
    """

    def __init__(self, lessons: tuple[Lesson, ...]) -> None:
        if not lessons:
            raise ValueError("there are no lessons; give at least one.")
        self.lessons = lessons
        self.tasks: list[Task] = [TASKS[lesson.task] for lesson in lessons]
        sizes = [task.vocab_size - 1 for task in self.tasks]
        self.offsets = [sum(sizes[:number]) for number in range(len(sizes))]
        self.vocab_size = 1 + sum(sizes)

    def build(self, architecture: LMConfig) -> LM:
        """A language model with the tasks' vocabulary."""
        return LM(replace(architecture, vocab_size=self.vocab_size))

    def batch(self, lesson: int, split: SplitName, low: int, high: int, *, seed: int, first: int, rows: int, dense: bool
              ) -> Batch:  # fmt: skip
        """Rows of a lesson, in tokens of the joint vocabulary."""
        batch = task_batch(
            self.tasks[lesson],
            seed=seed,
            split=split,
            first=first,
            size=rows,
            min_length=low,
            max_length=high,
            dense=dense,
        )
        offset = self.offsets[lesson]
        if not offset:
            return batch
        moved = [torch.where(x > 0, x + offset, x) for x in (batch.inputs_BT, batch.targets_BT)]
        return batch._replace(inputs_BT=moved[0], targets_BT=moved[1])

    def loss(self, model: Model, step: int, *, seed: int, rows: int, device: torch.device) -> tuple[Tensor, int]:
        """Cross entropy per target. Rows begin without a state and end in padding: no resets, no lengths."""
        assert isinstance(model, LM)
        turn, lesson = divmod(step, len(self.lessons))
        low, high = self.lessons[lesson].train
        batch = self.batch(lesson, "train", low, high, seed=seed, first=turn * rows, rows=rows,
                           dense=self.lessons[lesson].dense)  # fmt: skip
        targets_BT = batch.targets_BT.to(device)
        x_BTD, _ = model.hidden(batch.inputs_BT.to(device))
        asked_BT = targets_BT != IGNORE
        x_MD, targets_M = x_BTD[asked_BT], targets_BT[asked_BT]
        total = linear_cross_entropy(x_MD[None], model.head.weight, targets_M[None], model.config.logit_cap)
        return total / max(len(targets_M), 1), batch.inputs_BT.numel()

    def score(self, model: Model, lesson: int, part: int, split: SplitName, rows: int) -> dict[str, Any]:
        """Accuracy of answers and of whole rows, also by length, beside that of guessing."""
        assert isinstance(model, LM)
        task, (low, high) = self.tasks[lesson], self.lessons[lesson].test[part]
        found = []
        for first in range(0, rows, ROWS):
            batch = self.batch(lesson, split, low, high, seed=0, first=first, rows=min(ROWS, rows - first), dense=False)
            found.append((self.answers(model, batch), batch))
        edges = sorted({low, *(low + round((high - low) * k / 4) for k in range(1, 4)), high + 1})
        buckets = by_length(found, edges)
        guess = best_constant(torch.cat([batch.targets_BT.flatten() for _, batch in found])[None])
        return {"task": task.name, "low": low, "high": high, **_token_scores(buckets, task.chance, guess)}

    def answers(self, model: LM, batch: Batch) -> Tensor:
        """The most likely token at every target, [B, T], on the CPU."""
        targets_BT, device = batch.targets_BT, model.head.weight.device
        x_BTD, _ = model.hidden(batch.inputs_BT.to(device))
        asked_BT = targets_BT != IGNORE
        answers_BT = torch.full_like(targets_BT, IGNORE)
        answers_BT[asked_BT] = model.read_out(x_BTD[asked_BT.to(device)]).argmax(-1).cpu()
        return answers_BT


def _token_scores(buckets: list[LengthScore], chance: float, guess: float) -> dict[str, Any]:
    asked, right, rows, whole = (sum(column) for column in list(zip(*buckets, strict=True))[2:])
    accuracy, floor = right / asked, max(guess, chance)
    return {
        "score": scaled(accuracy, chance),
        "accuracy": accuracy,
        "rows_right": whole / rows,
        "chance": chance,
        "best_constant": guess,
        "at_chance": accuracy <= floor + _SIGMA * math.sqrt(floor * (1 - floor) / asked),
        "asked": asked,
        "by_length": [[b.low, b.high - 1, b.accuracy] for b in buckets if b.accuracy is not None],
    }
