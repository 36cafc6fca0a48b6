"""The mLSTM layer of the xLSTM paper, with its own up-projection (Beck et al. 2024, arXiv:2405.04517, Figure 11).

    a, z = W_up x                       c = silu(conv(a))
    q, k = block-diagonal(c)            v = block-diagonal(a)
    i, f = W [q; k; v] + b              h = head_norm(mLSTM(q, k, v, i, f))
    y = W_down ((h + skip * c) * silu(z))

With `bias`, up, q, k, v and down have one.

B batch  T time  D model width  E inner width  J all of q, k, v  H heads  V head width (also of keys)
"""

from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from exlstm.mixers.contract import BlockStyle, FixedStateMixer, check_width, checked, mask_tail, wide_zeros
from exlstm.nn import init
from exlstm.nn.fields import Factor, Positive, Size, check_fields
from exlstm.nn.layers import BlockLinear, CausalConv, HeadNorm, round_up
from exlstm.nn.linear import Linear, linears
from exlstm.ops.conv import ConvState
from exlstm.ops.gated_norm import gated_norm
from exlstm.ops.mlstm import ForgetGate, InputGate, MLSTMState, mlstm
from exlstm.ops.mlstm.reference import log_gates

GateSees = Literal["input", "bias", "start"]


class MLSTMLayerState(NamedTuple):
    """State of the layer: the convolution's window and the cell's memory."""

    conv: ConvState
    cell: MLSTMState


@dataclass(frozen=True, kw_only=True)
class MLSTMConfig:
    """mLSTM with up-projection. The inner width is up_factor * width, rounded up to a multiple of up_multiple.

    bias: of the projections up and down and of q, k, v; gates and convolution always have one.
    input_gate: "exp", "sigmoid", "softplus", "relu" or "relu2"; the last two start with a bias around one: a ReLU that
      is zero for every input has no gradient. forget_gate: "sigmoid", or "exp", which starts as open as that.
    input_gate_sees, forget_gate_sees: what a gate depends on, for comparisons. "input"; "bias", a number per head that
      is learned; or "start", that number as it is at the start.
    """

    style: ClassVar[BlockStyle] = BlockStyle(norm="layer", activation=None)
    heads: Size = 4
    up_factor: Factor = 2.0
    conv_width: Size = 4
    qkv_block: Size = 4  # width of the blocks of the block-diagonal q, k, v
    input_gate: InputGate = "exp"
    normalize: bool = True
    norm_eps: Positive = 1e-5
    bias: bool = False
    up_multiple: Size = 64
    forget_gate: ForgetGate = "sigmoid"
    input_gate_sees: GateSees = "input"
    forget_gate_sees: GateSees = "input"

    def __post_init__(self) -> None:
        check_fields(self)

    def build(self, width: int, *, depth: int = 1, index: int = 0) -> nn.Module:
        """The mixer. ValueError where the inner width cannot be divided into heads and blocks."""
        return MLSTM(width, self, depth)


