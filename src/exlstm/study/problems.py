"""Problems of the studies, with losses and scores: tasks of tokens, and the paper's search in real numbers.

A score is 0 for guessing and 1 for no errors: the paper's scaled accuracy or, for real numbers, the share of the
variance that is explained.

B batch  T time  D width of the input or of the model  M steps with a target, of all rows
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from exlstm.data.packing import IGNORE, Batch
from exlstm.data.tasks import TASKS, RealBatch, Task, nearest_neighbours, task_batch
from exlstm.data.tasks.contract import SplitName
from exlstm.data.tasks.scores import LengthScore, best_constant, by_length, scaled
from exlstm.mixers.contract import Mixer
from exlstm.models.lm import LM, LMConfig
from exlstm.nn import init
from exlstm.nn.linear import Linear
from exlstm.train.loss import linear_cross_entropy

REAL = "nearest_neighbours"  # the only lesson in real numbers
_ROWS = 64  # rows of a batch in scoring
_SIGMA = 3.0  # standard errors above guessing that count as learned
_EXPLAINED = 0.02  # share of the variance; less is at chance


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """A task, the lengths of its rows in training, and the ranges of lengths in tests (validation has the first).

    task: a name in TASKS, or "nearest_neighbours", the paper's search in real numbers. dense: training has the answers
    to all prefixes as targets, not only the last one. Targets of tests are the paper's.
    """

    task: str
    train: tuple[int, int]
    test: tuple[tuple[int, int], ...]
    dense: bool = False

    def __post_init__(self) -> None:
        if self.task not in {*TASKS, REAL}:
            raise ValueError(f"there is no task {self.task!r}; use one of {', '.join((*TASKS, REAL))}.")
        if not self.test:
            raise ValueError(f"the lesson {self.task} is tested on no lengths; give at least one range.")
        if self.dense and (self.task == REAL or TASKS[self.task].labels is None):
            raise ValueError(f"{self.task} has no answers to prefixes; use dense=False.")


class Problem(Protocol):
    """A model to build, a loss to lower, scores to report."""

    lessons: tuple[Lesson, ...]

    def build(self, architecture: LMConfig) -> "Model":
        """The model, initialized from torch's random generator."""

    def loss(self, model: "Model", step: int, *, seed: int, rows: int, device: torch.device) -> tuple[Tensor, int]:
        """The mean loss of the batch of a training step, and its number of tokens."""

    def score(self, model: "Model", lesson: int, part: int, split: SplitName, rows: int) -> dict[str, Any]:
        """Scores of a model in evaluation mode on the first rows of a split, in one range of lengths."""


def problem_of(lessons: tuple[Lesson, ...]) -> Problem:
    """The problem of these lessons. ValueError if they cannot be learned together."""
    if any(lesson.task == REAL for lesson in lessons):
        if len(lessons) != 1:
            raise ValueError(f"{REAL} is in real numbers and cannot be learned beside another task; give it alone.")
        return RealProblem(lessons)
    return TokenProblem(lessons)


def ranges(lesson: Lesson) -> Iterator[tuple[int, int, int]]:
    """(number, low, high) of every range of lengths in a lesson's tests."""
    for part, (low, high) in enumerate(lesson.test):
        yield part, low, high


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

    def loss(self, model: "Model", step: int, *, seed: int, rows: int, device: torch.device) -> tuple[Tensor, int]:
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

    def score(self, model: "Model", lesson: int, part: int, split: SplitName, rows: int) -> dict[str, Any]:
        """Accuracy of answers and of whole rows, also by length, beside that of guessing."""
        assert isinstance(model, LM)
        task, (low, high) = self.tasks[lesson], self.lessons[lesson].test[part]
        found = []
        for first in range(0, rows, _ROWS):
            batch = self.batch(
                lesson, split, low, high, seed=0, first=first, rows=min(_ROWS, rows - first), dense=False
            )
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


class Regressor(nn.Module):
    """The blocks of a language model between a linear map of real inputs and one number per step."""

    def __init__(self, architecture: LMConfig, inputs: int) -> None:
        super().__init__()
        lm = LM(replace(architecture, vocab_size=1))
        self.config, self.blocks, self.norm = architecture, lm.blocks, lm.norm
        self.embed = Linear(inputs, architecture.width)
        self.head = Linear(architecture.width, 1)
        for layer, width in ((self.embed, inputs), (self.head, architecture.width)):
            init.fill(layer, {"weight": init.small(width), "bias": init.zeros})

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Real inputs [B, T, D] -> a number per step, [B, T]."""
        x = self.embed(x_BTD)
        for block in self.blocks:
            x, _ = block(x)
        y_BT: Tensor = self.head(x if self.norm is None else self.norm(x))[..., 0]
        return y_BT

    @property
    def mixers(self) -> list[Mixer]:
        """The mixer of every block, in order."""
        return [cast("Mixer", block.mixer) for block in self.blocks]


Model = LM | Regressor


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

    def loss(self, model: "Model", step: int, *, seed: int, rows: int, device: torch.device) -> tuple[Tensor, int]:
        """Mean squared error over all steps but the first."""
        low, high = self.lessons[0].train
        batch = self.batch("train", low, high, seed=seed, first=step * rows, rows=rows)
        error_BT = model(batch.inputs_BTD.to(device)) - batch.targets_BT.to(device)
        return error_BT[batch.asked_BT.to(device)].square().mean(), batch.asked_BT.numel()

    def score(self, model: "Model", lesson: int, part: int, split: SplitName, rows: int) -> dict[str, Any]:
        """The squared error, and the share of the variance of the targets that it leaves out."""
        low, high = self.lessons[lesson].test[part]
        device = next(model.parameters()).device
        errors, targets = [], []
        for first in range(0, rows, _ROWS):
            batch = self.batch(split, low, high, seed=0, first=first, rows=min(_ROWS, rows - first))
            y_BT = model(batch.inputs_BTD.to(device)).cpu()
            errors.append((y_BT - batch.targets_BT)[batch.asked_BT])
            targets.append(batch.targets_BT[batch.asked_BT])
        error = float(torch.cat(errors).double().square().mean())
        explained = 1 - error / float(torch.cat(targets).double().var(correction=0))
        return {"task": REAL, "low": low, "high": high, "score": explained, "squared_error": error,
                "at_chance": explained <= _EXPLAINED, "asked": sum(len(x) for x in targets)}  # fmt: skip
