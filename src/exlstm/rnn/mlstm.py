"""The mLSTM layer of xLSTM-7B (Beck et al. 2025, arXiv:2503.13427) with the interface of torch.nn.LSTM.

    q, k, v, o = W x + b                i, f = cap * tanh((W x + b) / cap)
    h = sigmoid(o) * head_norm(mLSTM(q, k, v, i, f))

Unlike there all of W x have a bias, for an input need not be an embedding: without biases a single number x could give
q, k and v one direction only, whose length the norm takes away.

B batch  T time  D input width  H heads  G both gates of all heads  K key width of a head  U value width of a head
V width of h  S width of c
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from exlstm.nn import init
from exlstm.nn.borders import Borders, last_steps
from exlstm.nn.layers import soft_cap
from exlstm.ops.common import wide_dtype
from exlstm.ops.gated_norm import gated_norm
from exlstm.ops.linear import linears
from exlstm.ops.mlstm import MLSTMState, mlstm
from exlstm.rnn.arguments import check_positive
from exlstm.rnn.cell import RecurrentCell
from exlstm.rnn.heads import heads_of
from exlstm.rnn.interface import RecurrentNet
from exlstm.rnn.memory import Result, Weights, projected

NORM_EPS = 1e-6  # as in the 7B


class MLSTMParts(NamedTuple):
    """A state by name: h [..., V], C [..., heads, K, U], n [..., heads, K] and m [..., heads]."""

    h: Tensor
    C: Tensor
    n: Tensor
    m: Tensor


@dataclass(frozen=True, kw_only=True)
class MLSTMMemory:
    """A layer in one direction, see `Memory`. gate_soft_cap: bound of the gates' pre-activations, or None."""

    hidden_size: int
    proj_size: int
    num_heads: int
    qk_size: int
    gate_soft_cap: float | None

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Numbers of C, n and m."""
        return self.qk_size * self.hidden_size, self.num_heads * self.qk_size, self.num_heads

    @property
    def state_size(self) -> int:
        """C, n and m."""
        return sum(self.sizes)

    def shapes(self, inputs: int, bias: bool) -> dict[str, tuple[int, ...]]:
        """Projections of all heads. Every matrix is called weight, and nothing else is."""
        keys, values = self.num_heads * self.qk_size, self.hidden_size
        rows = {"q": keys, "k": keys, "v": values, "o": values, "if": 2 * self.num_heads}
        shapes: dict[str, tuple[int, ...]] = {f"weight_{name}": (count, inputs) for name, count in rows.items()}
        if bias:
            shapes |= {f"bias_{name}": (count,) for name, count in rows.items()}
        shapes["norm_scale"] = (self.hidden_size,)
        if self.proj_size:
            shapes["weight_hr"] = (self.proj_size, self.hidden_size)
        return shapes

    def fills(self, index: int, depth: int) -> dict[str, init.Fill]:
        """As torch's, but for the gates' biases: 3 to 6 for the forget gates, 0 for the input gates."""
        names = ["weight_hr", "weight_if", *(f"{kind}_{name}" for kind in ("weight", "bias") for name in "qkvo")]
        forget, H = init.linspace(3, 6), self.num_heads
        return dict.fromkeys(names, init.uniform(self.hidden_size**-0.5)) | {
            "bias_if": lambda b_G: (b_G.zero_(), forget(b_G[H:])),
            "norm_scale": init.ones,
        }

    def run(
        self, weights: Weights, x_BTD: Tensor, h_BV: Tensor, c_BS: Tensor, borders: Borders, backend: str
    ) -> Result:
        """See `Memory.run`. Nothing recurs through h, so the one before the first step is not read."""
        H, dtype, wide = self.num_heads, x_BTD.dtype, wide_dtype(x_BTD.dtype)
        products = [(weights[f"weight_{name}"], weights.get(f"bias_{name}"), dtype) for name in "qkvo"]
        gates = weights["weight_if"], weights.get("bias_if"), wide
        *qkv, o_BTM, raw_BTG = linears(x_BTD, [*products, gates])
        i_BTH, f_BTH = soft_cap(raw_BTG, self.gate_soft_cap).chunk(2, dim=2)
        q_BTHK, k_BTHK, v_BTHU = (torch.unflatten(x, -1, (H, -1)) for x in qkv)
        h_BTHU, after = mlstm(
            q_BTHK, k_BTHK, v_BTHU, i_BTH, f_BTH, self.cell_state(c_BS), **borders._asdict(), backend=backend
        )
        y_BTV = gated_norm(h_BTHU, weights["norm_scale"], o_BTM, activation="sigmoid", eps=NORM_EPS)
        if self.proj_size:
            y_BTV, last_BV = projected(y_BTV, weights["weight_hr"], h_BV, borders)
        else:
            last_BV = last_steps(y_BTV, borders.lengths_B, h_BV)
        return y_BTV, last_BV.to(wide), torch.cat([x.flatten(1) for x in after], dim=1)

    def cell_state(self, c: Tensor) -> MLSTMState:
        """C, n and m of a packed memory [..., S]."""
        H, K = self.num_heads, self.qk_size
        matrix, keys, m = torch.split(c, list(self.sizes), dim=-1)
        return MLSTMState(torch.unflatten(matrix, -1, (H, K, -1)), torch.unflatten(keys, -1, (H, K)), m)

    def unpack(self, h: Tensor, c: Tensor) -> MLSTMParts:
        """See `Memory.unpack`."""
        return MLSTMParts(h, *self.cell_state(c))

    def pack(self, parts: MLSTMParts) -> tuple[Tensor, Tensor]:
        """See `Memory.pack`."""
        return parts.h, torch.cat([parts.C.flatten(-3), parts.n.flatten(-2), parts.m], dim=-1)


def memory_of(
    hidden_size: int, proj_size: int, num_heads: int | None, qk_size: int | None, gate_soft_cap: float | None
) -> MLSTMMemory:
    """The memory of a layer. TypeError or ValueError for sizes that do not fit."""
    heads = heads_of(hidden_size, num_heads)
    if qk_size is not None:
        check_positive("qk_size", qk_size)
    if gate_soft_cap is not None and not gate_soft_cap > 0:
        raise ValueError(f"gate_soft_cap is {gate_soft_cap!r}; it must be above 0, or None for no bound.")
    keys = max(1, hidden_size // heads // 2) if qk_size is None else qk_size
    return MLSTMMemory(
        hidden_size=hidden_size, proj_size=proj_size, num_heads=heads, qk_size=keys, gate_soft_cap=gate_soft_cap
    )


class MLSTM(RecurrentNet):
    """mLSTM layers with the interface of `torch.nn.LSTM`: constructor, call and state.

        rnn = exlstm.MLSTM(10, 64, num_layers=2, batch_first=True)
        y, (h_n, c_n) = rnn(x)                           # [B, T, 10] -> [B, T, 64]
        y, (h_n, c_n) = rnn(x, (h_n, c_n), reset=done)   # goes on; clears rows where an episode begins

    Arguments up to dtype are those of `torch.nn.LSTM`, see `RecurrentNet` for the call. c_n holds C, n and m of all
    heads, `state_size` numbers; zeros are an empty memory. h_n is the last output; nothing recurs through it.
    num_heads: None: 4 or 2, if a head then has at least 16 units, or 1. qk_size: width of keys in a head; None: half of
    a head's. gate_soft_cap: bound of the gates' pre-activations, or None.
    backend: as of `exlstm.ops.mlstm.mlstm`; the attribute may be set later.
    """

    mode = "MLSTM"

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
        qk_size: int | None = None,
        gate_soft_cap: float | None = 15.0,
        backend: str = "auto",
    ) -> None:
        super().__init__(
            input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, proj_size, backend
        )
        memory = memory_of(hidden_size, proj_size, num_heads, qk_size, gate_soft_cap)
        self.num_heads, self.qk_size = memory.num_heads, memory.qk_size
        self.register(memory, device, dtype)


class MLSTMCell(RecurrentCell):
    """One step of the mLSTM with the interface of `torch.nn.LSTMCell`: `h, c = cell(x, (h, c))`.

    x: [B, input_size] or [input_size]. c: `state_size` numbers, see `MLSTM`, which has the other options.
    """

    mode = "MLSTMCell"

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        num_heads: int | None = None,
        qk_size: int | None = None,
        gate_soft_cap: float | None = 15.0,
        backend: str = "auto",
    ) -> None:
        super().__init__(input_size, hidden_size, bias, backend)
        memory = memory_of(hidden_size, 0, num_heads, qk_size, gate_soft_cap)
        self.num_heads, self.qk_size = memory.num_heads, memory.qk_size
        self.register(memory, device, dtype)
