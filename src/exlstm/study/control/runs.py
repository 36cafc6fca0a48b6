"""Runs of studies of control: learning by reward, learning the right answers, and frames per second.

All act and learn on the CPU, whatever the machine has: a step of so few rows is too small for a GPU.

B rows  T steps  D width of an observation  C actions
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import mean, median, stdev
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.utils import clip_grad_norm_

from exlstm.data.control import CONTROL_TASKS, ControlTask, Environments
from exlstm.data.packing import IGNORE
from exlstm.mixers.state import leaves, map_state
from exlstm.study.control.agent import ActorCritic
from exlstm.study.control.memories import MEMORIES, MemorySize
from exlstm.study.control.ppo import PPO, PPOConfig, weights_are_finite
from exlstm.study.control.rollout import Actor, evaluate
from exlstm.study.pool import ProgressReporter

QUICK_PPO = PPOConfig(rows=4, steps=8, epochs=1, minibatches=2)
QUICK_CONTROL: Mapping[str, Any] = {"frames": 64, "ppo": QUICK_PPO, "episodes": 4, "points": 2}
_SIGMA = 3.0  # standard errors above the best return without memory that count as learned


def task_of(name: str) -> ControlTask:
    """The task of this name. ValueError for a name that there is not."""
    if name not in CONTROL_TASKS:
        raise ValueError(f"there is no task of control {name!r}; use one of {', '.join(CONTROL_TASKS)}.")
    return CONTROL_TASKS[name]


def check_names(model: str, task: str) -> None:
    """ValueError for a memory or a task that there is not."""
    task_of(task)
    if model not in MEMORIES:
        raise ValueError(f"there is no memory {model!r}; use one of {', '.join(MEMORIES)}.")


def outcome(agent: ActorCritic, task: ControlTask, episodes: int, seconds: float) -> dict[str, Any]:
    """The row of a trained agent: its costs, its validation score, and its test. A score is a mean return."""
    returns = evaluate(agent, task, "test", episodes)
    score, guess = mean(returns), task.without_memory
    error = stdev(returns) / len(returns) ** 0.5 if len(returns) > 1 else 0.0
    _, _, state = agent(torch.zeros(1, 1, task.inputs), None, torch.ones(1, 1, dtype=torch.bool))
    test = {
        "task": task.name,
        "score": score,
        "worst": min(returns),
        "solved": score >= task.solved,
        "at_chance": guess is not None and score <= guess + _SIGMA * error,
        "asked": len(returns),
    }
    return {
        "parameters": sum(weight.numel() for weight in agent.parameters()),
        "memory_parameters": sum(weight.numel() for weight in agent.memory.parameters()),
        "state_bytes": sum(leaf.numel() * leaf.element_size() for leaf in leaves(state)),
        "seconds": round(seconds, 2),
        "metrics": {"validation": mean(evaluate(agent, task, "validation", episodes)), "tests": [test]},
    }


@dataclass(frozen=True, kw_only=True)
class ControlRun:
    """An agent that learns a task by PPO, and its mean return in test episodes: all that the result depends on.

    model: a name in MEMORIES. size: of the memory. frames: actions of all rows together, rounded up to whole rollouts.
    points: of the learning curve, each the mean return of the episodes that ended since the one before.
    episodes: of validation and of the test. Their actions are the likeliest ones; those of training are drawn.
    seed: of the initial weights, of actions, and of the episodes of training.
    """

    model: str
    task: str
    size: MemorySize
    lr: float
    frames: int
    embedding: int = 64
    ppo: PPOConfig = field(default_factory=PPOConfig)
    points: int = 20
    episodes: int = 256
    varied: tuple[tuple[str, str], ...] = (("taught", "reward"),)
    seed: int = 0

    def __post_init__(self) -> None:
        check_names(self.model, self.task)
        for name in ("frames", "points", "episodes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)} in a run of {self.model}; use at least 1.")

    def facets(self) -> dict[str, str]:
        """Names and values for tables and `--only`."""
        return {"model": self.model, "task": self.task, **dict(self.varied)}

    def execute(self, report: ProgressReporter) -> dict[str, Any]:
        """Trains and tests. ValueError for weights that are not finite."""
        began = time.perf_counter()
        agent, curve = self.trained(report)
        agent.eval()
        return {
            **outcome(agent, task_of(self.task), self.episodes, time.perf_counter() - began),
            "frames": curve[-1]["frames"],
            "curve": curve,
        }

    def trained(self, report: ProgressReporter) -> tuple[ActorCritic, list[dict[str, float]]]:
        """The agent after its training, and its learning curve."""
        torch.manual_seed(self.seed)
        task, generator = task_of(self.task), torch.Generator().manual_seed(self.seed)
        agent = ActorCritic(task, self.model, self.size, embedding=self.embedding)
        actor = Actor(agent, Environments(task, self.ppo.rows, seed=self.seed, split="train"), generator)
        learner = PPO(agent, self.ppo, self.lr, generator)
        each = self.ppo.rows * self.ppo.steps
        rollouts, curve = -(-self.frames // each), list[dict[str, float]]()
        for number in range(rollouts):
            losses = learner.update(actor.rollout(self.ppo.steps), number / rollouts)
            share = (number + 1) / rollouts
            due = int(share * self.points) > int(number / rollouts * self.points)
            if not due and number + 1 < rollouts:
                continue
            if not weights_are_finite(agent):
                raise ValueError(f"weights are not finite after {share:.0%}; lower the learning rate {self.lr:g}.")
            point: dict[str, float] = {"frames": (number + 1) * each, **losses}
            if actor.returns:  # there may be none in a few frames
                point["return"] = mean(actor.returns)
                actor.returns = []
            curve.append(point)
            report(share, f"return {point.get('return', 0):.2f}")
        return agent, curve


@dataclass(frozen=True, kw_only=True)
class Recitation:
    """An agent that is told the right actions of a stream of episodes, and its mean return in test episodes.

    The memory alone is asked here, not whether reward finds it. Rows are `length` steps long, with resets inside, and
    go on where the ones before ended; gradients stay within them.
    """

    model: str
    task: str
    size: MemorySize
    lr: float
    steps: int
    rows: int = 16
    length: int = 128
    embedding: int = 64
    episodes: int = 256
    max_norm: float = 1.0
    varied: tuple[tuple[str, str], ...] = (("taught", "answers"),)
    seed: int = 0

    def __post_init__(self) -> None:
        check_names(self.model, self.task)

    def facets(self) -> dict[str, str]:
        """Names and values for tables and `--only`."""
        return {"model": self.model, "task": self.task, **dict(self.varied)}

    def execute(self, report: ProgressReporter) -> dict[str, Any]:
        """Trains and tests. ValueError for weights that are not finite."""
        torch.manual_seed(self.seed)
        task = task_of(self.task)
        agent = ActorCritic(task, self.model, self.size, embedding=self.embedding)
        stream = AnsweredStream(task, self.rows, self.seed)
        optimizer = torch.optim.Adam(agent.parameters(), lr=self.lr)
        state, curve, began = None, list[dict[str, float]](), time.perf_counter()
        for step in range(self.steps):
            optimizer.param_groups[0]["lr"] = self.lr * (1 - step / self.steps)
            observation_BTD, begins_BT, answer_BT = stream.take(self.length)
            logits_BTC, _, state = agent(observation_BTD, state, begins_BT)
            state = map_state(torch.Tensor.detach, state)
            loss = functional.cross_entropy(logits_BTC.flatten(0, 1), answer_BT.flatten(), ignore_index=IGNORE)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            clip_grad_norm_(agent.parameters(), self.max_norm)
            optimizer.step()
            if (step + 1) % max(1, self.steps // 20) == 0:
                now = float(loss.detach())
                curve.append({"step": step + 1, "loss": now})
                report((step + 1) / self.steps, f"loss {now:.3f}")
        if not weights_are_finite(agent):
            raise ValueError(f"weights are not finite; lower the learning rate {self.lr:g}.")
        return {**outcome(agent.eval(), task, self.episodes, time.perf_counter() - began), "curve": curve}


class AnsweredStream:
    """Episodes that are acted in as is right, one after the other in every row. ValueError without right actions."""

    def __init__(self, task: ControlTask, rows: int, seed: int) -> None:
        self.environments = Environments(task, rows, seed=seed, split="train")
        self.observation_BD = torch.from_numpy(self.environments.first())
        self.begins_B = torch.ones(rows, dtype=torch.bool)

    def take(self, length: int) -> tuple[Tensor, Tensor, Tensor]:
        """The next steps: observations [B, T, D], where episodes begin, and answers, IGNORE where there is none."""
        taken = []
        for _ in range(length):
            answer_B = self.environments.answers()
            taken.append((self.observation_BD, self.begins_B, torch.from_numpy(answer_B)))
            observation_BD, _, begins_B = self.environments.step(answer_B.clip(min=0))
            self.observation_BD, self.begins_B = torch.from_numpy(observation_BD), torch.from_numpy(begins_B)
        observation_BTD, begins_BT, answer_BT = (torch.stack(column, dim=1) for column in zip(*taken, strict=True))
        if bool((answer_BT == IGNORE).all()):
            name = self.environments.task.name
            raise ValueError(f"{name} has no right actions in {length} steps; teach another task, or longer rows.")
        return observation_BTD, begins_BT, answer_BT


@dataclass(frozen=True, kw_only=True)
class ControlTiming:
    """Frames per second of acting, and of acting and learning, the median of `repeats` rollouts."""

    model: str
    task: str
    size: MemorySize
    embedding: int = 64
    ppo: PPOConfig = field(default_factory=PPOConfig)
    repeats: int = 5
    varied: tuple[tuple[str, str], ...] = (("taught", "time"),)
    seed: int = 0
    alone: ClassVar[bool] = True  # see `exlstm.study.contract.Run`

    def __post_init__(self) -> None:
        check_names(self.model, self.task)

    def facets(self) -> dict[str, str]:
        """Names and values for tables and `--only`."""
        return {"model": self.model, "task": self.task, **dict(self.varied)}

    def execute(self, report: ProgressReporter) -> dict[str, Any]:
        """Measures. The score of its test is the number of frames per second in training."""
        torch.manual_seed(self.seed)
        task, generator = task_of(self.task), torch.Generator().manual_seed(self.seed)
        agent = ActorCritic(task, self.model, self.size, embedding=self.embedding)
        actor = Actor(agent, Environments(task, self.ppo.rows, seed=self.seed, split="train"), generator)
        learner = PPO(agent, self.ppo, 1e-5, generator)
        acting, learning, began = list[float](), list[float](), time.perf_counter()
        for number in range(self.repeats + 1):
            moments = [time.perf_counter()]
            rollout = actor.rollout(self.ppo.steps)
            moments.append(time.perf_counter())
            learner.update(rollout, 0.0)
            moments.append(time.perf_counter())
            acting.append(moments[1] - moments[0])
            learning.append(moments[2] - moments[1])
            report((number + 1) / (self.repeats + 1), f"rollout {number + 1}")
        frames = self.ppo.rows * self.ppo.steps
        both = median(a + b for a, b in zip(acting[1:], learning[1:], strict=True))  # a first one may compile kernels
        test = {"task": task.name, "score": frames / both, "at_chance": False}
        return {
            "parameters": sum(weight.numel() for weight in agent.parameters()),
            "seconds": round(time.perf_counter() - began, 2),
            "metrics": {
                "tests": [test],
                "acting": frames / median(acting[1:]),
                "learning": frames / median(learning[1:]),
            },
        }
