"""Plain recurrent nets with a matrix memory: what is left of xLSTM without exponential gates and normalizers.

    q, k, v = W_q x, W_k x, W_v x                           per head
    Z_t = tanh(H_{t-1} R + k_t v_t^T / sqrt(K))             with memory mixing, R per head; without: R = 1
    H_t = Z_t                                               Elman net
    H_t = f_t H_{t-1} + (1 - f_t) Z_t ,  f = sigmoid(w_f x + b_f)             GRU with an update gate per head
    y = W_o RMSNorm(H_t^T q_t)

M2RNN (2026) has this form, with mixing and a gate. Here each of both can be left out, to ask what it is worth.

B batch  T time  D model width  H heads  K key width  U, V value width of a head  G the keys' or queries' channels (H K)
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from exlstm.mixers.contract import BlockStyle, FixedStateMixer, check_width, checked, mask_tail, wide_zeros
from exlstm.nn import init
from exlstm.nn.fields import Positive, Size, check_fields
from exlstm.nn.layers import HeadNorm
from exlstm.nn.linear import Linear, linears
from exlstm.ops.matrix_rnn import MatrixRNNState, matrix_rnn


@dataclass(frozen=True, kw_only=True)
class MatrixRNNConfig:
    """A recurrent net with a matrix memory, whose values have the model width.

    cell: "elman", or "gru", which has a gate. mix: "value", by R along the value axis, or "none".
    key_width: of a head; None: that of the values, width / heads.
    """

    style: ClassVar[BlockStyle] = BlockStyle()

    heads: Size = 4
    key_width: Size | None = None
    cell: Literal["elman", "gru"] = "gru"
    mix: Literal["none", "value"] = "value"
    norm_eps: Positive = 1e-5

    def __post_init__(self) -> None:
        check_fields(self)

    def build(self, width: int, *, depth: int = 1, index: int = 0) -> nn.Module:
        """The mixer. ValueError where the width cannot be divided into heads."""
        return MatrixRNN(width, self)


class MatrixRNN(FixedStateMixer):
    """Recurrent net with a matrix memory as a mixer: see `mixers.contract`, and `MatrixRNNConfig` for its options."""

    def __init__(self, width: int, config: MatrixRNNConfig) -> None:
        super().__init__()
        check_width(width, config.heads)
        H = config.heads
        V = width // H
        K = V if config.key_width is None else config.key_width
        self.config, self.width, self.key_width, self.backend = config, width, K, "auto"
        self.q, self.k = Linear(width, H * K, bias=False), Linear(width, H * K, bias=False)
        self.v, self.out = Linear(width, width, bias=False), Linear(width, width, bias=False)
        self.gate = Linear(width, H, bias=True) if config.cell == "gru" else None
        self.r_HUV = nn.Parameter(torch.empty(H, V, V)) if config.mix == "value" else None
        self.norm = HeadNorm(H, V, config.norm_eps, kind="rms")
        table = dict.fromkeys(("q.weight", "k.weight", "v.weight", "out.weight"), init.uniform(width**-0.5))
        table["norm.weight"] = init.ones
        if self.gate is not None:
            # heads of which one half forgets in a step, to one that remembers twenty
            table |= {"gate.weight": init.uniform(width**-0.5), "gate.bias": init.linspace(0, 3)}
        if self.r_HUV is not None:
            table["r_HUV"] = init.orthogonal(0.9)
        init.fill(self, table)

    def forward(
        self,
        x_BTD: Tensor,
        state: MatrixRNNState | None = None,
        *,
        reset_BT: Tensor | None = None,
        lengths_B: Tensor | None = None,
    ) -> tuple[Tensor, MatrixRNNState]:
        """[B, T, width] -> [B, T, width] and the state after the last step; see `mixers.contract`."""
        x_BTD, reset_BT, lengths_B = checked(x_BTD, self.width, reset_BT, lengths_B)
        gates = () if self.gate is None else (self.gate,)
        q_BTG, k_BTG, v_BTD, *f = linears(x_BTD, (self.q, self.k, self.v), wide=gates)
        (B, T, D), H = x_BTD.shape, self.config.heads
        o_BTHV, state = matrix_rnn(
            q_BTG.view(B, T, H, self.key_width),
            k_BTG.view(B, T, H, self.key_width),
            v_BTD.view(B, T, H, D // H),
            f[0] if f else None,
            self.r_HUV,
            state,
            reset_BT=reset_BT,
            lengths_B=lengths_B,
            backend=self.backend,
        )
        return mask_tail(self.out(self.norm(o_BTHV.to(x_BTD.dtype))), lengths_B), state

    def zero_state(self, batch: int, /, device: torch.device | None = None) -> MatrixRNNState:
        """State before the first step, on the device of the weights or on another."""
        H = self.config.heads
        return MatrixRNNState(wide_zeros(self.norm.weight, device)(batch, H, self.key_width, self.width // H))

    def cell_flops(self, mode: str, length: int, /) -> float:
        """FLOPs of the outer product, the tanh and the read-out, and of R beyond 2 per weight: it meets K rows."""
        V = self.width // self.config.heads
        mixing = 0.0 if self.r_HUV is None else 2.0 * self.width * V * (self.key_width - 1)
        return 8.0 * self.width * self.key_width + mixing
