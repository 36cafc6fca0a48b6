"""The time mix of RWKV-4 (Peng et al. 2023, arXiv:2305.13048, eqs 11-17).

    x_k = mu_k x_t + (1 - mu_k) x_{t-1} , x_v and x_r likewise
    k = W_k x_k ,  v = W_v x_v ,  r = sigmoid(W_r x_r)
    y = W_o (r wkv(k, v))        wkv with the decay w = -exp(decay) and the bonus u = first of every channel

A layer of RWKV is this and the channel mix, `rwkv_channel`, each a block of its own. Initial values depend on the
layer, so they are those of layer index / 2 of depth / 2.

B batch  T time  D model width  E inner width
"""

from dataclasses import dataclass
from math import log
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from exlstm.mixers.contract import BlockStyle, FixedStateMixer, Partner, check_width, checked, mask_tail, wide_zeros
from exlstm.nn import init
from exlstm.nn.fields import Factor, Size, check_fields
from exlstm.nn.layers import round_up
from exlstm.nn.linear import Linear
from exlstm.ops.common import upcast
from exlstm.ops.token_shift import TokenShiftState, token_shift
from exlstm.ops.wkv4 import WKV4State, wkv4


class RWKV4State(NamedTuple):
    """State of the layer: the last input, and the sums of wkv."""

    shift: TokenShiftState
    cell: WKV4State


@dataclass(frozen=True, kw_only=True)
class RWKV4Config:
    """RWKV-4's time mix with inner width up_factor * width, rounded up to a multiple of `up_multiple`."""

    style: ClassVar[BlockStyle] = BlockStyle(norm="layer", activation=None, partner=Partner("rwkv_channel"))

    up_factor: Factor = 1.0
    up_multiple: Size = 1

    def __post_init__(self) -> None:
        check_fields(self)

    def build(self, width: int, *, depth: int = 1, index: int = 0) -> nn.Module:
        """The mixer."""
        return RWKV4(width, self, depth, index)


class RWKV4(FixedStateMixer):
    """RWKV-4's time mix as a mixer: see `mixers.contract`, and `RWKV4Config` for its options."""

    def __init__(self, width: int, config: RWKV4Config, depth: int, index: int) -> None:
        super().__init__()
        check_width(width)
        inner = round_up(config.up_factor * width, config.up_multiple)
        self.config, self.width, self.inner, self.backend = config, width, inner, "auto"
        self.mix_k_D, self.mix_v_D, self.mix_r_D = (nn.Parameter(torch.empty(width)) for _ in range(3))
        self.decay_E, self.first_E = (nn.Parameter(torch.empty(inner)) for _ in range(2))
        self.k, self.v, self.r = (Linear(width, inner, bias=False) for _ in range(3))
        self.out = Linear(inner, width, bias=False)
        layers, layer = (depth + 1) // 2, index // 2
        up, down = layer / max(layers - 1, 1), 1 - layer / layers
        init.fill(
            self,
            {
                "mix_k_D": init.power_ramp(down, 0, 1, closed=False),
                "mix_v_D": init.power_ramp(down, 0.3 * up, 1 + 0.3 * up, closed=False),
                "mix_r_D": init.power_ramp(down / 2, 0, 1, closed=False),
                "decay_E": init.power_ramp(0.7 + 1.3 * up, -5, 3),
                "first_E": init.zigzag(log(0.3), 0.5),
                **dict.fromkeys(("k.weight", "r.weight", "out.weight"), init.zeros),
                "v.weight": init.orthogonal(max(1, inner / width) ** 0.5),
            },
        )

    def forward(
        self,
        x_BTD: Tensor,
        state: RWKV4State | None = None,
        *,
        reset_BT: Tensor | None = None,
        lengths_B: Tensor | None = None,
    ) -> tuple[Tensor, RWKV4State]:
        """[B, T, width] -> [B, T, width] and the state after the last step; see `mixers.contract`."""
        x_BTD, reset_BT, lengths_B = checked(x_BTD, self.width, reset_BT, lengths_B)
        state = self.zero_state(x_BTD.shape[0]) if state is None else state
        before_BTD, shift = token_shift(x_BTD, state.shift, reset_BT=reset_BT, lengths_B=lengths_B)
        new_BTD = x_BTD - before_BTD
        k_BTE, v_BTE, r_BTE = (
            layer(before_BTD + mix_D.to(x_BTD.dtype) * new_BTD)
            for layer, mix_D in ((self.k, self.mix_k_D), (self.v, self.mix_v_D), (self.r, self.mix_r_D))
        )
        y_BTE, cell = wkv4(
            upcast(k_BTE),
            upcast(v_BTE),
            -torch.exp(upcast(self.decay_E)),
            upcast(self.first_E),
            state.cell,
            reset_BT=reset_BT,
            lengths_B=lengths_B,
            backend=self.backend,
        )
        y_BTD = self.out((torch.sigmoid(upcast(r_BTE)) * y_BTE).to(x_BTD.dtype))
        return mask_tail(y_BTD, lengths_B), RWKV4State(shift, cell)

    def zero_state(self, batch: int, /, device: torch.device | None = None) -> RWKV4State:
        """State before the first step, on the device of the weights or on another."""
        zeros = wide_zeros(self.decay_E, device)
        cell = WKV4State(*(zeros(batch, self.inner) for _ in range(3)))
        return RWKV4State(TokenShiftState(zeros(batch, self.width)), cell)

    def cell_flops(self, mode: str, length: int, /) -> float:
        """FLOPs of about 20 pointwise operations per channel, the exponentials and the mixes included."""
        return 20.0 * self.inner
