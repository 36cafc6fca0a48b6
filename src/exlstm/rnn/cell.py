"""One step of a recurrent net, with the interface of torch.nn.LSTMCell.

B batch  D input width  V width of h  S width of c
"""

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from exlstm.nn.borders import Borders
from exlstm.rnn.arguments import Hidden, ShapeError, check_hidden, check_input, checked_hidden
from exlstm.rnn.parameters import RecurrentWeights


class RecurrentCell(RecurrentWeights):
    """`h, c = cell(input, (h, c))`: a subclass has the constructor, and with it the memory.

    input: [B, input_size], or [input_size] without a batch. hx: the pair of an earlier call, or None for an empty
    memory; h [B, hidden_size] and c [B, state_size]. Both are float32 or wider, and values: never changed in place.
    Raises ShapeError, a ValueError and RuntimeError, for what does not fit.
    """

    depth = 1

    @property
    def output_size(self) -> int:
        """The width of h."""
        return self.hidden_size

    def layers(self) -> Iterator[tuple[str, int, int]]:
        """The one layer."""
        yield "", self.input_size, 0

    def zero_state(self, batch: int) -> Hidden:
        """The empty state of `batch` rows, the same as None."""
        return self.zeros(batch)

    def forward(self, input: Tensor, hx: Any = None) -> Hidden:  # noqa: A002 - torch's name
        """See the class."""
        if input.dim() not in (1, 2):
            raise ShapeError(f"{self.mode}: Expected input to be 1D or 2D, got {input.dim()}D instead")
        weights = self.weights(self.names[0][0])
        check_input(input, self.input_size, next(iter(weights.values())))
        batched = input.dim() == 2
        x_BD = input if batched else input[None]
        B = x_BD.shape[0]
        if hx is None:
            h_BV, c_BS = self.zeros(B)
        else:
            # one layer: the axes of a net, but for the first one
            h_1BV, c_1BS = checked_hidden([x[None] if isinstance(x, Tensor) else x for x in hx], batched)
            check_hidden(h_1BV, c_1BS, [(1, B, self.output_size), (1, B, self.state_size)], input)
            h_BV, c_BS = h_1BV[0], c_1BS[0]
        _, h_BV, c_BS = self.memory.run(weights, x_BD[:, None], h_BV, c_BS, Borders(), self.backend)
        return (h_BV, c_BS) if batched else (h_BV[0], c_BS[0])

    def extra_repr(self) -> str:
        """Sizes, and what differs from the defaults."""
        return f"{self.input_size}, {self.hidden_size}" + ("" if self.bias else ", bias=False")
