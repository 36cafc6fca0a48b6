"""The call of torch.nn.LSTM around a memory: layers, directions, packed sequences, and the pair (h_n, c_n).

B batch  T time  D input width  M width of y  V width of h  S width of c
N layers and directions, N = layer * directions + direction
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.utils.rnn import PackedSequence

from exlstm.nn.borders import Borders, Reversal
from exlstm.ops.common import length_mask, wide_dtype, zero_padding
from exlstm.rnn.arguments import (
    Hidden,
    ShapeError,
    check_dropout,
    check_hidden,
    check_input,
    check_positive,
    check_projection,
    check_type,
    checked_hidden,
    checked_lengths,
    checked_reset,
)
from exlstm.rnn.packed import gathered, padded, places_of
from exlstm.rnn.parameters import RecurrentWeights
from exlstm.runtime.tracing import tracer


class RecurrentNet(RecurrentWeights):
    """`y, (h_n, c_n) = rnn(input, hx, lengths=, reset=)`: a subclass has the constructor, and with it the memory.

    input: [T, B, input_size], [B, T, input_size] with batch_first, [T, input_size], or a PackedSequence; y is alike.
    hx: the pair of an earlier call, or None for an empty memory. h_n [layers * directions, B, width of y] is the output
    of each row's last step and c_n [layers * directions, B, state_size] its memory; without a batch both lack B. They
    are float32 or wider, and values: never changed in place. Zeros are an empty memory, so a state times 0 is a reset.
    lengths: integers [B]; later steps of a row are padding, whatever they hold: y is 0 there.
    reset: bool, of the shape of the input without its last axis, or, of a PackedSequence, of the padded input; a row's
    memory is cleared before that step, and in the reverse direction after it.
    Raises ShapeError, which is a ValueError and a RuntimeError, for what does not fit.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int,
        bias: bool,
        batch_first: bool,
        dropout: float,
        bidirectional: bool,
        proj_size: int,
        backend: str,
    ) -> None:
        check_positive("num_layers", num_layers)
        check_dropout(dropout, num_layers)
        check_type("batch_first", batch_first, bool)
        super().__init__(input_size, hidden_size, bias, backend)
        check_projection(proj_size, hidden_size)
        self.num_layers, self.batch_first, self.dropout = num_layers, batch_first, float(dropout)
        self.bidirectional, self.proj_size = bool(bidirectional), proj_size

    @property
    def depth(self) -> int:
        """The number of layers."""
        return self.num_layers

    @property
    def directions(self) -> int:
        """1, or 2 of a bidirectional net."""
        return 2 if self.bidirectional else 1

    @property
    def output_size(self) -> int:
        """The width of h; that of y is as large for each direction."""
        return self.proj_size or self.hidden_size

    def layers(self) -> Iterator[tuple[str, int, int]]:
        """Suffix of the weights' names, width of the input, and index of the layer, for every layer and direction."""
        for layer in range(self.num_layers):
            inputs = self.input_size if layer == 0 else self.output_size * self.directions
            for ending in ("", "_reverse")[: self.directions]:
                yield f"_l{layer}{ending}", inputs, layer

    @property
    def all_weights(self) -> list[list[Tensor]]:
        """The weights of every layer and direction."""
        return [list(self.weights(names).values()) for names, _ in self.names]

    def flatten_parameters(self) -> None:
        """Does nothing; `torch.nn.LSTM` has it, and code for GPUs calls it."""

    def zero_state(self, batch: int) -> Hidden:
        """The empty state (h, c) of `batch` rows, the same as hx=None."""
        return self.zeros(len(self.names), batch)

    def shapes(self, batch: int) -> Hidden:
        """The state (h, c) of `batch` rows on the meta device, for its shapes and dtypes."""
        wide = wide_dtype(self.weight.dtype)
        sizes = self.output_size, self.state_size
        h_NBV, c_NBS = (torch.empty(len(self.names), batch, size, device="meta", dtype=wide) for size in sizes)
        return h_NBV, c_NBS

    def check_state(self, state: Any, batch: int) -> None:
        """ShapeError unless `state` is a pair (h, c) of `batch` rows of this net."""
        h_NBV, c_NBS = checked_hidden(state, batched=True)
        check_hidden(h_NBV, c_NBS, [tuple(part.shape) for part in self.shapes(batch)], self.weight)

    def state_bytes(self, length: int = 0) -> int:
        """Bytes of one row's state, whatever the length of its sequence."""
        return sum(part.numel() * part.element_size() for part in self.shapes(1))

    def forward(
        self,
        input: Tensor | PackedSequence,  # noqa: A002 - torch's name
        hx: Any = None,
        *,
        lengths: Any = None,
        reset: Tensor | None = None,
    ) -> tuple[Any, Hidden]:
        """See the class."""
        if isinstance(input, PackedSequence):
            return self.forward_packed(input, hx, lengths, reset)
        if input.dim() not in (2, 3):
            raise ShapeError(f"{self.mode}: Expected input to be 2D or 3D, got {input.dim()}D instead")
        batched, time_first = input.dim() == 3, not self.batch_first
        if reset is not None:
            reset = checked_reset(reset, tuple(input.shape[:-1]), input.device)
        if not batched:
            x_BTD, reset_BT = input[None], None if reset is None else reset[None]
        elif time_first:
            x_BTD, reset_BT = input.transpose(0, 1), None if reset is None else reset.T
        else:
            x_BTD, reset_BT = input, reset
        self.check(x_BTD)
        lengths_B = None
        if lengths is not None:
            lengths_B = checked_lengths(lengths, x_BTD)
            # NaN in the padding would reach other steps through products, forward and backward
            x_BTD = zero_padding(x_BTD, length_mask(lengths_B, x_BTD.shape[1]))
        hidden = self.checked_state(hx, x_BTD, batched)
        y_BTM, (h_NBV, c_NBS) = self.run(x_BTD, Borders(reset_BT, lengths_B), hidden)
        if not batched:
            return y_BTM[0], (h_NBV[:, 0], c_NBS[:, 0])
        return y_BTM.transpose(0, 1).contiguous() if time_first else y_BTM, (h_NBV, c_NBS)

    def forward_packed(
        self, packed: PackedSequence, hx: Any, lengths: Any, reset: Tensor | None
    ) -> tuple[PackedSequence, Hidden]:
        """The call of a packed sequence, whose rows are sorted by length; states are in the caller's order."""
        if lengths is not None:
            raise ShapeError("lengths is given beside a PackedSequence, which has its own; leave it out.")
        places = places_of(packed)
        x_BTD = padded(packed.data, places, len(packed.batch_sizes))
        self.check(x_BTD)
        B, T, _ = x_BTD.shape
        there, back = packed.sorted_indices, packed.unsorted_indices
        reset_BT = None
        if reset is not None:
            reset = checked_reset(reset, (B, T) if self.batch_first else (T, B), x_BTD.device)
            reset_BT = reset if self.batch_first else reset.T
            reset_BT = reset_BT if there is None else reset_BT[there]
        hidden = self.checked_state(hx, x_BTD, batched=True)
        if hidden is not None and there is not None:
            hidden = hidden[0][:, there], hidden[1][:, there]
        y_BTM, (h_NBV, c_NBS) = self.run(x_BTD, Borders(reset_BT, places.lengths_B), hidden)
        after = (h_NBV, c_NBS) if back is None else (h_NBV[:, back], c_NBS[:, back])
        return PackedSequence(gathered(y_BTM, places), packed.batch_sizes, there, back), after

    def check(self, x_BTD: Tensor) -> None:
        """ShapeError for an input that does not fit the weights, or that has no steps."""
        check_input(x_BTD, self.input_size, self.weight)
        if x_BTD.shape[1] == 0:
            raise ShapeError("Expected sequence length to be larger than 0 in RNN")

    def checked_state(self, hx: Any, x_BTD: Tensor, batched: bool) -> Hidden | None:
        """The state in float32 or wider. A c of zeros as wide as hidden_size, as made for an LSTM, is empty, too."""
        if hx is None:
            return None
        h_NBV, c_NBS = checked_hidden(hx, batched)
        N, B, wide = len(self.names), x_BTD.shape[0], wide_dtype(x_BTD.dtype)
        # torch's c is as wide as hidden_size, and many programs make their first one by hand
        foreign = c_NBS.shape[2] == self.hidden_size != self.state_size
        if foreign and tracer((c_NBS,)) is None and not bool(c_NBS.any()):
            c_NBS = c_NBS.new_zeros(*c_NBS.shape[:2], self.state_size)
        check_hidden(h_NBV, c_NBS, [(N, B, self.output_size), (N, B, self.state_size)], x_BTD)
        return (h_NBV if h_NBV.dtype is wide else h_NBV.to(wide)), (c_NBS if c_NBS.dtype is wide else c_NBS.to(wide))

    def run(self, x_BTD: Tensor, borders: Borders, hidden: Hidden | None) -> tuple[Tensor, Hidden]:
        """All layers over rows: outputs, and the state after each row's last step."""
        backwards = Reversal.of(borders.lengths_B, x_BTD.shape[1]) if self.bidirectional else None
        turned = borders if backwards is None else backwards.borders(borders)
        h_NBV, c_NBS = self.zero_state(x_BTD.shape[0]) if hidden is None else hidden
        y = x_BTD  # [B, T, D], then the outputs of a layer, one direction beside the other
        h: list[Tensor] = []
        c: list[Tensor] = []
        for layer in range(self.num_layers):
            if layer and self.dropout and self.training:
                y = functional.dropout(y, self.dropout)
            outputs = []
            for reverse in (None, backwards)[: self.directions]:
                place = len(h)
                weights = self.weights(self.names[place][0])
                x = y if reverse is None else reverse(y)
                rows = borders if reverse is None else turned
                out_BTV, h_BV, c_BS = self.memory.run(
                    weights, x, h_NBV.select(0, place), c_NBS.select(0, place), rows, self.backend
                )
                outputs.append(out_BTV if reverse is None else reverse(out_BTV))
                h.append(h_BV)
                c.append(c_BS)
            y = outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=2)
        # copies: of one step, y and the state would be the same memory
        return y, (torch.stack(h), torch.stack(c))

    def extra_repr(self) -> str:
        """Sizes, and what differs from the defaults, as torch."""
        defaults = {
            "proj_size": 0,
            "num_layers": 1,
            "bias": True,
            "batch_first": False,
            "dropout": 0.0,
            "bidirectional": False,
        }
        given = [f"{name}={getattr(self, name)}" for name, usual in defaults.items() if getattr(self, name) != usual]
        return ", ".join([str(self.input_size), str(self.hidden_size), *given])
