"""The replay of a recurrent agent's rollouts, forward and backward: `reset=` against the loop of Stable-Baselines3.

64 rows of 128 steps, an episode begins at one in a hundred. Where any begins, RecurrentPPO calls nn.LSTM step by step,
with states times 1 - start; where none does, in one call ("nn.LSTM, no starts"), which is its best case. Ours has the
starts in either comparison.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import exlstm
from benchmarks.bench import Bench
from benchmarks.harness import Run

WIDTHS = (64, 256)
ROWS, STEPS, SHARE = 64, 128, 0.01
LOOP, BEST = "nn.LSTM, loop", "nn.LSTM, no starts"
State = tuple[Tensor, Tensor]


def run(bench: Bench) -> None:
    """Times every width."""
    B, T = (8, 16) if bench.quick else (ROWS, STEPS)
    for D in (32,) if bench.quick else WIDTHS:
        if bench.wants(f"w{D}"):
            about = f"width {D}, {B} rows of {T} steps, {SHARE:.0%} starts, forward and backward"
            bench.measure(f"w{D}", about, programs(B, T, D), partial(check, B, T, D))


def programs(B: int, T: int, D: int) -> dict[str, Run]:
    """Forward and backward (gradients of input and weights) of each variant, time first as Stable-Baselines3 has it."""
    torch.manual_seed(0)
    x_TBD, grad_TBD = torch.randn(T, B, D, requires_grad=True), torch.randn(T, B, D)
    begins_TB = starts(B, T)
    nets: dict[str, nn.Module] = {"exlstm.SLSTM": exlstm.SLSTM(D, D), "exlstm.LSTM": exlstm.LSTM(D, D)}
    lstm = nn.LSTM(D, D)

    def replayed(net: nn.Module) -> Tensor:
        y_TBD, _ = net(x_TBD, zero_state(net, B), reset=begins_TB)
        return y_TBD

    def gradients(net: nn.Module, forward: Any) -> None:
        torch.autograd.grad(forward(), [x_TBD, *net.parameters()], grad_TBD)

    runs: dict[str, Run] = {name: partial(gradients, net, partial(replayed, net)) for name, net in nets.items()}
    runs[LOOP] = partial(gradients, lstm, lambda: looped(lstm, x_TBD, zero_state(lstm, B), begins_TB)[0])
    runs[BEST] = partial(gradients, lstm, lambda: lstm(x_TBD, zero_state(lstm, B))[0])
    return runs


def starts(B: int, T: int) -> Tensor:
    """Where episodes begin, in one of a hundred places, and in one at least."""
    begins_TB = torch.rand(T, B, generator=torch.Generator().manual_seed(1)) < SHARE
    begins_TB[T // 2, 0] = True
    return begins_TB


def zero_state(net: nn.Module, B: int) -> State:
    """Zeros as wide as hidden_size, as the policy makes them."""
    zeros = torch.zeros(1, B, net.hidden_size)  # type: ignore[arg-type]
    return zeros, zeros


def looped(net: nn.Module, x_TBD: Tensor, state: State, begins_TB: Tensor) -> tuple[Tensor, State]:
    """Every step a call, with the states of rows that begin times 0."""
    outputs = []
    for x_BD, begins_B in zip(x_TBD, begins_TB.float(), strict=True):
        goes_on_1B1 = (1.0 - begins_B).view(1, -1, 1)
        y_1BD, state = net(x_BD[None], (goes_on_1B1 * state[0], goes_on_1B1 * state[1]))
        outputs.append(y_1BD)
    return torch.cat(outputs), state


@torch.no_grad()
def check(B: int, T: int, D: int) -> dict[str, Any]:
    """`reset=` gives what the loop gives: for our LSTM with the weights of torch's, and for the sLSTM with its own."""
    torch.manual_seed(2)
    x_TBD, begins_TB = torch.randn(T, B, D), starts(B, T)
    lstm, ours, slstm = nn.LSTM(D, D), exlstm.LSTM(D, D), exlstm.SLSTM(D, D)
    ours.load_state_dict(lstm.state_dict())
    errors = {}
    for name, net, peer in (("LSTM", ours, lstm), ("SLSTM", slstm, slstm)):
        found_TBD, _ = net(x_TBD, zero_state(net, B), reset=begins_TB)
        expected_TBD, _ = looped(peer, x_TBD, zero_state(peer, B), begins_TB)
        errors[name] = float((found_TBD - expected_TBD).abs().max())
        assert errors[name] <= 1e-5, f"{name} differs from the loop by {errors[name]:.1e}"
    return {"rule": "outputs within 1e-5 of the loop", "largest_difference": errors}
