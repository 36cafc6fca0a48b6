"""The time mix of RWKV-5, Eagle: a learned decay per channel (Peng et al. 2024, arXiv:2404.05892, eqs 3-8).

    x_j = mu_j x_t + (1 - mu_j) x_{t-1}                     for j = r, k, v, g
    r, k, v = W_j x_j      g = silu(W_g x_g)
    o_t = S_{t-1}^T r_t + (r_t . (u k_t)) v_t ,  S_t = diag(e^{-e^w}) S_{t-1} + k_t v_t^T
    y = W_o (GroupNorm(o / sqrt K) g)                       a group is a head

Its partner is the channel mix of RWKV. Initial values are those of the authors' code; they depend on the layer's place
among the layers, of two blocks each.

B batch  T time  D model width  H heads  K width of a head, of keys and values
"""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from exlstm.mixers.contract import BlockStyle, FixedStateMixer, Partner, check_width, checked, mask_tail, wide_zeros
from exlstm.nn import init
from exlstm.nn.fields import Positive, Size, check_fields
from exlstm.nn.layers import HeadNorm
from exlstm.nn.linear import Linear
from exlstm.ops.common import upcast
from exlstm.ops.gated_linear_attention import GatedLinearAttentionState, gated_linear_attention
from exlstm.ops.gated_norm import gated_norm
from exlstm.ops.token_shift import TokenShiftState, token_shift


class RWKV5State(NamedTuple):
    """State of the layer: the last input, and the memory."""

    shift: TokenShiftState
    cell: GatedLinearAttentionState


PARTNER = Partner("rwkv_channel", {"up_factor": 3.5, "up_multiple": 32})


@dataclass(frozen=True, kw_only=True)
class RWKV5Config:
    """RWKV-5's time mix. Its published models have heads of 64 channels. norm_eps: for o / sqrt K."""

    style: ClassVar[BlockStyle] = BlockStyle(norm="layer", activation=None, partner=PARTNER)

    heads: Size = 4
    norm_eps: Positive = 1e-5

    def __post_init__(self) -> None:
        check_fields(self)

    def build(self, width: int, *, depth: int = 1, index: int = 0) -> nn.Module:
        """The mixer; two blocks count as a layer. ValueError where the width cannot be divided into heads."""
        return RWKV5(width, self, depth, index)


class RWKV5(FixedStateMixer):
    """RWKV-5's time mix as a mixer: see `mixers.contract`, and `RWKV5Config` for its options."""

    def __init__(self, width: int, config: RWKV5Config, depth: int, index: int) -> None:
        super().__init__()
        check_width(width, config.heads)
        H, K = config.heads, width // config.heads
        self.config, self.width, self.backend = config, width, "auto"
        self.mix_r_D, self.mix_k_D, self.mix_v_D, self.mix_g_D = (nn.Parameter(torch.empty(width)) for _ in range(4))
        self.decay_HK, self.bonus_HK = (nn.Parameter(torch.empty(H, K)) for _ in range(2))
        self.r, self.k, self.v, self.g = (Linear(width, width, bias=False) for _ in range(4))
        self.norm = HeadNorm(H, K, config.norm_eps * K, bias=True)
        self.out = Linear(width, width, bias=False)
        layers = max(1, depth // 2)
        layer, last = min(index // 2, layers - 1), max(width - 1, 1)
        down, rise = 1 - layer / layers, layer / max(layers - 1, 1)
        init.fill(
            self,
            {
                "mix_r_D": init.by_channel(lambda n: (n / width) ** (down / 2)),
                "mix_k_D": init.by_channel(lambda n: (n / width) ** down),
                "mix_v_D": init.by_channel(lambda n: (n / width) ** down + 0.3 * rise),
                "mix_g_D": init.by_channel(lambda n: (n / width) ** (down / 2)),
                "decay_HK": init.by_channel(lambda n: -6 + 5 * (n / last) ** (0.7 + 1.3 * rise)),
                "bonus_HK": init.by_channel(lambda n: rise * (1 - n / last) + 0.1 * ((n + 1) % 3 - 1)),
                "r.weight": init.orthogonal(),
                "k.weight": init.orthogonal(0.1),
                "v.weight": init.orthogonal(),
                "g.weight": init.orthogonal(0.1),
                "norm.weight": init.constant(((1 + layer) / layers) ** 0.7),
                "norm.bias": init.zeros,
                "out.weight": init.zeros,
            },
        )

    def forward(
        self,
        x_BTD: Tensor,
        state: RWKV5State | None = None,
        *,
        reset_BT: Tensor | None = None,
        lengths_B: Tensor | None = None,
    ) -> tuple[Tensor, RWKV5State]:
        """[B, T, width] -> [B, T, width] and the state after the last step; see `mixers.contract`."""
        x_BTD, reset_BT, lengths_B = checked(x_BTD, self.width, reset_BT, lengths_B)
        (B, T, _), H = x_BTD.shape, self.config.heads
        state = self.zero_state(B) if state is None else state
        before_BTD, shift = token_shift(x_BTD, state.shift, reset_BT=reset_BT, lengths_B=lengths_B)
        change_BTD = x_BTD - before_BTD
        mixes = self.mix_r_D, self.mix_k_D, self.mix_v_D, self.mix_g_D
        inputs = (before_BTD + change_BTD * mix_D for mix_D in mixes)
        *rkv, g_BTD = (layer(x) for layer, x in zip((self.r, self.k, self.v, self.g), inputs, strict=True))
        r_BTHK, k_BTHK, v_BTHK = (torch.unflatten(x, -1, (H, -1)) for x in rkv)
        decay_HK = -torch.exp(upcast(self.decay_HK))
        o_BTHK, cell = gated_linear_attention(
            r_BTHK,
            k_BTHK,
            v_BTHK,
            decay_HK.expand(B, T, -1, -1),
            state.cell,
            bonus_HK=self.bonus_HK,
            reset_BT=reset_BT,
            lengths_B=lengths_B,
            backend=self.backend,
        )
        y_BTD = gated_norm(o_BTHK, self.norm.weight, g_BTD, bias_E=self.norm.bias, eps=self.norm.eps)
        return mask_tail(self.out(y_BTD), lengths_B), RWKV5State(shift, cell)

    def zero_state(self, batch: int, /, device: torch.device | None = None) -> RWKV5State:
        """State before the first step, on the device of the weights or on another."""
        zeros, (H, K) = wide_zeros(self.decay_HK, device), self.decay_HK.shape
        return RWKV5State(TokenShiftState(zeros(batch, self.width)), GatedLinearAttentionState(zeros(batch, H, K, K)))

    def cell_flops(self, mode: str, length: int, /) -> float:
        """FLOPs of a decay, a write and a read of S, and of the bonus."""
        return 7.0 * self.width * self.width / self.config.heads
