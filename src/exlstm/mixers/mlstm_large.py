"""The mLSTM layer of xLSTM-7B (Beck et al. 2025, arXiv:2503.13427): no up-projection, no convolution.

    q, k, v, o = W x                    i, f = cap * tanh((W x + b) / cap)
    y = W_out (sigmoid(o) * head_norm(mLSTM(q, k, v, i, f)))

With `bias`, each of these W has one, and the norm has one after its gain.

B batch  T time  D model width  H heads  K key width  V value width
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from exlstm.mixers.contract import BlockStyle, FixedStateMixer, check_heads, check_width, checked, mask_tail, wide_zeros
from exlstm.nn import init
from exlstm.nn.fields import Factor, Positive, Size, check_fields
from exlstm.nn.layers import HeadNorm, soft_cap
from exlstm.nn.linear import Linear, linears
from exlstm.ops.gated_norm import gated_norm
from exlstm.ops.mlstm import InputGate, MLSTMState, mlstm
from exlstm.ops.mlstm.reference import log_gates


@dataclass(frozen=True, kw_only=True)
class MLSTMLargeConfig:
    """mLSTM at the model width. Widths of keys and values are factors of the model width, over all heads.

    bias: of q, k, v, o, out and the head norm; gates always have one.
    """

    style: ClassVar[BlockStyle] = BlockStyle()
    heads: Size = 4
    key_factor: Factor = 0.5
    value_factor: Factor = 1.0
    gate_cap: Positive | None = 15.0
    input_gate: InputGate = "exp"
    normalize: bool = True
    norm_eps: Positive = 1e-6
    bias: bool = False

    def __post_init__(self) -> None:
        check_fields(self)

    def build(self, width: int, *, depth: int = 1, index: int = 0) -> nn.Module:
        """The mixer. ValueError where a width cannot be divided into heads."""
        return MLSTMLarge(width, self, depth)


class MLSTMLarge(FixedStateMixer):
    """mLSTM of xLSTM-7B as a mixer: see `mixers.contract`, and `MLSTMLargeConfig` for its options."""

    def __init__(self, width: int, config: MLSTMLargeConfig, depth: int) -> None:
        super().__init__()
        check_width(width)
        keys, values = int(width * config.key_factor), int(width * config.value_factor)
        check_heads(keys, config.heads, "width {} of the keys")
        check_heads(values, config.heads, "width {} of the values")
        self.config, self.width, self.backend = config, width, "auto"
        self.key_width, self.value_width = keys // config.heads, values // config.heads
        self.q = Linear(width, keys, bias=config.bias)
        self.k = Linear(width, keys, bias=config.bias)
        self.v = Linear(width, values, bias=config.bias)
        self.o = Linear(width, values, bias=config.bias)
        self.i = Linear(width, config.heads)
        self.f = Linear(width, config.heads)
        self.norm = HeadNorm(config.heads, self.value_width, config.norm_eps, config.bias)
        self.out = Linear(values, width, bias=config.bias)
        biases = ("q.bias", "k.bias", "v.bias", "o.bias", "norm.bias", "out.bias") if config.bias else ()
        init.fill(
            self,
            {
                **dict.fromkeys(biases, init.zeros),
                "q.weight": init.small(width),
                "k.weight": init.small(width),
                "v.weight": init.small(width),
                "o.weight": init.zeros,
                "i.weight": init.zeros,
                "i.bias": init.constant(-10),  # prevented loss spikes in training the 7B
                "f.weight": init.zeros,
                "f.bias": init.linspace(3, 6),
                "norm.weight": init.ones,
                "out.weight": init.wang(width, depth),
            },
        )

    def forward(
        self, x_BTD: Tensor, state: MLSTMState | None = None, *,
        reset_BT: Tensor | None = None, lengths_B: Tensor | None = None,
    ) -> tuple[Tensor, MLSTMState]:  # fmt: skip
        """[B, T, width] -> [B, T, width] and the state after the last step; see `mixers.contract`."""
        x_BTD, reset_BT, lengths_B = checked(x_BTD, self.width, reset_BT, lengths_B)
        H, cap = self.config.heads, self.config.gate_cap
        state = self.zero_state(x_BTD.shape[0]) if state is None else state
        *qkv, o_BTM, i_BTH, f_BTH = linears(x_BTD, (self.q, self.k, self.v, self.o), wide=(self.i, self.f))
        q_BTHK, k_BTHK, v_BTHV = (torch.unflatten(x, -1, (H, -1)) for x in qkv)
        h_BTHV, state = mlstm(
            q_BTHK, k_BTHK, v_BTHV,
            soft_cap(i_BTH, cap), soft_cap(f_BTH, cap), state,
            reset_BT=reset_BT, lengths_B=lengths_B, input_gate=self.config.input_gate,
            normalize=self.config.normalize, backend=self.backend,
        )  # fmt: skip
        norm = self.norm
        y_BTM = gated_norm(h_BTHV, norm.weight, o_BTM, bias_E=norm.bias, activation="sigmoid", eps=norm.eps)
        y_BTD = self.out(y_BTM)
        return mask_tail(y_BTD, lengths_B), state

    def log_gates(self, x_BTD: Tensor, state: MLSTMState) -> tuple[Tensor, Tensor]:
        """(log i, log f) [B, T, H] of every step, as the cell has them."""
        cap = self.config.gate_cap
        i_BTH, f_BTH = linears(x_BTD, (), wide=(self.i, self.f))
        return log_gates(soft_cap(i_BTH, cap), soft_cap(f_BTH, cap), self.config.input_gate)

    def zero_state(self, batch: int, /, device: torch.device | None = None) -> MLSTMState:
        """State before the first step, on the device of the weights or on another."""
        H, K, V = self.config.heads, self.key_width, self.value_width
        zeros = wide_zeros(self.i.bias, device)
        return MLSTMState(zeros(batch, H, K, V), zeros(batch, H, K), zeros(batch, H))

    def cell_flops(self, mode: str, length: int, /) -> float:
        """FLOPs of products with the memory and, in prefill, within chunks of 64 steps."""
        H, K, V = self.config.heads, self.key_width, self.value_width
        return H * (6 * K * V if mode == "decode" else 4 * K * V + 2 * min(64, length) * (K + V))
