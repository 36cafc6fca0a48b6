"""The gate: checks that a case must pass before it is timed, since a fast wrong answer is worth nothing.

Models are compared as a whole: one number for the logits and one for all gradients, each the error against the float64
definition. Ops are judged by the rule of the tests (tests/accuracy.py), tensor by tensor.
"""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from benchmarks.harness import rounded
from exlstm.models.lm import LM

FACTOR = 2.0  # at most this many times as wrong as the plain form in the same precision
SAME_JOB = 1e-3  # relative difference, between float32 programs that compute the same function
Found = tuple[Tensor, dict[str, Tensor]]  # logits; gradients by name


def definition(model: LM) -> LM:
    """A model with the same weights, each of whose ops runs its definition."""
    plain = copy.deepcopy(model)
    for mixer in plain.mixers:
        if hasattr(mixer, "backend"):
            mixer.backend = "recurrent"
    return plain


def logits_of(model: nn.Module, tokens_BT: Tensor) -> Tensor:
    """The logits in the output of any model."""
    out = model(tokens_BT)
    if isinstance(out, tuple):
        return out[0]
    return out if isinstance(out, Tensor) else out.logits


def logits_and_gradients(model: nn.Module, tokens_BT: Tensor, dtype: torch.dtype | None = None) -> Found:
    """Gradients of the mean cross entropy, under autocast to `dtype` if given; the .grad of parameters stays None."""
    with torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
        logits_BTC = logits_of(model, tokens_BT)
    loss = cross_entropy(logits_BTC.flatten(0, 1).to(torch.promote_types(logits_BTC.dtype, torch.float32)),
                         tokens_BT.roll(-1, 1).flatten())  # fmt: skip
    names, parameters = zip(*model.named_parameters(), strict=True)
    return logits_BTC.detach(), dict(zip(names, torch.autograd.grad(loss, parameters), strict=True))


def error(found: Found, exact: Found) -> dict[str, float]:
    """Relative errors of the logits and of the gradients, as root mean squares over all parameter tensors."""
    squares = [relative(found[1][name], gradient) ** 2 for name, gradient in exact[1].items()]
    return {"logits": relative(found[0], exact[0]), "gradients": (sum(squares) / len(squares)) ** 0.5}


def relative(x: Tensor, exact: Tensor) -> float:
    x, exact = x.double(), exact.double()
    return float((x - exact).norm() / exact.norm().clamp(min=1e-30))


def check_training(model: LM, tokens_BT: Tensor, dtype: torch.dtype | None = None) -> dict[str, Any]:
    """The accuracy rule for a training step: our errors, and those of the plain form in the same precision."""
    exact = logits_and_gradients(definition(model).double(), tokens_BT)
    ours = error(logits_and_gradients(model, tokens_BT, dtype), exact)
    plain = error(logits_and_gradients(definition(model), tokens_BT, dtype), exact)
    for what, value in ours.items():
        # two roundings: where the plain form happens to be exact, twice its error is nothing
        allowed = FACTOR * plain[what] + 2 * torch.finfo(torch.float32).eps
        assert value <= allowed, f"error of the {what} {value:.2e}, allowed {allowed:.2e}"
    return {"error": shown(ours), "error_of_plain_form": shown(plain)}


def check_same(model: LM, peer: nn.Module, tokens_BT: Tensor, translate: Callable[[Any], Any]) -> dict[str, Any]:
    """Checks that a peer with the weights of `model` computes the same logits and gradients."""
    logits_BTC, gradients = logits_and_gradients(peer, tokens_BT)
    difference = error(logits_and_gradients(model, tokens_BT), (logits_BTC, translate(gradients)))
    for what, value in difference.items():
        assert value <= SAME_JOB, f"the {what} differ from the peer's by {value:.2e}, allowed {SAME_JOB:.0e}"
    return {"difference_from_peer": shown(difference)}


def shown(values: dict[str, float]) -> dict[str, float]:
    return {name: rounded(value) for name, value in values.items()}
