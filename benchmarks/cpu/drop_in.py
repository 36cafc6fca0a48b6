"""The nets in the place of nn.LSTM: forward, and forward and backward, beside nn.LSTM and nn.GRU of the same width.

A single step has the state of the step before, as in streams. "1 head" is an SLSTM with a dense R, "in a StepLoop" the
SLSTM's steps replayed. The compiled LSTM is a plain cell under `torch.compile` in a loop over time. The forms of a call
(packed rows, resets, both directions, layers) are timed at one size, beside the plain call of the same net.
"""

from collections.abc import Callable
from copy import deepcopy
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

import exlstm
from benchmarks.bench import Bench
from benchmarks.harness import Run

Make = Callable[..., nn.Module]
NETS: dict[str, Make] = {
    "exlstm.SLSTM": exlstm.SLSTM,
    "exlstm.SLSTM, 1 head": partial(exlstm.SLSTM, num_heads=1),
    "exlstm.MLSTM": exlstm.MLSTM,
    "exlstm.LSTM": exlstm.LSTM,
    "nn.LSTM": nn.LSTM,
    "nn.GRU": nn.GRU,
}
LOOP, COMPILED = "exlstm.SLSTM in a StepLoop", "compiled LSTM"
STEPS = 128
SIZES = {1: [(D, B) for D in (32, 128, 512, 1024) for B in (1, 16, 64)], STEPS: [
    (32, 1), (32, 64), (128, 1), (128, 16), (128, 64), (512, 1), (512, 16), (1024, 1)
]}  # fmt: skip
FORM_WIDTH, FORM_ROWS = 128, 16
OURS = "exlstm form, "  # names that begin so are given their ratio to the plain call


