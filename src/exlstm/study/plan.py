"""What a study will cost before it runs: parameters, FLOPs and hours of every model, from architectures alone.

Models are built on the meta device, so the paper's sizes are planned in seconds, and one that cannot be built is found.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import nn

from exlstm.models.explain import aligned
from exlstm.models.lm import LM, LMConfig
from exlstm.models.summary import flops_per_token, parameters
from exlstm.study.contract import Size, Study, settings
from exlstm.study.problems import Lesson, Model, TextProblem, problem_of
from exlstm.study.training import Training

HOUR = 3600.0


@dataclass(frozen=True, kw_only=True)
class PlannedCost:
    """Of one model name: parameters of the smallest and the largest, number of trainings, their FLOPs in all."""

    model: str
    smallest: int
    largest: int
    runs: int
    flops: float


def plan(study: Study, size: Size, seeds: int) -> tuple[list[PlannedCost], int]:
    """The costs of all trainings of a study by model, and the number of runs that are no trainings.

    Every learning rate counts once, and every seed at the chosen rate; early stopping is not foreseen.
    """
    found: dict[str, list[tuple[int, int, float]]] = {}
    others = 0
    for group in settings(study.planned(size)):
        runs = len(group) + seeds if len(group) > 1 else seeds
        if not isinstance(group[0], Training):
            others += runs
            continue
        count, flops = training_cost(group[0])
        found.setdefault(group[0].model, []).append((count, runs, runs * flops))
    costs = [
        PlannedCost(
            model=model,
            smallest=min(count for count, _, _ in rows),
            largest=max(count for count, _, _ in rows),
            runs=sum(runs for _, runs, _ in rows),
            flops=sum(flops for _, _, flops in rows),
        )
        for model, rows in found.items()
    ]
    return costs, others


def training_cost(run: Training) -> tuple[int, float]:
    """Parameters of a run's model, and the FLOPs of all of its steps, with rows of the largest length."""
    model, length = _model(run.architecture, run.lessons), max(lesson.train[1] for lesson in run.lessons)
    return parameters(model), run.steps * run.batch * length * flops_per_token(model, "train", length)


@lru_cache(maxsize=256)
def _model(architecture: LMConfig, lessons: tuple[Lesson, ...]) -> Model:
    problem = problem_of(lessons)
    with torch.device("meta"):
        if isinstance(problem, TextProblem):  # its vocabulary is in its name; reading the text takes a minute
            return LM(replace(architecture, vocab_size=int(problem.lesson.task.partition("/")[2])))
        model: nn.Module = problem.build(architecture)
    assert isinstance(model, Model)
    return model


def table(costs: Sequence[PlannedCost], others: int, *, tflops: float) -> str:
    """The plan as text. tflops: what one GPU or machine sustains, in units of 10^12 FLOPs a second."""
    heading = ("model", "parameters", "runs", "FLOPs", "hours")
    rows = [
        (
            cost.model,
            f"{cost.smallest:,}" + (f" to {cost.largest:,}" if cost.largest > cost.smallest else ""),
            f"{cost.runs:,}",
            f"{cost.flops:.2e}",
            f"{cost.flops / (tflops * 1e12 * HOUR):,.2f}",
        )
        for cost in costs
    ]
    flops = sum(cost.flops for cost in costs)
    hours = flops / (tflops * 1e12 * HOUR)
    lines = aligned([heading, *rows])
    lines.append(
        f"{sum(cost.runs for cost in costs):,} trainings, {flops:.2e} FLOPs, {hours:,.1f} hours of one device at "
        f"{tflops:g} TFLOP/s" + (f"; {others:,} other runs" if others else "")
    )
    return "\n".join(lines)
