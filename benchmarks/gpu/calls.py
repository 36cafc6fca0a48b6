"""Calls of ops, ours and the peers': forward without gradients, or forward and backward with a given gradient."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.gate import relative
from benchmarks.harness import Run, rounded

DIRECTIONS = {"forward": False, "forward_backward": True}
# of the rows of an output that may differ from the plain form's: bfloat16 products do, other equations do more
MIDDLE, MOST = 0.03, 0.3


def output(found: Any) -> Tensor:
    """The output of an op without its state."""
    return found[0] if isinstance(found, tuple) else found


def call(op: Callable[..., Any], inputs: Sequence[Tensor], grad: Callable[[], Tensor] | None) -> Run:
    """A call of one direction, which returns the output, or the gradients of all inputs."""
    return partial(forward, op, inputs) if grad is None else partial(forward_backward, op, inputs, grad())


def forward(op: Callable[..., Any], inputs: Sequence[Tensor]) -> Tensor:
    with torch.no_grad():
        return output(op(*inputs))


def forward_backward(op: Callable[..., Any], inputs: Sequence[Tensor], grad: Tensor) -> tuple[Tensor, ...]:
    inputs = [x.detach().requires_grad_() for x in inputs]
    return torch.autograd.grad(output(op(*inputs)), inputs, grad)


def same_rows(got: Tensor, want: Tensor) -> dict[str, float]:
    """AssertionError unless the last axis of most rows is that of the plain form; how much they differ.

    Rows are judged one by one: where the mass n.q cancels, no form divides by it well, and such rows are large.
    """
    assert got.shape == want.shape, f"its output has shape {tuple(got.shape)}, not {tuple(want.shape)}"
    assert torch.isfinite(got).all(), "not all of its numbers are finite"
    error = (got.float() - want.float()).norm(dim=-1) / want.float().norm(dim=-1).clamp(min=1e-30)
    middle, most = (float(x) for x in error.flatten().quantile(torch.tensor([0.5, 0.95], device=error.device)))
    told = f"its rows differ from the plain form's by {middle:.1e} (median) and {most:.1e} (one in twenty)"
    assert middle <= MIDDLE, f"{told}, allowed {MIDDLE:.0e}"
    assert most <= MOST, f"{told}, allowed {MOST:.0e}"
    return {"row_median": rounded(middle), "row_95": rounded(most), "all": rounded(relative(got, want))}