class CompiledLSTM(nn.Module):
    """torch's LSTM from plain operations: a compiled cell, called for every step."""

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        cell = nn.LSTMCell(input_size, hidden_size)
        self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh = cell.parameters()
        self.cell = torch.compile(self.step, fullgraph=True)

    def step(self, x_BD: Tensor, h_BD: Tensor, c_BD: Tensor) -> tuple[Tensor, Tensor]:
        """h and c after the step."""
        raw = nn.functional.linear(x_BD, self.weight_ih, self.bias_ih)
        i, f, g, o = (raw + nn.functional.linear(h_BD, self.weight_hh, self.bias_hh)).chunk(4, dim=1)
        c_BD = torch.sigmoid(f) * c_BD + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(c_BD), c_BD

    def forward(self, x_TBD: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """As nn.LSTM."""
        h_BD, c_BD = 2 * [torch.zeros_like(x_TBD[0])] if state is None else (part[0] for part in state)
        outputs = []
        for x_BD in x_TBD:
            h_BD, c_BD = self.cell(x_BD, h_BD, c_BD)
            outputs.append(h_BD)
        return torch.stack(outputs), (h_BD[None], c_BD[None])


def run(bench: Bench) -> None:
    """Times every size, without gradients and with them, and the forms of a call."""
    sizes = {1: [(32, 2)], 8: [(32, 2)]} if bench.quick else SIZES
    for T, pairs in sizes.items():
        for D, B in pairs:
            names = {False: f"t{T}_w{D}_b{B}_forward", True: f"t{T}_w{D}_b{B}_forward_backward"}
            if any(bench.wants(name) for name in names.values()):
                nets = {name: make(D, D) for name, make in NETS.items()}
                if not bench.quick:  # which needs a compiler
                    torch.compiler.reset()  # torch counts the graphs of all of a class
                    nets[COMPILED] = CompiledLSTM(D, D)
                for gradients, name in names.items():
                    about = f"width {D}, batch {B}, {T} steps, forward{' and backward' if gradients else ''}"
                    runs = {kind: call(net, B, T, D, gradients) for kind, net in nets.items()}
                    if T == 1 and not gradients:
                        runs |= {LOOP: partial(exlstm.StepLoop(nets["exlstm.SLSTM"]), torch.randn(B, D))}
                    bench.measure(name, about, runs, partial(check, D))
    D, B, T = (32, 4, 8) if bench.quick else (FORM_WIDTH, FORM_ROWS, STEPS)
    for name in ("exlstm.SLSTM", "exlstm.MLSTM", "exlstm.LSTM", "nn.LSTM"):
        key = f"forms_{name.rpartition('.')[0]}_{name.rpartition('.')[2]}".lower()
        if bench.wants(key):
            about = f"{name}, width {D}, batch {B}, {T} steps, forward and backward"
            bench.measure(key, about, forms(NETS[name], name, B, T, D), partial(check, D))


def call(net: nn.Module, B: int, T: int, D: int, gradients: bool) -> Run:
    """One call, time first, with the state of a call before."""
    x_TBD, grad_TBD = torch.randn(T, B, D, requires_grad=gradients), torch.randn(T, B, D)
    with torch.no_grad():
        _, state = net(torch.randn(1, B, D))

    def forward() -> Tensor:
        y_TBD: Tensor = net(x_TBD, state)[0]
        return y_TBD

    return partial(with_gradients if gradients else without_gradients, net, x_TBD, forward, grad_TBD)


def without_gradients(_net: nn.Module, _x: Tensor, forward: Callable[[], Tensor], _grad: Tensor) -> None:
    with torch.no_grad():
        forward()


def with_gradients(net: nn.Module, x: Tensor, forward: Callable[[], Tensor], grad: Tensor) -> None:
    """Gradients of the input and of all weights."""
    torch.autograd.grad(forward(), [x, *net.parameters()], grad)


def forms(make: Make, name: str, B: int, T: int, D: int) -> dict[str, Run]:
    """Forms of a call of one net; the plain one is called as a peer, so that each has its ratio to it."""
    x_TBD, grad_TBD = torch.randn(T, B, D, requires_grad=True), torch.randn(T, B, D)
    plain, both, deep = make(D, D), make(D, D, bidirectional=True), make(D, D, num_layers=3)
    lengths = torch.linspace(T, T // 2, B).long()  # three quarters of the steps
    begins_TB = torch.rand(T, B, generator=torch.Generator().manual_seed(1)) < 0.01
    packed_grad = pack_padded_sequence(grad_TBD, lengths).data

    def packed() -> Tensor:
        return plain(pack_padded_sequence(x_TBD, lengths))[0].data  # type: ignore[no-any-return]

    runs: dict[str, Run] = {
        "plain": partial(with_gradients, plain, x_TBD, lambda: plain(x_TBD)[0], grad_TBD),
        f"{OURS}packed, 3/4 of the steps": partial(with_gradients, plain, x_TBD, packed, packed_grad),
        f"{OURS}both directions": partial(
            with_gradients, both, x_TBD, lambda: both(x_TBD)[0], torch.cat([grad_TBD, grad_TBD], dim=2)
        ),
        f"{OURS}3 layers": partial(with_gradients, deep, x_TBD, lambda: deep(x_TBD)[0], grad_TBD),
    }
    if name != "nn.LSTM":
        runs[f"{OURS}resets at 1 %"] = partial(
            with_gradients, plain, x_TBD, lambda: plain(x_TBD, reset=begins_TB)[0], grad_TBD
        )
    return runs


@torch.no_grad()
def check(D: int) -> dict[str, Any]:
    """A long call and many short ones are the definition in float64, and exlstm.LSTM is nn.LSTM with its weights."""
    torch.manual_seed(3)
    x_TBD, errors = torch.randn(12, 3, D), {}
    for name, make in NETS.items():
        net = make(D, D)
        exact_TBD, _ = deepcopy(net).double()(x_TBD.double())
        whole_TBD, _ = net(x_TBD)
        state, steps = None, []
        for x_1BD in x_TBD.split(1):
            y_1BD, state = net(x_1BD, state)
            steps.append(y_1BD)
        errors[name] = max(float((y_TBD - exact_TBD).abs().max()) for y_TBD in (whole_TBD, torch.cat(steps)))
    ours, theirs = exlstm.LSTM(D, D), nn.LSTM(D, D)
    ours.load_state_dict(theirs.state_dict())
    plain = CompiledLSTM(D, D)
    plain.cell = plain.step
    for parameter, value in zip(plain.parameters(), theirs.parameters(), strict=True):
        parameter.copy_(value)
    errors[COMPILED] = float((plain(x_TBD)[0] - theirs(x_TBD)[0]).abs().max())
    errors["exlstm.LSTM beside nn.LSTM"] = float((ours(x_TBD)[0] - theirs(x_TBD)[0]).abs().max())
    # where the normalizer of an mLSTM is near 0, its quotient has lost digits in any order of sums
    wrong = {name: error for name, error in errors.items() if error > (1e-4 if "MLSTM" in name else 1e-5)}
    assert not wrong, f"calls differ by {wrong}"
    return {"rule": "within 1e-5 of float64, mLSTM 1e-4; LSTM is torch's", "largest_difference": errors}
