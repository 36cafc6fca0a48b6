"""Data parallelism on CPU threads: replicas of a model share its weights, and each takes some rows of the batch.

Threads synchronize once a step, when gradients are added. torch's own threads do so in every operation, thousands of
times a step: on two cores that is a little slower on a quiet machine, and ten times slower beside a busy process.
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
Forward = Callable[..., Any]  # `LM.hidden`, compiled or not


def share_weights(model: LM) -> LM:
    """A replica: the same weights and buffers, in the same memory, and gradients of its own."""
    # deepcopy takes these as the copies; buffers are quantized weights, which are never written
    memo: dict[int, Tensor] = {id(x): x for x in model.buffers()}
    memo |= {id(x): nn.Parameter(x.detach(), requires_grad=x.requires_grad) for x in model.parameters()}
    return copy.deepcopy(model, memo)


class ThreadedReplicas:
    """A model and its replicas, one for each of `workers` threads.

    hidden: `LM.hidden` of each. compiled: by torch.compile, for one worker only.
    """

    def __init__(self, model: LM, workers: int, *, compiled: bool = False) -> None:
        self.models = [model, *(share_weights(model) for _ in range(workers - 1))]
        assert workers == 1 or not compiled
        self.hidden: list[Forward] = [torch.compile(model.hidden)] if compiled else [m.hidden for m in self.models]
        self.pool = ThreadPoolExecutor(
            workers, "exlstm-replicas", initializer=torch.set_num_threads, initargs=(torch.get_num_threads(),)
        )

    def run(self, work: Callable[[LM, slice, int], Result], rows: int) -> list[Result]:
        """Calls `work(model, part, number)` once per worker, on its slice of `rows` rows; results in row order."""
        workers = min(len(self.models), rows)
        if workers == 1:
            return [work(self.models[0], slice(0, rows), 0)]
        edges = [rows * number // workers for number in range(workers + 1)]
        parts = [slice(*edge) for edge in pairwise(edges)]
        return list(self.pool.map(work, self.models[:workers], parts, range(workers)))

    def gather_gradients(self) -> None:
        """Adds the replicas' gradients to the model's, in a fixed order, and clears them."""
        model, *others = self.models
        for replica in others:
            for mine, theirs in zip(model.parameters(), replica.parameters(), strict=True):
                if theirs.grad is not None:
                    mine.grad = theirs.grad if mine.grad is None else mine.grad.add_(theirs.grad)
                    theirs.grad = None

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Evaluation mode for the model and its replicas."""
        was_training = self.models[0].training
        for model in self.models:
            model.eval()
        try:
            yield
        finally:
            for model in self.models:
                model.train(was_training)


def default_workers(device: torch.device, batch: int, *, alone: bool = False) -> int:
    """Workers for a batch: torch's threads on a CPU, at most one per row; 1 on other devices or if `alone`."""
    return 1 if alone or device.type != "cpu" else min(torch.get_num_threads(), batch)


@contextmanager
def threads_shared(workers: int) -> Iterator[None]:
    """Divides torch's threads among `workers`. `ThreadedReplicas` made inside keep to that."""
    before = torch.get_num_threads()
    torch.set_num_threads(max(1, before // workers))
    try:
        yield
    finally:
        torch.set_num_threads(before)
