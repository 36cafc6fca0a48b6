"""One training step in two forms: forward, mean cross entropy, backward, AdamW."""

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from benchmarks.gate import logits_of
from benchmarks.harness import Run
from exlstm.models.lm import LM
from exlstm.train.loss import model_cross_entropy
from exlstm.train.replicas import ThreadedReplicas, default_workers, threads_shared

PLAIN, ROWS = "exlstm, plain loop", "exlstm, rows on threads"


def optimiser(model: nn.Module) -> torch.optim.AdamW:
    """AdamW, the same for all programs, with a rate so small that no run leaves its initial region."""
    return torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)


def batch(vocabulary: int, rows: int, length: int) -> Tensor:
    return torch.randint(vocabulary, (rows, length), generator=torch.Generator().manual_seed(1))


def plain_step(model: nn.Module, tokens_BT: Tensor, dtype: torch.dtype | None = None) -> Run:
    """The loop of a tutorial: torch's own threads inside every operation, and torch's cross entropy."""
    steps, targets_N = optimiser(model), tokens_BT.roll(-1, 1).flatten()

    def step() -> None:
        with torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
            logits_BTC = logits_of(model, tokens_BT)
        cross_entropy(logits_BTC.flatten(0, 1).float(), targets_N).backward()
        steps.step()
        steps.zero_grad(set_to_none=True)

    return step


def rows_step(model: LM, tokens_BT: Tensor, dtype: torch.dtype | None = None) -> Run:
    """The loop of `exlstm train`: each thread has some rows of the batch, and gradients are added at the end."""
    workers = default_workers(torch.device("cpu"), len(tokens_BT))
    steps, targets_BT = optimiser(model), tokens_BT.roll(-1, 1)
    with threads_shared(workers):
        replicas = ThreadedReplicas(model, workers)

    def part(own: LM, rows: slice, number: int) -> None:
        with torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
            hidden_BTD, _ = replicas.hidden[number](tokens_BT[rows])
            loss = model_cross_entropy(own, hidden_BTD, targets_BT[rows])
        (loss / tokens_BT.numel()).backward()

    def step() -> None:
        with threads_shared(workers):
            replicas.run(part, len(tokens_BT))
            replicas.gather_gradients()
            steps.step()
            steps.zero_grad(set_to_none=True)

    return step


def tokens_per_second(tokens: int, timings: dict) -> dict[str, int]:
    return {name: round(tokens / timing.median) for name, timing in timings.items()}
