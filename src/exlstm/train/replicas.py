"""Work on several CPU threads, each with some rows of the batch.

Rows are independent, so threads meet only once a step, when gradients are added. Threads inside every operation, which
is what torch does by itself, meet thousands of times a step: on two cores that is a little slower when the machine is
quiet, and ten times slower when another process keeps one of the cores busy.
"""

import copy
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from exlstm.models.lm import LM

Result = TypeVar("Result")
Forward = Callable[..., Any]  # a model, its `hidden`, or that compiled


def share_weights(model: LM) -> LM:
    """A model with the same weights and buffers, in the same memory, and gradients of its own."""
    # deepcopy takes these as the copies; buffers are quantised weights, which nothing changes
    memo: dict[int, Tensor] = {id(x): x for x in model.buffers()}
    memo |= {id(x): nn.Parameter(x.detach(), requires_grad=x.requires_grad) for x in model.parameters()}
    return copy.deepcopy(model, memo)


class ThreadedReplicas:
    """A model, and copies that share its weights: one for each of `workers` threads.

    hidden: `LM.hidden` of each of them; that of the only one may be compiled.
    """

    def __init__(self, model: LM, workers: int, *, compiled: bool = False) -> None:
        self.models = [model, *(share_weights(model) for _ in range(workers - 1))]
        assert workers == 1 or not compiled
        self.hidden: list[Forward] = [torch.compile(model.hidden)] if compiled else [m.hidden for m in self.models]
        self.pool = ThreadPoolExecutor(
            workers, "exlstm-replicas", initializer=torch.set_num_threads, initargs=(torch.get_num_threads(),)
        )

    def run(self, work: Callable[[LM, slice, int], Result], rows: int) -> list[Result]:
        """`work(model, part, number)` for one part of `rows` rows per worker; results in the order of the rows."""
        workers = min(len(self.models), rows)
        if workers == 1:
            return [work(self.models[0], slice(0, rows), 0)]
        edges = [rows * number // workers for number in range(workers + 1)]
        parts = [slice(*edge) for edge in pairwise(edges)]
        return list(self.pool.map(work, self.models[:workers], parts, range(workers)))

    def gather_gradients(self) -> None:
        """Adds every worker's gradients to the model's, in a fixed order, and clears theirs."""
        model, *others = self.models
        for replica in others:
            for mine, theirs in zip(model.parameters(), replica.parameters(), strict=True):
                if theirs.grad is not None:
                    mine.grad = theirs.grad if mine.grad is None else mine.grad.add_(theirs.grad)
                    theirs.grad = None

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """All models in evaluation mode for a while."""
        was_training = self.models[0].training
        for model in self.models:
            model.eval()
        try:
            yield
        finally:
            for model in self.models:
                model.train(was_training)


def default_workers(device: torch.device, batch: int, *, alone: bool = False) -> int:
    """One per thread that torch may use on a CPU, at most one per row; one on other devices or where `alone`."""
    return 1 if alone or device.type != "cpu" else min(torch.get_num_threads(), batch)


@contextmanager
def threads_shared(workers: int) -> Iterator[None]:
    """Every thread that computes gets its share of torch's threads; a `ThreadedReplicas` made inside keeps to that."""
    before = torch.get_num_threads()
    torch.set_num_threads(max(1, before // workers))
    try:
        yield
    finally:
        torch.set_num_threads(before)
