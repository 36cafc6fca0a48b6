"""Second derivatives of autograd Functions whose backward is written by hand.

Under `create_graph=True` torch runs a backward with gradients enabled and expects a graph of it, which a kernel does
not make. torch's own `once_differentiable` notices only a second derivative that goes through the gradient of the
result; one that goes through the inputs alone is silently zero.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor

Gradients = tuple[Tensor | None, ...]
Backward = Callable[..., Gradients]


def graph_wanted() -> bool:
    """Whether a backward has to make a graph. torch.compile traces it with gradients enabled, and makes none."""
    return torch.is_grad_enabled() and not torch.compiler.is_compiling()


def twice_differentiable(plain: Callable[..., Tensor | tuple[Tensor, ...]]) -> Callable[[Backward], Backward]:
    """Decorates a backward: where a graph is wanted, gradients are those of `plain`, in plain torch.

    plain(*ctx.saved_tensors, **ctx.options) gives the Function's results. Saved are its inputs, in its own order.
    """

    def decorate(backward: Backward) -> Backward:
        @wraps(backward)
        def run(ctx: Any, *gradients: Tensor | None) -> Gradients:
            if not graph_wanted():
                return backward(ctx, *gradients)
            needed = [bool(need) for need in ctx.needs_input_grad]
            # views: where one input was computed from another, gradients of both stop here
            saved = [x if x is None else x.view_as(x) for x in ctx.saved_tensors]
            results = plain(*saved, **ctx.options)
            results = (results,) if isinstance(results, Tensor) else results
            pairs = [(y, dy) for y, dy in zip(results, gradients, strict=True) if y.requires_grad and dy is not None]
            found = torch.autograd.grad(
                [y for y, _ in pairs], [x for x, need in zip(saved, needed, strict=False) if need and x is not None],
                [dy for _, dy in pairs], create_graph=True, allow_unused=True,
            )  # fmt: skip
            each = iter(found)
            return tuple(next(each) if need else None for need in needed)

        return run

    return decorate


def once_differentiable(op: str, backend: str) -> Callable[[Backward], Backward]:
    """Decorates the backward of a cell: where a graph is wanted, ValueError with the backend that makes one."""

    def decorate(backward: Backward) -> Backward:
        @wraps(backward)
        def run(ctx: Any, *gradients: Tensor | None) -> Gradients:
            if graph_wanted():
                raise ValueError(
                    f"create_graph=True asks the backend {backend!r} of {op} for second derivatives, which it does not "
                    "have; use backend='recurrent' (of a layer: mixer.backend = 'recurrent')."
                )
            return backward(ctx, *gradients)

        return run

    return decorate
