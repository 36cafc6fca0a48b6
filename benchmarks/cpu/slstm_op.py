"""The sLSTM op, forward and backward, against torch.nn.LSTM of the same width.

nn.LSTM projects its input itself, D to 4D, densely. The headline therefore gives ours the same input and the same dense
projection ("exlstm"); "exlstm, op alone" starts from the pre-activations, as the op does. 256 steps, 4 heads, float32.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from accuracy import DRAWS, assert_as_accurate
from benchmarks.bench import Bench
from benchmarks.harness import Run
from exlstm.ops.slstm import Projection, SLSTMState, project_gates, projected_slstm, slstm, slstm_recurrent

HEADS = 4
WIDTHS, BATCHES = (64, 128, 256, 512, 1024), (1, 4, 8, 32)


def run(bench: Bench) -> None:
    """Times every width and batch, without gradients and with them."""
    T = 16 if bench.quick else 256
    for D in (32, 64) if bench.quick else WIDTHS:
        for B in (1, 4) if bench.quick else BATCHES:
            names = {"forward": f"w{D}_b{B}_forward", "both": f"w{D}_b{B}_forward_backward"}
            if not any(bench.wants(name) for name in names.values()):
                continue
            forward, both = programs(B, T, D)
            about = f"width {D}, batch {B}, {T} steps"
            check = partial(check_op, B, D)
            bench.measure(names["forward"], f"{about}, forward", forward, check)
            bench.measure(names["both"], f"{about}, forward and backward", both, check)


def programs(B: int, T: int, D: int) -> tuple[dict[str, Run], dict[str, Run]]:
    """Forward, and forward + backward (gradients of input, weights and recurrent weights), of each variant."""
    H, V = HEADS, D // HEADS
    x_BTD, grad_BTD = torch.randn(B, T, D), torch.randn(B, T, D)
    w_JD, b_J = 0.1 * torch.randn(4 * D, D), 0.1 * torch.randn(4 * D)
    r_HKGV, raw_BTHGV = torch.randn(H, V, 4, V) / V**0.5 / 2, torch.randn(B, T, H, 4, V)
    lstm = nn.LSTM(D, D, batch_first=True)

    def same_job(x_BTD: Tensor, w_JD: Tensor, b_J: Tensor, r_HKGV: Tensor) -> Tensor:
        projection = Projection(x_BTD, None, w_JD.view(H, 4, V, D), b_J.view(H, 4, V))
        return projected_slstm(projection, r_HKGV)[0].flatten(2)

    def op_alone(x_BTHGV: Tensor, r_HKGV: Tensor) -> Tensor:
        return slstm(x_BTHGV, r_HKGV)[0].flatten(2)

    def torch_lstm(x_BTD: Tensor, *_weights: Tensor) -> Tensor:
        return lstm(x_BTD)[0]

    arguments: dict[str, tuple[Callable[..., Tensor], list[Tensor]]] = {
        "exlstm": (same_job, [x_BTD, w_JD, b_J, r_HKGV]),
        "exlstm, op alone": (op_alone, [raw_BTHGV, r_HKGV]),
        "nn.LSTM": (torch_lstm, [x_BTD, *lstm.parameters()]),
    }
    forward = {name: partial(without_gradients, f, inputs) for name, (f, inputs) in arguments.items()}
    both = {name: partial(with_gradients, f, inputs, grad_BTD) for name, (f, inputs) in arguments.items()}
    return forward, both


def without_gradients(f: Callable[..., Tensor], inputs: list[Tensor]) -> None:
    with torch.no_grad():
        f(*inputs)


def with_gradients(f: Callable[..., Tensor], inputs: list[Tensor], grad: Tensor) -> None:
    # the parameters of nn.LSTM require gradients already
    inputs = [x if x.is_leaf and x.requires_grad else x.detach().requires_grad_() for x in inputs]
    torch.autograd.grad(f(*inputs), inputs, grad)


def check_op(B: int, D: int) -> dict[str, Any]:
    """The rule of the tests on several draws of 40 steps of at most 8 rows, with a state that is not zero."""
    H, V, B, T = HEADS, D // HEADS, min(B, 8), 40
    normal = partial(torch.randn, generator=torch.Generator().manual_seed(1))

    def few() -> list[Tensor]:
        state = [normal(B, H, V).abs() + 0.5 for _ in range(4)]
        r_HKGV = normal(H, V, 4, V) / V**0.5 / 2
        return [normal(B, T, D), normal(H, 4, V, D) / D**0.5, normal(H, 4, V), r_HKGV, *state]

    def fast(x: Tensor, w: Tensor, b: Tensor, r: Tensor, *parts: Tensor) -> Any:
        return projected_slstm(Projection(x, None, w, b), r, SLSTMState(*parts))

    def definition(x: Tensor, w: Tensor, b: Tensor, r: Tensor, *parts: Tensor) -> Any:
        return slstm_recurrent(project_gates(Projection(x, None, w, b)), r, SLSTMState(*parts))

    assert_as_accurate(fast, definition, (few() for _ in DRAWS))
    return {"rule": "outputs, states and gradients within 2 x the plain form's error"}
