"""How every fast form is judged: it may be at most `factor` times as wrong as the definition in the same precision.

Both errors are taken against the definition in float64 on the same, already rounded, inputs. Judged are the output,
every tensor of the state, and the gradient of every floating-point input through all of them at once.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

Op = Callable[..., tuple[Tensor, Any]]  # (inputs...) -> (output, state); the state is a NamedTuple of tensors


def assert_as_accurate(
    fast: Op, definition: Op, inputs: Sequence[Tensor], *, factor: float = 2.0, names: Sequence[str] = ()
) -> None:
    """`inputs` are tensors; those that are not floating point (resets) are passed through. `names` are for messages."""
    exact_inputs = [x.double() if x.is_floating_point() else x for x in inputs]
    weights = loss_weights(definition, exact_inputs)
    exact = outputs_and_gradients(definition, exact_inputs, weights)
    plain = outputs_and_gradients(definition, inputs, weights)
    got = outputs_and_gradients(fast, inputs, weights)
    names = names or [f"input {n}" for n in range(len(inputs))]
    assert got.keys() == plain.keys() == exact.keys(), f"{list(got)} is not {list(exact)}"
    for key, reference in exact.items():
        label = key if isinstance(key, str) else f"gradient of {names[key]}"
        compare(label, reference, plain[key], got[key], factor)


def loss_weights(definition: Op, inputs: Sequence[Tensor]) -> dict[str, Tensor]:
    """Fixed random weights, one per output element: their weighted sum is the loss whose gradients are compared."""
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x.device)
        for name, x in outputs(definition, inputs).items()
    }


def outputs(op: Op, inputs: Sequence[Tensor]) -> dict[str, Tensor]:
    out, state = op(*inputs)
    return {"output": out, **{f"state.{name}": getattr(state, name) for name in state._fields}}


def outputs_and_gradients(op: Op, inputs: Sequence[Tensor], weights: dict[str, Tensor]) -> dict[str | int, Tensor]:
    """Outputs by name, gradients by the number of their input. Without a path to an input, its gradient is zero."""
    inputs = [x.detach().clone().requires_grad_(x.is_floating_point()) for x in inputs]
    found = outputs(op, inputs)
    # a stabiliser is a unit of measure and carries no gradient
    sum((x.double() * weights[name]).sum() for name, x in found.items() if x.requires_grad).backward()
    gradients = {
        n: torch.zeros_like(x) if x.grad is None else x.grad for n, x in enumerate(inputs) if x.is_floating_point()
    }
    return {**{name: x.detach() for name, x in found.items()}, **gradients}


def compare(label: str, exact: Tensor, plain: Tensor, got: Tensor, factor: float) -> None:
    assert got.dtype == plain.dtype, f"{label}: is {got.dtype}, the definition gives {plain.dtype}"
    assert got.shape == plain.shape, f"{label}: shape {tuple(got.shape)}, the definition gives {tuple(plain.shape)}"
    assert torch.isfinite(got).all(), f"{label}: not finite"
    if exact.numel() == 0:
        return
    # two roundings of the largest element: where the plain form happens to be exact, twice its error is nothing
    floor = 2 * torch.finfo(plain.dtype).eps * exact.abs().max()
    error, allowed = (got - exact).abs().max(), factor * (plain - exact).abs().max() + floor
    assert error <= allowed, f"{label}: error {error:.3e}, allowed {allowed:.3e}"
