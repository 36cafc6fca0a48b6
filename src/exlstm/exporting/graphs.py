"""A model as a function of flat tensors: an input and the tensors of a state, to an output and the state after it.

    step       one step                  [B, ...] -> [B, ...]
    chunk      a fixed number of steps   [B, T, ...] -> [B, T, ...]
    sequence   any number of steps       as a chunk; a loop inside of the graph, one step after another

The state is the same in all of them: a host may read chunks and go on in steps. Zeros are the state before the first
step. A net that reads both ways has no such state: its sequences are read as a whole.

B batch  T time  C classes (vocabulary)  D width
"""

from collections.abc import Sequence
from itertools import compress
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from exlstm.exporting.copies import ScannedBlock, ScannedMemory, fixed_state, plain_copy
from exlstm.exporting.ports import BATCH, EXAMPLE, TIME, Port, Ports, leaf_name
from exlstm.mixers.state import leaves, named_leaves, with_leaves
from exlstm.models.encoder import XLSTM
from exlstm.models.lm import LM
from exlstm.rnn.interface import RecurrentNet

Part = Literal["step", "chunk", "sequence"]
PARTS: tuple[Part, ...] = get_args(Part)


class ExportGraph(nn.Module):
    """`y, *state = graph(x, *state)` of flat tensors, whose names and shapes are in `ports`.

    of: the class of the model. part: which. steps: of a chunk, else None. time_axis: of chunks and sequences.
    """

    ports: Ports
    time_axis = 1

    def __init__(self, model: nn.Module, part: Part, steps: int | None) -> None:
        super().__init__()
        self.of, self.part, self.steps = type(model).__name__, part, steps if part == "chunk" else None

    def axes(self, *widths: int) -> tuple[int | str, ...]:
        """Axes of the input or the output of this part, with these widths behind batch and time."""
        if self.part == "step":
            return BATCH, *widths
        time: int | str = TIME if self.steps is None else self.steps
        return (BATCH, time, *widths) if self.time_axis else (time, BATCH, *widths)

    def example(self) -> tuple[Tensor, ...]:
        """Inputs to trace the graph with."""
        return tuple(port.zeros(**EXAMPLE) for port in self.ports.inputs)

    def forward(self, x: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        """The output, and the state after the last step."""
        if self.part != "step":
            return self.advance(x, state)
        y, *after = self.advance(x.unsqueeze(self.time_axis), state)
        return y.squeeze(self.time_axis), *after

    def advance(self, x: Tensor, state: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """`forward` of one or more steps."""
        raise NotImplementedError


class StackGraph(ExportGraph):
    """A language model's or an encoder's, whose state is a tree of tensors."""

    model: Any

    def __init__(self, model: LM | XLSTM, part: Part, steps: int | None, context: int | None) -> None:
        super().__init__(model, part, steps)
        self.model = plain_copy(model)
        self.like = fixed_state(self.model, context)
        names = [f"blocks.{n}" for n in range(len(self.model.blocks))] + list(self.model.beside)
        paths = [path for name, part in zip(names, self.like, strict=False) for path, _ in named_leaves(part, name)]
        tensors = leaves(self.like)
        # the window of a convolution of one step is empty, and no port
        self.kept = [x.numel() > 0 for x in tensors]
        self.state = tuple(
            Port(leaf_name(path), x.dtype, (BATCH, *x.shape[1:]))
            for path, x in compress(zip(paths, tensors, strict=True), self.kept)
        )
        if part == "sequence":
            self.model.blocks = nn.ModuleList(map(ScannedBlock, self.model.blocks))

    def advance(self, x: Tensor, state: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """See `ExportGraph.advance`."""
        given = iter(state)
        every = [
            next(given) if kept else like.new_zeros(x.shape[0], *like.shape[1:])
            for kept, like in zip(self.kept, leaves(self.like), strict=True)
        ]
        y, after = self.model.advance(x, with_leaves(self.like, every) if every else None)
        return y, *compress(leaves(after), self.kept)


class LMGraph(StackGraph):
    """A language model's: tokens [B] or [B, T] -> logits [B, C] or [B, T, C]."""

    def __init__(self, model: LM, part: Part, steps: int | None, context: int | None) -> None:
        super().__init__(model, part, steps, context)
        tokens = Port("tokens", torch.int64, self.axes())
        self.ports = Ports(tokens, Port("logits", torch.float32, self.axes(model.config.vocab_size)), self.state)


class EncoderGraph(StackGraph):
    """An encoder's: x [B, input width] or [B, T, input width] -> y [B, D] or [B, T, D]."""

    def __init__(self, model: XLSTM, part: Part, steps: int | None, context: int | None) -> None:
        super().__init__(model, part, steps, context)
        x = Port("x", torch.float32, self.axes(model.input_size))
        self.ports = Ports(x, Port("y", torch.float32, self.axes(model.hidden_size)), self.state)


class NetGraph(ExportGraph):
    """A recurrent net's: x and y as the net has them, and the state (h, c) of torch.nn.LSTM, its batch at axis 1."""

    def __init__(self, net: RecurrentNet, part: Part, steps: int | None) -> None:
        super().__init__(net, part, steps)
        self.net, self.time_axis = plain_copy(net), 1 if net.batch_first else 0
        if part == "sequence":
            self.net.memory = ScannedMemory(net.memory)  # type: ignore[assignment]
        count = len(net.names)
        h, c = (
            Port(n, torch.float32, (count, BATCH, size)) for n, size in (("h", net.output_size), ("c", net.state_size))
        )
        x = Port("x", torch.float32, self.axes(net.input_size))
        self.ports = Ports(x, Port("y", torch.float32, self.axes(net.output_size * net.directions)), (h, c))

    def advance(self, x: Tensor, state: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """See `ExportGraph.advance`."""
        y, after = self.net(x, state)
        return y, *after


def graph_of(model: nn.Module, part: Part, *, steps: int | None = None, context: int | None = None) -> ExportGraph:
    """The graph of this part of a model: an LM, an XLSTM, an SLSTM, an MLSTM or an LSTM.

    steps: of a chunk. context: steps that attention without a window keeps.
    Raises TypeError for other models, and ValueError for a part that there is not, or that this model does not have.
    """
    if part not in PARTS:
        raise ValueError(f"part is {part!r}; it must be one of {', '.join(PARTS)}.")
    if part == "chunk" and (steps is None or steps < 1):
        raise ValueError(f"steps is {steps}; a chunk has at least 1.")
    if not isinstance(model, LM | XLSTM | RecurrentNet):
        raise TypeError(f"export takes an LM, XLSTM, SLSTM, MLSTM or LSTM of exlstm, not a {type(model).__name__}.")
    if getattr(model, "bidirectional", False) and part != "sequence":
        raise ValueError(f"part is {part!r}, and this {type(model).__name__} reads to both ends; export the sequence.")
    if isinstance(model, RecurrentNet):
        return NetGraph(model, part, steps)
    kind = LMGraph if isinstance(model, LM) else EncoderGraph
    return kind(model, part, steps, context)  # type: ignore[arg-type]
