"""The accuracy rule: a fast form may be at most `factor` times as wrong as the definition in the same precision.

Both errors are taken against the definition in float64 on the same, already rounded, inputs. Judged are the output,
every tensor of the state, and the gradient of every floating-point input through all of them at once. The largest error
of one draw is a matter of luck, and of the order in which a processor sums: the rule is for the median of several.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

Op = Callable[..., tuple[Tensor, Any]]  # (inputs...) -> (output, state); the state is a NamedTuple of tensors
Found = dict[str, Tensor]
DRAWS = range(5)  # seeds of the draws that a rule is applied to


def assert_as_accurate(
    fast: Op, definition: Op, draws: Iterable[Sequence[Tensor]], *, factor: float = 2.0, names: Sequence[str] = ()
) -> None:
    """draws: inputs, several times; those that are not floating point (resets) are passed through.

    names: of the inputs, for messages.
    """
    compare((exact_plain_and_fast(fast, definition, inputs, names) for inputs in draws), factor)


def exact_plain_and_fast(fast: Op, definition: Op, inputs: Sequence[Tensor], names: Sequence[str]) -> list[Found]:
    """Results of the float64 definition, the plain form and the fast form for one draw, under the same names."""
    exact_inputs = [x.double() if x.is_floating_point() else x for x in inputs]
    weights = loss_weights(definition, exact_inputs)
    runs = (definition, exact_inputs), (definition, inputs), (fast, inputs)
    return [outputs_and_gradients(op, x, weights, names) for op, x in runs]


def compare(draws: Iterable[Sequence[Found]], factor: float = 2.0) -> None:
    """The rule on tensors by name, three times for each draw: exact, of the definition, of the fast form."""
    errors: dict[str, list[Tensor]] = {}
    floors: dict[str, float] = {}
    for exact, plain, got in draws:
        assert got.keys() == plain.keys() == exact.keys(), f"{list(got)} is not {list(exact)}"
        for label, want in exact.items():
            check_kind(label, plain[label], got[label])
            if want.numel():
                largest = torch.stack([(form[label] - want).abs().max() for form in (got, plain)])
                errors.setdefault(label, []).append(largest.double() / want.abs().max().clamp(min=1e-30).double())
                # two roundings of the largest element: where the plain form happens to be exact, twice its error is
                # nothing
                floors[label] = 2 * torch.finfo(plain[label].dtype).eps
    for label, pairs in errors.items():
        error, plain_error = torch.stack(pairs).median(dim=0).values.tolist()
        allowed = factor * plain_error + floors[label]
        assert error <= allowed, f"{label}: relative error {error:.3e} in {len(pairs)} draws, allowed {allowed:.3e}"


def check_kind(label: str, plain: Tensor, got: Tensor) -> None:
    """Checks dtype, shape and finiteness in every draw."""
    assert got.dtype == plain.dtype, f"{label}: is {got.dtype}, the definition gives {plain.dtype}"
    assert got.shape == plain.shape, f"{label}: shape {tuple(got.shape)}, the definition gives {tuple(plain.shape)}"
    assert torch.isfinite(got).all(), f"{label}: not finite"


def loss_weights(definition: Op, inputs: Sequence[Tensor]) -> Found:
    """Fixed random weights, one per output element: their weighted sum is the loss whose gradients are compared."""
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x.device)
        for name, x in outputs(definition, inputs).items()
    }


def outputs(op: Op, inputs: Sequence[Tensor]) -> Found:
    """The output and every tensor of the state, by name."""
    out, state = op(*inputs)
    return {"output": out, **{f"state.{name}": getattr(state, name) for name in state._fields}}


def outputs_and_gradients(op: Op, inputs: Sequence[Tensor], weights: Found, names: Sequence[str] = ()) -> Found:
    """Outputs, and the gradients of the inputs. Without a path to an input, its gradient is zero."""
    names = names or [f"input {n}" for n in range(len(inputs))]
    inputs = [x.detach().clone().requires_grad_(x.is_floating_point()) for x in inputs]
    found = outputs(op, inputs)
    # a stabiliser is a unit of measure and carries no gradient
    sum((x.double() * weights[name]).sum() for name, x in found.items() if x.requires_grad).backward()
    gradients = {
        f"gradient of {name}": torch.zeros_like(x) if x.grad is None else x.grad
        for name, x in zip(names, inputs, strict=False)  # names may go on
        if x.is_floating_point()
    }
    return {**{name: x.detach() for name, x in found.items()}, **gradients}
