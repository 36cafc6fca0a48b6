"""`Training`: the run of most studies, in which a model learns lessons and is tested."""

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch.nn.utils import clip_grad_norm_

from exlstm.models.lm import LM, LMConfig
from exlstm.models.summary import flops_per_token, parameters
from exlstm.nn.recurrence import graph_penalty, num_recurrent_weights
from exlstm.runtime.machine import autocast
from exlstm.study.contract import run_id
from exlstm.study.pool import ProgressReporter
from exlstm.study.problems import Lesson, Model, Problem, TextProblem, problem_of, ranges
from exlstm.train.config import TrainConfig
from exlstm.train.optimizer import adamw
from exlstm.train.schedule import due, learning_rate

# settings of the size "quick": just enough to see that all of a study works
QUICK: Mapping[str, int] = {"steps": 5, "batch": 8, "validations": 1, "validation_rows": 16, "test_rows": 16}


@dataclass(frozen=True, kw_only=True)
class Training:
    """A model, its lessons and the settings of training: everything that the result depends on.

    Tests and validations are the same rows in every run. The optimizer is AdamW with warm-up and a cosine.
    model: its name in tables; two architectures of one name must differ in `varied`.
    varied: (what, value) pairs that the study compares beside models, for its tables.
    seed: of the initial weights, of noise in training, and of the order of the training rows.
    enough: stop early at this validation score, reached twice in a row; None: never.
    graph_cost: price of an open connection of a learned graph, added to the loss (see `nn.recurrence`).
    """

    model: str
    architecture: LMConfig
    lessons: tuple[Lesson, ...]
    lr: float
    steps: int
    batch: int
    varied: tuple[tuple[str, str], ...] = ()
    seed: int = 0
    warmup: float = 0.1
    final_lr: float = 0.01
    weight_decay: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.99
    clip: float = 1.0
    enough: float | None = None
    graph_cost: float = 0.0
    validations: int = 10
    validation_rows: int = 256
    test_rows: int = 512
    dtype: str = "float32"

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "validations", "validation_rows", "test_rows"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)} in a run of {self.model}; use at least 1.")

    def facets(self) -> dict[str, str]:
        """Names and values for tables and `--only`; runs that share them differ in learning rate and seed only."""
        return {"model": self.model, "task": "+".join(lesson.task for lesson in self.lessons), **dict(self.varied)}

    def execute(self, report: ProgressReporter) -> dict[str, Any]:
        """Trains and tests. ValueError for a loss that is not finite."""
        problem = problem_of(self.lessons)
        model, outcome = self.trained(problem, report)
        with torch.no_grad(), autocast(torch.device(report.device), self.dtype):
            outcome["metrics"] |= self.further(problem, model)
        return outcome

    def trained(self, problem: Problem, report: ProgressReporter) -> tuple[Model, dict[str, Any]]:
        """The model after its training, and the numbers of training and tests."""
        place = torch.device(report.device)
        torch.manual_seed(self.seed)
        model = problem.build(self.architecture).to(place)
        course = TrainingLoop(self, problem, model, place)
        began = time.perf_counter()
        course.run(report)
        seconds = time.perf_counter() - began
        model.eval()
        with torch.no_grad(), autocast(place, self.dtype):
            tests = [
                problem.score(model, number, part, "test", self.test_rows)
                for number, lesson in enumerate(self.lessons)
                for part, _, _ in ranges(lesson)
            ]
        longest = max(high for lesson in self.lessons for _, high in lesson.test)
        outcome = {
            "parameters": parameters(model),
            "recurrent_nonzeros": num_recurrent_weights(model),
            "state_bytes": sum(mixer.state_bytes(longest) for mixer in model.mixers),
            "flops": course.tokens * flops_per_token(model, "train", max(lesson.train[1] for lesson in self.lessons)),
            "seconds": round(seconds, 2),
            "steps": course.step,
            "metrics": {"loss": course.loss, "validation": course.validation, "tests": tests},
            "curve": course.curve,
        }
        if report.models is not None and report.models.keeps and isinstance(model, LM):
            tokenizer = problem.text.tokenizer if isinstance(problem, TextProblem) else None
            report.models.add(run_id(self.training()), model, tokenizer, outcome)
        return model, outcome

    def training(self) -> "Training":
        """The training of this run alone, without what a kind of run asks beside it."""
        return Training(**{field.name: getattr(self, field.name) for field in fields(Training)})

    def further(self, problem: Problem, model: Model) -> dict[str, Any]:
        """What a kind of run asks the trained model beside its tests."""
        return {}


class TrainingLoop:
    """The loop over steps, with its loss, validation score and curve so far."""

    def __init__(self, run: Training, problem: Problem, model: Model, device: torch.device) -> None:
        self.run_, self.problem, self.model, self.device = run, problem, model, device
        self.settings = TrainConfig(
            steps=run.steps, lr=run.lr, warmup=run.warmup, final_lr=run.final_lr, weight_decay=run.weight_decay,
            beta1=run.beta1, beta2=run.beta2, clip=run.clip, batch=run.batch,
        )  # fmt: skip
        self.optimizer = adamw(model, self.settings)
        self.step = self.tokens = self.good = 0
        self.loss = self.validation = math.nan
        self.curve: list[dict[str, float]] = []

    def run(self, report: ProgressReporter) -> None:
        """Takes all steps, or those until the score `enough`."""
        run, recent = self.run_, []
        for step in range(run.steps):
            recent.append(self.take_step(step))
            self.step = step + 1
            if not due(run.validations, step / run.steps, self.step / run.steps):
                continue
            self.loss = float(torch.stack(recent).mean())
            recent.clear()
            # weights too: the last step may have spoiled them after its loss was computed
            for what, value in (("loss", self.loss), ("sum of weights", self.weights())):
                if not math.isfinite(value):
                    raise ValueError(f"the {what} is {value} at step {self.step}; lower the learning rate {run.lr:g}.")
            self.validation = self.validate()
            self.curve.append({"step": self.step, "loss": self.loss, "validation": self.validation})
            report(self.step / run.steps, f"loss {self.loss:.3f}, score {self.validation:.2f}")
            self.good = self.good + 1 if run.enough is not None and self.validation >= run.enough else 0
            if self.good == 2:
                break

    def take_step(self, step: int) -> torch.Tensor:
        """One optimizer step; returns the loss without the price of a graph."""
        run = self.run_
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.settings, step / run.steps)
        with autocast(self.device, run.dtype):
            loss, tokens = self.problem.loss(self.model, step, seed=run.seed, rows=run.batch, device=self.device)
        (loss + run.graph_cost * graph_penalty(self.model) if run.graph_cost else loss).backward()  # type: ignore[no-untyped-call]
        clip_grad_norm_(self.model.parameters(), run.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.tokens += tokens
        return loss.detach()

    def weights(self) -> float:
        """The sum of all weights, which is not finite if one of them is not."""
        return float(torch.stack([weight.detach().sum() for weight in self.model.parameters()]).sum())

    def validate(self) -> float:
        """The mean validation score over lessons, each on its first range of lengths."""
        self.model.eval()
        with torch.no_grad(), autocast(self.device, self.run_.dtype):
            scores = [
                float(self.problem.score(self.model, number, 0, "validation", self.run_.validation_rows)["score"])
                for number in range(len(self.run_.lessons))
            ]
        self.model.train()
        return sum(scores) / len(scores)
