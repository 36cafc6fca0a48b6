"""The sLSTM (Beck et al. 2024, arXiv:2405.04517, eqs 8-17) with the interface of torch.nn.LSTM.

B batch  T time  D input width  E input width with a projected h  H heads  U width of a head  M of all heads
K width of the h that recurs in a head  V width of h  S width of c  J rows of all gates
"""

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from exlstm.nn import init
from exlstm.nn.borders import Borders
from exlstm.ops.layer import Layer
from exlstm.ops.slstm import slstm_layer
from exlstm.rnn.cell import RecurrentCell
from exlstm.rnn.heads import heads_of
from exlstm.rnn.interface import RecurrentNet
from exlstm.rnn.memory import Result, Weights, projected, with_projection

ForgetBias = Literal["power_law", "linspace", "zeros"]
RecurrentInit = Literal["uniform", "zeros"]


class SLSTMParts(NamedTuple):
    """A state by name: h [..., V], and c, n, m [..., U H]."""

    h: Tensor
    c: Tensor
    n: Tensor
    m: Tensor


@dataclass(frozen=True, kw_only=True)
class SLSTMMemory:
    """A layer in one direction, see `Memory`: sLSTM with gates of W x + R h + b; weights in torch's order of rows."""

    hidden_size: int
    proj_size: int
    num_heads: int
    forget_bias: ForgetBias
    recurrent_init: RecurrentInit

    @property
    def state_size(self) -> int:
        """c, n and m."""
        return 3 * self.hidden_size

    def shapes(self, inputs: int, bias: bool) -> dict[str, tuple[int, ...]]:
        """As torch's, but that rows of R have a column for the units of their own head only."""
        gates = 4 * self.hidden_size
        shapes: dict[str, tuple[int, ...]] = {
            "weight_ih": (gates, inputs),
            "weight_hh": (gates, self.proj_size or self.hidden_size // self.num_heads),
        }
        if bias:
            shapes |= {"bias_ih": (gates,), "bias_hh": (gates,)}
        if self.proj_size:
            shapes["weight_hr"] = (self.proj_size, self.hidden_size)
        return shapes

    def fills(self, index: int, depth: int) -> dict[str, init.Fill]:
        """Weights as torch's; biases of 0 but for the forget gate, whose spread gives units all time scales."""
        spread = {"power_law": init.power_law(index, depth), "linspace": init.linspace(3, 6), "zeros": init.zeros}
        forget, first, end = spread[self.forget_bias], self.hidden_size, 2 * self.hidden_size
        uniform = init.uniform(self.hidden_size**-0.5)
        return {
            "weight_ih": uniform,
            "weight_hh": uniform if self.recurrent_init == "uniform" else init.zeros,
            "bias_ih": lambda b_J: (b_J.zero_(), forget(b_J[first:end].view(self.num_heads, -1))),
            "bias_hh": init.zeros,
            "weight_hr": uniform,
        }

    def run(
        self, weights: Weights, x_BTD: Tensor, h_BV: Tensor, c_BS: Tensor, borders: Borders, backend: str
    ) -> Result:
        """See `Memory.run`."""
        x_BTE, before_BM = x_BTD, h_BV
        layer = Layer(weights["weight_ih"], weights["weight_hh"], weights.get("bias_ih"), weights.get("bias_hh"))
        if self.proj_size:
            x_BTE, w_JE, r_JK = with_projection(
                x_BTD, layer.w_JD, layer.r_JK, weights["weight_hr"], h_BV, borders.reset_BT
            )
            layer = layer._replace(w_JD=w_JE, r_JK=r_JK)
            before_BM = h_BV.new_zeros(h_BV.shape[0], self.hidden_size)
        y_BTV, last_BV, c_BS = slstm_layer(
            x_BTE, layer, before_BM, c_BS, reset_BT=borders.reset_BT, lengths_B=borders.lengths_B, backend=backend
        )
        if self.proj_size:
            y_BTV, last_BV = projected(y_BTV, weights["weight_hr"], h_BV, borders)
        return y_BTV.to(x_BTD.dtype), last_BV, c_BS

    def unpack(self, h: Tensor, c: Tensor) -> SLSTMParts:
        """See `Memory.unpack`."""
        return SLSTMParts(h, *c.chunk(3, dim=-1))

    def pack(self, parts: SLSTMParts) -> tuple[Tensor, Tensor]:
        """See `Memory.pack`."""
        return parts.h, torch.cat(parts[1:], dim=-1)


def memory_of(
    hidden_size: int, proj_size: int, num_heads: int | None, forget_bias: str, recurrent_init: str
) -> SLSTMMemory:
    """The memory of a layer. ValueError for options that there are not."""
    for name, given, known in (
        ("forget_bias", forget_bias, ("power_law", "linspace", "zeros")),
        ("recurrent_init", recurrent_init, ("uniform", "zeros")),
    ):
        if given not in known:
            raise ValueError(f"{name} is {given!r}; it must be one of {list(known)}.")
    heads = heads_of(hidden_size, 1 if num_heads is None and proj_size else num_heads)
    if proj_size and heads > 1:
        raise ValueError(
            f"num_heads is {heads}, and proj_size {proj_size}; a projected h recurs in one head, so take 1."
        )
    options: Any = {"forget_bias": forget_bias, "recurrent_init": recurrent_init}
    return SLSTMMemory(hidden_size=hidden_size, proj_size=proj_size, num_heads=heads, **options)


class SLSTM(RecurrentNet):
    """sLSTM layers with the interface of `torch.nn.LSTM`: constructor, call, state and names of weights.

        rnn = exlstm.SLSTM(10, 20, num_layers=2, batch_first=True)
        y, (h_n, c_n) = rnn(x)                           # [B, T, 10] -> [B, T, 20]
        y, (h_n, c_n) = rnn(x, (h_n, c_n), reset=done)   # goes on; clears rows where an episode begins

    Arguments up to dtype are those of `torch.nn.LSTM`, see `RecurrentNet` for the call. c_n holds c, n and m, so it is
    3 times as wide as hidden_size; zeros are an empty memory.
    num_heads: blocks of the block-diagonal R, `weight_hh_l0` [4 hidden_size, hidden_size / num_heads]; None: 4 or 2,
    if a head then has at least 16 units, or 1, and 1 with proj_size.
    forget_bias: initial spread of the forget gates, "power_law" (5 down to -7 within a head, by depth), "linspace" (3
    to 6) or "zeros". recurrent_init: "uniform", as torch, or "zeros".
    backend: as of `exlstm.ops.slstm.slstm`; the attribute may be set later.
    """

    mode = "SLSTM"

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
        num_heads: int | None = None,
        forget_bias: ForgetBias = "power_law",
        recurrent_init: RecurrentInit = "uniform",
        backend: str = "auto",
    ) -> None:
        super().__init__(
            input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, proj_size, backend
        )
        memory = memory_of(hidden_size, proj_size, num_heads, forget_bias, recurrent_init)
        self.num_heads = memory.num_heads
        self.register(memory, device, dtype)

    def reset_forget_bias(self) -> None:
        """Sets the biases of the forget gates as at the start, for code that set all biases to 0."""
        H = self.hidden_size
        for names, index in self.names:
            if "bias_ih" in names:
                with torch.no_grad():
                    bias = getattr(self, names["bias_ih"])
                    fresh = torch.empty_like(bias)
                    self.memory.fills(index, self.num_layers)["bias_ih"](fresh)
                    bias[H : 2 * H] = fresh[H : 2 * H]
                    getattr(self, names["bias_hh"])[H : 2 * H] = 0


class SLSTMCell(RecurrentCell):
    """One step of the sLSTM with the interface of `torch.nn.LSTMCell`: `h, c = cell(x, (h, c))`.

    x: [B, input_size] or [input_size]. c: 3 times as wide as hidden_size, see `SLSTM`, which has the other options.
    """

    mode = "SLSTMCell"

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        num_heads: int | None = None,
        forget_bias: ForgetBias = "power_law",
        recurrent_init: RecurrentInit = "uniform",
        backend: str = "auto",
    ) -> None:
        super().__init__(input_size, hidden_size, bias, backend)
        memory = memory_of(hidden_size, 0, num_heads, forget_bias, recurrent_init)
        self.num_heads = memory.num_heads
        self.register(memory, device, dtype)
