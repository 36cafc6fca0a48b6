"""`Timing`: the run that measures a model's seconds, for the time axes of studies.

Runs of a study share the machine, so their own seconds say little. These run after all others, one at a time.

B batch  T time
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from statistics import median
from typing import Any, ClassVar

import torch
from torch import Tensor

from exlstm.infer.token_loop import TokenLoop
from exlstm.mixers.state import LMState
from exlstm.models.lm import LM, LMConfig
from exlstm.models.summary import flops_per_token, parameters
from exlstm.study.pool import ProgressReporter
from exlstm.train.config import TrainConfig
from exlstm.train.loss import model_cross_entropy
from exlstm.train.optimizer import adamw

PLACES = ((16, 1), (2048, 1), (16_384, 1), (16, 8), (16, 64))  # tokens read before, and rows
_PART = 1024  # tokens of one call while a context is read


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Seconds of a training step, of reading a context, and of a new token behind it.

    vocabulary, batch, length: those of training. places: (tokens that were read before, rows at a time) of generation.
    repeats: measurements of each, of which the median counts; one of generation is `tokens` tokens long. A model with a
    table of positions is not asked beyond its end.
    """

    model: str
    architecture: LMConfig
    vocabulary: int
    batch: int
    length: int
    places: tuple[tuple[int, int], ...] = PLACES
    tokens: int = 32
    repeats: int = 5
    varied: tuple[tuple[str, str], ...] = ()
    seed: int = 0
    alone: ClassVar[bool] = True  # see `exlstm.study.contract.Run`

    def facets(self) -> dict[str, str]:
        """Names and values for tables and `--only`; the task is "time"."""
        return {"model": self.model, "task": "time", **dict(self.varied)}

    def execute(self, report: ProgressReporter) -> dict[str, Any]:
        """Measures. The score of its test is the number of tokens per second in training."""
        device = torch.device(report.device)
        torch.manual_seed(self.seed)
        model = LM(replace(self.architecture, vocab_size=self.vocabulary)).to(device)
        began = time.perf_counter()
        step = self.measured(self.training_step(model), device)
        model.eval()
        longest = self.architecture.positions
        places = [place for place in self.places if longest is None or place[0] + self.most_tokens() <= longest]
        generation: list[dict[str, Any]] = []
        for number, (context, rows) in enumerate(places):
            report((number + 1) / (len(places) + 1), f"context {context}, {rows} rows")
            generation.append(self.generation(model, context, rows, device))
        trained = self.batch * self.length
        return {
            "parameters": parameters(model),
            "state_bytes": model.state_bytes(max((context for context, _ in places), default=0)),
            "flops": trained * flops_per_token(model, "train", self.length),
            "seconds": round(time.perf_counter() - began, 2),
            "metrics": {
                "step_seconds": step,
                "generation": generation,
                "tests": [{"task": "time", "score": trained / step, "at_chance": False}],
            },
        }

    def most_tokens(self) -> int:
        """Tokens generated behind a context, warm-up included."""
        return self.tokens * (self.repeats + 1)

    def training_step(self, model: LM) -> Callable[[], object]:
        """A step of the optimizer on random tokens."""
        optimizer = adamw(model, TrainConfig(steps=1, batch=self.batch))
        tokens_BT = _tokens(self.vocabulary, self.batch, self.length + 1, model)

        def step() -> None:
            hidden_BTD, _ = model.hidden(tokens_BT[:, :-1])
            loss = model_cross_entropy(model, hidden_BTD, tokens_BT[:, 1:]) / (self.batch * self.length)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            optimizer.zero_grad()

        return step

    @torch.no_grad()
    def generation(self, model: LM, context: int, rows: int, device: torch.device) -> dict[str, Any]:
        """Seconds of reading a context and of a token behind it, beside FLOPs and bytes of state."""
        tokens_BT = _tokens(self.vocabulary, rows, context, model)
        model(tokens_BT[:, :_PART])  # a first call may compile kernels, and is not counted
        _wait(device)
        began = time.perf_counter()
        state, logits_BTC = None, None
        for start in range(0, context, _PART):
            logits_BTC, state = model(tokens_BT[:, start : start + _PART], state)
        _wait(device)
        reading = time.perf_counter() - began
        assert logits_BTC is not None
        tokens = _Generation(model, state, logits_BTC[:, -1].argmax(-1), self.tokens)
        behind = self.measured(tokens, device)
        return {
            "context": context,
            "rows": rows,
            "reading_seconds": reading,
            "token_seconds": behind / self.tokens,
            "replayed": tokens.loop.why_not is None,
            "flops": flops_per_token(model, "decode", context),
            "state_bytes": model.state_bytes(context),
        }

    def measured(self, run: Callable[[], object], device: torch.device) -> float:
        """The median of seconds of several calls, after one that is not counted."""
        seconds = []
        for _ in range(self.repeats + 1):
            began = time.perf_counter()
            run()
            _wait(device)
            seconds.append(time.perf_counter() - began)
        return median(seconds[1:])


class _Generation:
    """Greedy tokens, so many per call, each call from where the last one ended."""

    def __init__(self, model: LM, state: LMState | None, token_B: Tensor, tokens: int) -> None:
        self.loop, self.token_B, self.tokens = TokenLoop(model, state), token_B, tokens

    def __call__(self) -> None:
        for _ in range(self.tokens):
            self.token_B = self.loop(self.token_B).argmax(-1)


def _tokens(vocabulary: int, rows: int, length: int, model: LM) -> Tensor:
    """Random tokens, the same for all models."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(vocabulary, (rows, length), generator=generator).to(model.embed.weight.device)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