class MLSTM(FixedStateMixer):
    """mLSTM of the xLSTM paper as a mixer: see `mixers.contract`, and `MLSTMConfig` for its options."""

    def __init__(self, width: int, config: MLSTMConfig, depth: int) -> None:
        super().__init__()
        check_width(width)
        inner = round_up(config.up_factor * width, config.up_multiple)
        for name, parts in {"heads": config.heads, "qkv_block": config.qkv_block}.items():
            if inner % parts:
                raise ValueError(f"{name} is {parts}; it must divide the inner width {inner}.")
        self.config, self.width, self.inner, self.backend = config, width, inner, "auto"
        self.up = Linear(width, 2 * inner, bias=config.bias)
        self.conv = CausalConv(inner, config.conv_width)
        self.q = BlockLinear(inner, inner // config.qkv_block, config.bias)
        self.k = BlockLinear(inner, inner // config.qkv_block, config.bias)
        self.v = BlockLinear(inner, inner // config.qkv_block, config.bias)
        self.i = Linear(3 * inner, config.heads)
        self.f = Linear(3 * inner, config.heads)
        self.norm = HeadNorm(config.heads, inner // config.heads, config.norm_eps)
        self.skip = nn.Parameter(torch.empty(inner))
        self.down = Linear(inner, width, bias=config.bias)
        conv_bound, forget = config.conv_width**-0.5, init.linspace(3, 6)  # the bound as torch's Conv1d
        biases = ("up.bias", "q.bias_D", "k.bias_D", "v.bias_D", "down.bias") if config.bias else ()
        init.fill(
            self,
            {
                **dict.fromkeys(biases, init.zeros),
                "up.weight": init.small(width),
                "conv.weight_DW": init.uniform(conv_bound),
                "conv.bias_D": init.uniform(conv_bound),
                "q.weight_HVK": init.small(width),
                "k.weight_HVK": init.small(width),
                "v.weight_HVK": init.small(width),
                "i.weight": init.zeros,
                "i.bias": init.normal(0.1, around=1 if config.input_gate in ("relu", "relu2") else 0),
                "f.weight": init.zeros,
                "f.bias": forget if config.forget_gate == "sigmoid" else init.log_sigmoids(forget),
                "norm.weight": init.ones,
                "skip": init.ones,
                "down.weight": init.wang(width, depth),
            },
        )
        for gate, sees in ((self.i, config.input_gate_sees), (self.f, config.forget_gate_sees)):
            gate.weight.requires_grad_(sees == "input")  # it is zero at the start
            gate.bias.requires_grad_(sees != "start")

    def forward(
        self, x_BTD: Tensor, state: MLSTMLayerState | None = None, *,
        reset_BT: Tensor | None = None, lengths_B: Tensor | None = None,
    ) -> tuple[Tensor, MLSTMLayerState]:  # fmt: skip
        """[B, T, width] -> [B, T, width] and the state after the last step; see `mixers.contract`."""
        x_BTD, reset_BT, lengths_B = checked(x_BTD, self.width, reset_BT, lengths_B)
        H = self.config.heads
        state = self.zero_state(x_BTD.shape[0]) if state is None else state
        z_BTE, c_BTE, conv, qkv, i_BTH, f_BTH = self.project(x_BTD, state, reset_BT, lengths_B)
        q_BTHV, k_BTHV, v_BTHV = (torch.unflatten(x, -1, (H, -1)) for x in qkv)
        h_BTHV, cell = mlstm(
            q_BTHV, k_BTHV, v_BTHV,
            i_BTH, f_BTH, state.cell,
            reset_BT=reset_BT, lengths_B=lengths_B, input_gate=self.config.input_gate,
            forget_gate=self.config.forget_gate, normalize=self.config.normalize, backend=self.backend,
        )  # fmt: skip
        y_BTE = gated_norm(h_BTHV, self.norm.weight, z_BTE, skip_E=self.skip, c_BTE=c_BTE, eps=self.norm.eps)
        y_BTD = self.down(y_BTE)
        return mask_tail(y_BTD, lengths_B), MLSTMLayerState(conv, cell)

    def project(
        self, x_BTD: Tensor, state: MLSTMLayerState, reset_BT: Tensor | None, lengths_B: Tensor | None
    ) -> tuple[Tensor, Tensor, ConvState, tuple[Tensor, Tensor, Tensor], Tensor, Tensor]:
        """What the cell and its output take: z, the convolved c with its state, (q, k, v), and the gates."""
        a_BTE, z_BTE = self.up(x_BTD).chunk(2, dim=-1)
        c_BTE, conv = self.conv(a_BTE, state.conv, reset_BT=reset_BT, lengths_B=lengths_B, activation="silu")
        q_BTE, k_BTE, v_BTE = self.q(c_BTE), self.k(c_BTE), self.v(a_BTE)
        qkv_BTJ = torch.cat([q_BTE, k_BTE, v_BTE], dim=-1)
        i_BTH, f_BTH = linears(qkv_BTJ, (), wide=(self.i, self.f))
        return z_BTE, c_BTE, conv, (q_BTE, k_BTE, v_BTE), i_BTH, f_BTH

    def log_gates(self, x_BTD: Tensor, state: MLSTMLayerState) -> tuple[Tensor, Tensor]:
        """(log i, log f) [B, T, H] of every step, as the cell has them."""
        *_, i_BTH, f_BTH = self.project(x_BTD, state, None, None)
        return log_gates(i_BTH, f_BTH, self.config.input_gate, self.config.forget_gate)

    def zero_state(self, batch: int, /, device: torch.device | None = None) -> MLSTMLayerState:
        """State before the first step, on the device of the weights or on another."""
        H, V = self.config.heads, self.inner // self.config.heads
        zeros = wide_zeros(self.skip, device)
        past_BSD = zeros(batch, self.config.conv_width - 1, self.inner)
        return MLSTMLayerState(
            ConvState(past_BSD), MLSTMState(zeros(batch, H, V, V), zeros(batch, H, V), zeros(batch, H))
        )

    def cell_flops(self, mode: str, length: int, /) -> float:
        """FLOPs of products with the memory and, in prefill, within chunks of 64 steps."""
        H, V = self.config.heads, self.inner // self.config.heads
        return H * (6 * V * V if mode == "decode" else 4 * V * V + 4 * min(64, length) * V)
