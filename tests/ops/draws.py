"""The accuracy rule where the error is mostly that of one ill-conditioned element, and so a matter of luck."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from accuracy import Op, loss_weights, outputs_and_gradients


def assert_as_accurate_in_the_middle(
    fast: Op, definition: Op, draws: Iterable[Sequence[Tensor]], *, names: Sequence[str]
) -> None:
    """Over several draws of the inputs, the median error of `fast` is at most twice that of the definition."""
    errors: dict[str | int, list[Tensor]] = {}
    for x in draws:
        exact_x = [t.double() for t in x]
        weights = loss_weights(definition, exact_x)
        exact = outputs_and_gradients(definition, exact_x, weights)
        plain, got = (outputs_and_gradients(op, x, weights) for op in (definition, fast))
        for key, want in exact.items():
            assert torch.isfinite(got[key]).all(), key
            pair = [(form[key] - want).abs().max() for form in (plain, got)]
            errors.setdefault(key, []).append(torch.stack(pair) / want.abs().max().clamp(min=1e-30))
    for key, pairs in errors.items():
        label = key if isinstance(key, str) else f"gradient of {names[key]}"
        allowed, error = torch.stack(pairs).median(dim=0).values
        assert error <= 2 * allowed + 2 * torch.finfo(torch.float32).eps, f"{label}: {error:.2e}, plain {allowed:.2e}"
