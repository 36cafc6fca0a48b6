"""The LSTM (Hochreiter & Schmidhuber 1997) with the interface and the weights of torch.nn.LSTM.

B batch  T time  D input width  E input width with a projected h  U hidden width  V width of h  S width of c
J rows of the gates i, f, g, o
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from exlstm.nn import init
from exlstm.nn.borders import Borders
from exlstm.ops.layer import Layer
from exlstm.ops.lstm import lstm_layer
from exlstm.rnn.cell import RecurrentCell
from exlstm.rnn.interface import RecurrentNet
from exlstm.rnn.memory import Result, Weights, projected, with_projection


class LSTMParts(NamedTuple):
    """A state by name: h [..., V] and c [..., U]."""

    h: Tensor
    c: Tensor


@dataclass(frozen=True, kw_only=True)
class LSTMMemory:
    """A layer in one direction, see `Memory`."""

    hidden_size: int
    proj_size: int

    @property
    def state_size(self) -> int:
        """c."""
        return self.hidden_size

    def shapes(self, inputs: int, bias: bool) -> dict[str, tuple[int, ...]]:
        """As torch's."""
        gates = 4 * self.hidden_size
        shapes: dict[str, tuple[int, ...]] = {
            "weight_ih": (gates, inputs),
            "weight_hh": (gates, self.proj_size or self.hidden_size),
        }
        if bias:
            shapes |= {"bias_ih": (gates,), "bias_hh": (gates,)}
        if self.proj_size:
            shapes["weight_hr"] = (self.proj_size, self.hidden_size)
        return shapes

    def fills(self, index: int, depth: int) -> dict[str, init.Fill]:
        """As torch's."""
        names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr")
        return dict.fromkeys(names, init.uniform(self.hidden_size**-0.5))

    def run(
        self, weights: Weights, x_BTD: Tensor, h_BV: Tensor, c_BS: Tensor, borders: Borders, backend: str
    ) -> Result:
        """See `Memory.run`."""
        x_BTE, before_BU = x_BTD, h_BV
        layer = Layer(weights["weight_ih"], weights["weight_hh"], weights.get("bias_ih"), weights.get("bias_hh"))
        if self.proj_size:
            x_BTE, w_JE, u_JU = with_projection(
                x_BTD, layer.w_JD, layer.r_JK, weights["weight_hr"], h_BV, borders.reset_BT
            )
            layer, before_BU = layer._replace(w_JD=w_JE, r_JK=u_JU), torch.zeros_like(c_BS)
        y_BTV, last_BV, c_BS = lstm_layer(x_BTE, layer, before_BU, c_BS, **borders._asdict(), backend=backend)
        if self.proj_size:
            y_BTV, last_BV = projected(y_BTV, weights["weight_hr"], h_BV, borders)
        return y_BTV, last_BV, c_BS

    def unpack(self, h: Tensor, c: Tensor) -> LSTMParts:
        """See `Memory.unpack`."""
        return LSTMParts(h, c)

    def pack(self, parts: LSTMParts) -> tuple[Tensor, Tensor]:
        """See `Memory.pack`."""
        return parts.h, parts.c


class LSTM(RecurrentNet):
    """`torch.nn.LSTM` with `lengths=` and `reset=`; state_dicts of the two load into each other.

        rnn = exlstm.LSTM(10, 20, num_layers=2, batch_first=True)
        rnn.load_state_dict(torch_lstm.state_dict())
        y, (h_n, c_n) = rnn(x, lengths=lengths, reset=done)

    Arguments up to dtype are those of `torch.nn.LSTM`, see `RecurrentNet` for the call.
    backend: as of `exlstm.ops.lstm.lstm`; the attribute may be set later.
    """

    mode = "LSTM"

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        backend: str = "auto",
    ) -> None:
        super().__init__(
            input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, proj_size, backend
        )
        self.register(LSTMMemory(hidden_size=hidden_size, proj_size=proj_size), device, dtype)


class LSTMCell(RecurrentCell):
    """`torch.nn.LSTMCell` in the same house: `h, c = cell(x, (h, c))`, x [B, input_size] or [input_size]."""

    mode = "LSTMCell"

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        backend: str = "auto",
    ) -> None:
        super().__init__(input_size, hidden_size, bias, backend)
        self.register(LSTMMemory(hidden_size=hidden_size, proj_size=0), device, dtype)
