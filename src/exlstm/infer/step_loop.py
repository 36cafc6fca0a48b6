"""Single steps of a recurrent net or an encoder, one after another and replayed: for agents that act, and for streams.

B batch  D input width  V width of y
"""

from typing import Any

import torch
from torch import Tensor

from exlstm.infer.captured_step import StateBuffers, parameters_and_buffers
from exlstm.mixers.state import leaves, map_state
from exlstm.models.block import draws as stack_draws
from exlstm.models.encoder import XLSTM
from exlstm.ops.arguments import described
from exlstm.rnn.interface import RecurrentNet
from exlstm.runtime.availability import no_numba
from exlstm.runtime.capture import NotCapturable
from exlstm.runtime.internals import has_hooks

Net = RecurrentNet | XLSTM


class StepLoop:
    """`y_BV = loop(x_BD, reset_B)`, again and again, without gradients: what calls of one step give, but faster.

        loop = exlstm.StepLoop(exlstm.SLSTM(10, 64))
        y = loop(x)                    # [B, 10] -> [B, 64]
        y = loop(x, reset=done)        # rows whose episode begins have an empty memory

    On a CPU, in float32, the kernels of a step are recorded once and then replayed without an interpreter.
    net: an SLSTM, MLSTM or LSTM, or an `XLSTM`, of one direction and without dropout in training mode. Its weights may
    change in between. state: what the net returned, or None. replay: False calls the net at every step.
    state, the attribute: after the last step, a copy. why_not: the reason for which steps are not replayed, or None.
    Raises ValueError for another net, and as the net does for what does not fit.
    """

    def __init__(self, net: Net, state: Any = None, *, replay: bool = True) -> None:
        if not isinstance(net, Net) or net.bidirectional:
            kind = f"a bidirectional {type(net).__name__}" if isinstance(net, Net) else f"a {type(net).__name__}"
            raise ValueError(f"net is {kind}; single steps need an SLSTM, MLSTM, LSTM or XLSTM of one direction.")
        self.net, self.uncaptured = net, state  # the state while no step is captured
        self.captured: ReplayedStep | None = None
        self.why_not = obstacle(net) if replay else "it was not asked for"

    @property
    def state(self) -> Any:
        """The state after the last step; later ones do not change it."""
        return self.uncaptured if self.captured is None else self.captured.buffers.copy()

    @torch.inference_mode(False)
    @torch.no_grad()
    def __call__(self, x_BD: Tensor, reset: Tensor | None = None) -> Tensor:
        """y [B, V] after one more step of every row. reset: bool [B], rows whose memory is cleared before it."""
        if x_BD.ndim != 2:
            raise ValueError(f"x has shape {tuple(x_BD.shape)}; a step takes [B, {self.net.input_size}].")
        if reset is not None and (reset.dtype is not torch.bool or reset.shape != x_BD.shape[:1]):
            raise ValueError(f"reset is {described(reset)}; it must be torch.bool of shape {tuple(x_BD.shape[:1])}.")
        step = self.captured
        if step is None or not step.fits(x_BD):
            step = self.capture(x_BD)
        if step is not None:
            return step.run(x_BD, reset)
        y_BV, self.uncaptured = one_step(self.net, x_BD, self.uncaptured, reset)
        return y_BV

    def capture(self, x_BD: Tensor) -> "ReplayedStep | None":
        """Captures a step that takes inputs like these, if it can be replayed."""
        self.uncaptured, self.captured = self.state, None
        if self.why_not is None and x_BD.is_cpu and x_BD.dtype is torch.float32 and not draws(self.net):
            state = self.net.zero_state(len(x_BD)) if self.uncaptured is None else self.uncaptured
            try:
                one_step(self.net, x_BD, state)  # its errors, outside of a capture
                self.captured = ReplayedStep(self.net, x_BD, StateBuffers(state, 2))
            except NotCapturable as reason:
                self.why_not = str(reason)
        return self.captured


class ReplayedStep:
    """A captured step of a net: every replay reads one side of the state's buffers and writes the other."""

    def __init__(self, net: Net, x_BD: Tensor, buffers: StateBuffers) -> None:
        from exlstm.runtime.cpu.aten import capture_step
        from exlstm.runtime.cpu.graph import CapturedGraph, State

        self.net, self.buffers, self.x_BD = net, buffers, x_BD.clone(memory_format=torch.contiguous_format)
        self.weights = [
            (tensors, name, x.data_ptr()) for tensors in parameters_and_buffers(net) for name, x in tensors.items()
            if x is not None
        ]  # fmt: skip
        first, second = buffers.sides
        graph, (self.y_BV, after) = capture_step(lambda: one_step(net, self.x_BD, first))
        states = zip(leaves(first), leaves(after), leaves(second), strict=True)
        self.graph = CapturedGraph(graph, [State(read, written, (read, other)) for read, written, other in states])

    def fits(self, x_BD: Tensor) -> bool:
        """Whether a replay does what a call of the net with this input would."""
        return (
            x_BD.shape == self.x_BD.shape
            and x_BD.dtype is torch.float32
            and x_BD.is_cpu
            and not draws(self.net)
            and all(tensors[name].data_ptr() == address for tensors, name, address in self.weights)
        )

    def run(self, x_BD: Tensor, reset_B: Tensor | None) -> Tensor:
        """y after one more step: a copy, since the next replay overwrites it."""
        if reset_B is not None and bool(reset_B.any()):
            current = self.buffers.current
            map_state(Tensor.copy_, current, cleared(self.net, current, reset_B))
        self.x_BD.copy_(x_BD)
        self.graph.replay(self.buffers.side)
        self.buffers.flip()
        return self.y_BV.clone()


def one_step(net: Net, x_BD: Tensor, state: Any, reset_B: Tensor | None = None) -> tuple[Tensor, Any]:
    """y [B, V] and the state after one step."""
    axis = 1 if isinstance(net, XLSTM) or net.batch_first else 0
    y, after = net(x_BD.unsqueeze(axis), state, reset=None if reset_B is None else reset_B.unsqueeze(axis))
    return y.squeeze(axis), after


def cleared(net: Net, state: Any, reset_B: Tensor) -> Any:
    """The state with the memory of some rows empty."""
    axis = 0 if isinstance(net, XLSTM) else 1

    def clear(x: Tensor, empty: Tensor) -> Tensor:
        shape = [1] * x.ndim
        shape[axis] = len(reset_B)
        return torch.where(reset_B.view(shape), empty, x)

    return map_state(clear, state, net.zero_state(len(reset_B)))


def draws(net: Net) -> bool:
    """Whether a step draws random numbers; a replay would repeat those of the capture."""
    return net.training and (stack_draws(net.config) if isinstance(net, XLSTM) else net.dropout > 0)


def obstacle(net: Net) -> str | None:
    """The reason for which no capture of this net is tried, or None."""
    if any(has_hooks(module) for module in net.modules()):
        return "it has hooks, which a replay would not call"
    return no_numba()
