"""The run of studies of arrays: a net of so many parameters that learns a task's rows, and its test.

All learn on the CPU, whatever the machine has: a step of so small a net is too small for a GPU.

N rows of a batch  T time  D numbers of a step
"""

import math
import time
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.utils import clip_grad_norm_

from exlstm.ops.common import length_mask
from exlstm.study.arrays.classes import ARCHIVE, CLASSES, archive_task
from exlstm.study.arrays.contract import ArrayTask, outputs
from exlstm.study.arrays.nets import check_net, net_of
from exlstm.study.arrays.rows import ArrayRows, joined
from exlstm.study.arrays.systems import PHYSICS
from exlstm.study.pool import ProgressReporter
from exlstm.train.config import TrainConfig
from exlstm.train.schedule import due, learning_rate

QUICK_ARRAYS: Mapping[str, Any] = {"steps": 4, "batch": 8, "validations": 2, "parameters": 6000, "lr": 3e-3}


def array_task(name: str) -> ArrayTask:
    """The task of this name. ValueError for a name that there is not."""
    if name.startswith(ARCHIVE):
        return archive_task(name.removeprefix(ARCHIVE))
    if name in CLASSES:
        return CLASSES[name]
    if name in PHYSICS:
        return PHYSICS[name]
    raise ValueError(f"there is no task {name!r}; use one of {', '.join([*CLASSES, *PHYSICS])}, or {ARCHIVE}NAME.")


@dataclass(frozen=True, kw_only=True)
class ArrayRun:
    """A net, its task and the settings of training: all that the result depends on.

    The optimizer is AdamW with a warm-up and a cosine; matrices decay. The weights that are tested are those with the
    best of `validations` scores, which are spread over training.
    model: a name in NETS. parameters: of the net, within 5 %. patch: so many steps, or pixels of a side, are one.
    noise: deviation of normal noise on what is read in training. refit: a second net is trained on the rows of training
    and validation together, for as many steps as were best, and tested.
    seed: of the initial weights, of the order of rows, and of noise.
    """

    model: str
    task: str
    parameters: int
    lr: float
    steps: int
    batch: int = 32
    patch: int = 1
    validations: int = 10
    warmup: float = 0.1
    final_lr: float = 0.01
    weight_decay: float = 0.01
    clip: float = 1.0
    noise: float = 0.0
    refit: bool = False
    varied: tuple[tuple[str, str], ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        check_net(self.model)
        array_task(self.task)
        for name in ("steps", "batch", "patch", "validations", "parameters"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)} in a run of {self.model}; use at least 1.")

    def facets(self) -> dict[str, str]:
        """Names and values for tables and `--only`; runs that share them differ in learning rate and seed only."""
        return {"model": self.model, "task": self.task.removeprefix(ARCHIVE), **dict(self.varied)}

    def execute(self, report: ProgressReporter) -> dict[str, Any]:
        """Trains and tests. ValueError for a loss that is not finite."""
        began, task = time.perf_counter(), array_task(self.task)
        parts = task.parts()
        fitted = Fitting(self, task, parts["train"], parts["validation"])
        fitted.run(self.steps, report)
        net = fitted.best_net()
        if self.refit:
            again = Fitting(self, task, joined(parts["train"], parts["validation"]), None)
            again.run(fitted.best_step, report)
            net = again.net
        net.eval()
        with torch.no_grad():
            test = task.test(net)
        return {
            "parameters": sum(weight.numel() for weight in net.parameters()),
            "seconds": round(time.perf_counter() - began, 2),
            "metrics": {"validation": fitted.best, "tests": [test], "best_step": fitted.best_step},
            "curve": fitted.curve,
        }


class Fitting:
    """A net in training, with the best score so far. validation: None: there are no scores."""

    def __init__(self, run: ArrayRun, task: ArrayTask, train: ArrayRows, validation: ArrayRows | None) -> None:
        torch.manual_seed(run.seed)
        self.run_, self.task, self.train, self.validation = run, task, train, validation
        self.net: nn.Module = net_of(run.model, task.shape(run.patch), run.parameters)
        self.generator = torch.Generator().manual_seed(run.seed)
        self.best, self.best_step, self.best_weights = -math.inf, 0, dict[str, Any]()
        self.curve: list[dict[str, float]] = []
        self.order = torch.empty(0, dtype=torch.int64)
        matrices = [weight for weight in self.net.parameters() if weight.ndim > 1]
        others = [weight for weight in self.net.parameters() if weight.ndim <= 1]
        groups = [{"params": matrices, "weight_decay": run.weight_decay}, {"params": others, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW([group for group in groups if group["params"]], lr=run.lr, fused=True)

    def run(self, steps: int, report: ProgressReporter) -> None:
        """Takes so many steps. ValueError for a loss that is not finite."""
        run, recent = self.run_, []
        settings = TrainConfig(steps=steps, lr=run.lr, warmup=run.warmup, final_lr=run.final_lr)
        for step in range(steps):
            for group in self.optimizer.param_groups:
                group["lr"] = learning_rate(settings, step / steps)
            recent.append(self.take_step())
            if not due(min(run.validations, steps), step / steps, (step + 1) / steps):
                continue
            loss = float(torch.stack(recent).mean())
            recent.clear()
            if not math.isfinite(loss):
                raise ValueError(f"the loss is {loss} at step {step + 1}; lower the learning rate {run.lr:g}.")
            self.judge(step + 1, loss)
            report((step + 1) / steps, f"loss {loss:.3f}, score {self.best:.3f}")

    def take_step(self) -> torch.Tensor:
        """One step of the optimizer on the next rows; returns the loss."""
        run = self.run_
        if len(self.order) < min(run.batch, len(self.train.x_NTD)):
            shuffled = torch.randperm(len(self.train.x_NTD), generator=self.generator)
            self.order = torch.cat([self.order, shuffled])
        index, self.order = self.order[: run.batch], self.order[run.batch :]
        rows = self.train.taken(index)
        if run.noise:
            noise = run.noise * torch.randn(rows.x_NTD.shape, generator=self.generator)
            own_NT = length_mask(rows.lengths_N, rows.x_NTD.shape[1])
            rows = rows._replace(x_NTD=rows.x_NTD + noise.where(own_NT[..., None], 0))
        loss = self.task.loss(outputs(self.net, rows), rows)
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        clip_grad_norm_(self.net.parameters(), run.clip)
        self.optimizer.step()
        return loss.detach()

    def judge(self, step: int, loss: float) -> None:
        """Keeps the weights if they are the best so far. ValueError for a score that is not finite."""
        point = {"step": step, "loss": loss}
        if self.validation is not None:
            self.net.eval()
            with torch.no_grad():
                score = self.task.score(self.net, self.validation)
            self.net.train()
            if not math.isfinite(score):
                raise ValueError(f"the score is {score} at step {step}; lower the learning rate {self.run_.lr:g}.")
            point["validation"] = score
            if score > self.best:
                self.best, self.best_step = score, step
                self.best_weights = deepcopy(self.net.state_dict())
        self.curve.append(point)

    def best_net(self) -> nn.Module:
        """The net with the weights of the best score."""
        self.net.load_state_dict(self.best_weights)
        return self.net
