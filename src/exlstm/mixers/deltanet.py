"""DeltaNet: linear attention whose memory is corrected by the delta rule (Yang et al. 2024, arXiv:2406.06484).

    q, k, v = silu(conv(W x))                       q and k divided by their length; q times K^-1/2
    beta = sigmoid(W_beta x)                        twice that with allow_neg_eigval
    S_t = S_{t-1} + k_t (beta_t (v_t - S_{t-1}^T k_t))^T ,  o_t = S_t^T q_t
    y = W_o RMSNorm(o)                              of every head, one gain for all of them

Fast weight programmers (Schlag et al. 2021, arXiv:2102.11174) are `feature_map="elu1"` or "dpfp", `key_norm="sum"` and
`conv_width=0`: features of q and k that are not negative, divided by their sum. v is then a plain projection.

B batch  T time  D model width  M q, k and v together  H heads  K width of the features of a key  V value width
"""

from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import relu, silu

from exlstm.mixers.contract import BlockStyle, FixedStateMixer, check_width, checked, mask_tail, wide_zeros
from exlstm.nn import init
from exlstm.nn.fields import Positive, Size, SizeOrZero, check_fields
from exlstm.nn.layers import CausalConv, WidthNorm
from exlstm.nn.linear import Linear, linears
from exlstm.ops.common import upcast
from exlstm.ops.conv import ConvState
from exlstm.ops.delta_rule import DeltaState, delta_rule
from exlstm.ops.features import elu1
from exlstm.ops.vector_norm import VectorNorm, vector_norm

FeatureMap = Literal["silu", "elu1", "dpfp"]


class DeltaNetState(NamedTuple):
    """State of the layer: the convolution's window, of no steps without one, and the memory."""

    conv: ConvState
    memory: DeltaState


@dataclass(frozen=True, kw_only=True)
class DeltaNetConfig:
    """DeltaNet with heads of width / heads.

    conv_width: 0 for no convolution. feature_map: of q and k, "silu" (of v as well), "elu1" (elu + 1) or "dpfp", which
    has 2 dpfp_degree features for every channel. key_norm: "l2" or "sum". allow_neg_eigval: beta from 0 to 2, so that a
    correction may turn around what was stored: with it states can count modulo 2.
    """

    style: ClassVar[BlockStyle] = BlockStyle()

    heads: Size = 4
    conv_width: SizeOrZero = 4
    feature_map: FeatureMap = "silu"
    dpfp_degree: Size = 3
    key_norm: VectorNorm = "l2"
    allow_neg_eigval: bool = False
    norm_eps: Positive = 1e-5

    def __post_init__(self) -> None:
        check_fields(self)

    def build(self, width: int, *, depth: int = 1, index: int = 0) -> nn.Module:
        """The mixer. ValueError where the width cannot be divided into heads."""
        return DeltaNet(width, self)


def features(x_BTHK: Tensor, kind: FeatureMap, degree: int) -> Tensor:
    """The feature map of queries and keys; "silu" has been applied before, the others are float32 or wider."""
    if kind == "silu":
        return x_BTHK
    x_BTHK = upcast(x_BTHK)
    if kind == "elu1":
        return elu1(x_BTHK)
    # products of the positive and negative parts with their neighbors
    parts = torch.cat([relu(x_BTHK), relu(-x_BTHK)], dim=-1)
    size = parts.shape[-1]
    turned = [
        torch.cat([parts[..., size - n % size :], parts[..., : size - n % size]], dim=-1) for n in range(1, degree + 1)
    ]
    return torch.cat([parts * other for other in turned], dim=-1)


class DeltaNet(FixedStateMixer):
    """DeltaNet as a mixer: see `mixers.contract`, and `DeltaNetConfig` for its options."""

    def __init__(self, width: int, config: DeltaNetConfig) -> None:
        super().__init__()
        check_width(width, config.heads)
        self.config, self.width, self.backend = config, width, "auto"
        self.value_width = width // config.heads
        self.key_width = self.value_width * (2 * config.dpfp_degree if config.feature_map == "dpfp" else 1)
        self.q, self.k, self.v = (Linear(width, width, bias=False) for _ in range(3))
        self.conv = CausalConv(3 * width, config.conv_width, bias=False) if config.conv_width > 0 else None
        self.beta = Linear(width, config.heads, bias=False)
        self.norm = WidthNorm(self.value_width, "rms", config.norm_eps)
        self.out = Linear(width, width, bias=False)
        conv = {} if self.conv is None else {"conv.weight_DW": init.uniform(config.conv_width**-0.5)}
        names = ("q.weight", "k.weight", "v.weight", "beta.weight", "out.weight")
        init.fill(self, {**dict.fromkeys(names, init.normal(0.02)), **conv, "norm.weight": init.ones})

    def forward(
        self,
        x_BTD: Tensor,
        state: DeltaNetState | None = None,
        *,
        reset_BT: Tensor | None = None,
        lengths_B: Tensor | None = None,
    ) -> tuple[Tensor, DeltaNetState]:
        """[B, T, width] -> [B, T, width] and the state after the last step; see `mixers.contract`."""
        x_BTD, reset_BT, lengths_B = checked(x_BTD, self.width, reset_BT, lengths_B)
        config, rows = self.config, {"reset_BT": reset_BT, "lengths_B": lengths_B}
        state = self.zero_state(x_BTD.shape[0]) if state is None else state
        *qkv, beta_BTH = linears(x_BTD, (self.q, self.k, self.v), wide=(self.beta,))
        qkv_BTM, conv, has_silu = torch.cat(qkv, dim=-1), state.conv, config.feature_map == "silu"
        if self.conv is not None:
            qkv_BTM, conv = self.conv(qkv_BTM, conv, **rows, activation="silu" if has_silu else "none")
        elif has_silu:
            qkv_BTM = silu(qkv_BTM)
        q, k, v_BTHV = (torch.unflatten(x, -1, (config.heads, -1)) for x in qkv_BTM.chunk(3, dim=-1))
        q_BTHK, k_BTHK = (features(x, config.feature_map, config.dpfp_degree) for x in (q, k))
        q_BTHK = vector_norm(q_BTHK, kind=config.key_norm, scale=self.key_width**-0.5).to(x_BTD.dtype)
        k_BTHK = vector_norm(k_BTHK, kind=config.key_norm).to(x_BTD.dtype)
        beta_BTH = torch.sigmoid(beta_BTH)
        if config.allow_neg_eigval:
            beta_BTH = 2.0 * beta_BTH
        o_BTHV, memory = delta_rule(q_BTHK, k_BTHK, v_BTHV, beta_BTH, None, state.memory, **rows, backend=self.backend)
        return mask_tail(self.out(self.norm(o_BTHV).flatten(2)), lengths_B), DeltaNetState(conv, memory)

    def zero_state(self, batch: int, /, device: torch.device | None = None) -> DeltaNetState:
        """State before the first step, on the device of the weights or on another."""
        zeros, window = wide_zeros(self.norm.weight, device), max(self.config.conv_width - 1, 0)
        memory = DeltaState(zeros(batch, self.config.heads, self.key_width, self.value_width))
        return DeltaNetState(ConvState(zeros(batch, window, 3 * self.width)), memory)

    def cell_flops(self, mode: str, length: int, /) -> float:
        """FLOPs of decay, read, correction and read-out for every number of the memory."""
        return 8.0 * self.config.heads * self.key_width * self.value_width
