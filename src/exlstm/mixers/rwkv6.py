"""The time mix of RWKV-6, Finch: mixes and decays depend on the input (Peng et al. 2024, arXiv:2404.05892, eqs 14-20).

    d_t = x_{t-1} - x_t ,  z = tanh(W_1 (x + d mu_x)) ,  m_j = W_2j z_j     five mixes of low rank
    x_j = x + d (mu_j + m_j)                                                for j = w, k, v, r, g
    r, k, v = W_j x_j      g = silu(W_g x_g)      w = w_0 + A_2 tanh(A_1 x_w)
    o_t = S_{t-1}^T r_t + (r_t . (u k_t)) v_t ,  S_t = diag(e^{-e^w_t}) S_{t-1} + k_t v_t^T
    y = W_o (GroupNorm(o) g)                                                a group is a head

Its partner is the channel mix of RWKV. Initial values are those of the authors' code; they depend on the layer's place
among the layers, of two blocks each.

B batch  T time  D model width  H heads  K width of a head, of keys and values  G the five mixes  J rank of these
"""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from exlstm.mixers.contract import BlockStyle, FixedStateMixer, Partner, check_width, checked, mask_tail, wide_zeros
from exlstm.nn import init
from exlstm.nn.fields import Positive, Size, check_fields
from exlstm.nn.layers import HeadNorm
from exlstm.nn.linear import Linear, wide_linear
from exlstm.ops.gated_linear_attention import GatedLinearAttentionState, gated_linear_attention
from exlstm.ops.gated_norm import gated_norm
from exlstm.ops.linear.headwise import headwise
from exlstm.ops.token_shift import TokenShiftState, token_shift

MIXES = 5


class RWKV6State(NamedTuple):
    """State of the layer: the last input, and the memory."""

    shift: TokenShiftState
    cell: GatedLinearAttentionState


PARTNER = Partner("rwkv_channel", {"up_factor": 3.5, "up_multiple": 32, "share": "past"})


@dataclass(frozen=True, kw_only=True)
class RWKV6Config:
    """RWKV-6's time mix. Its published models have heads of 64 channels. mix_rank, decay_rank: of W_1 and A_1."""

    style: ClassVar[BlockStyle] = BlockStyle(norm="layer", activation=None, partner=PARTNER)

    heads: Size = 4
    mix_rank: Size = 32
    decay_rank: Size = 64
    norm_eps: Positive = 64e-5

    def __post_init__(self) -> None:
        check_fields(self)

    def build(self, width: int, *, depth: int = 1, index: int = 0) -> nn.Module:
        """The mixer; two blocks count as a layer. ValueError where the width cannot be divided into heads."""
        return RWKV6(width, self, depth, index)


class RWKV6(FixedStateMixer):
    """RWKV-6's time mix as a mixer: see `mixers.contract`, and `RWKV6Config` for its options."""

    def __init__(self, width: int, config: RWKV6Config, depth: int, index: int) -> None:
        super().__init__()
        check_width(width, config.heads)
        H, K, J = config.heads, width // config.heads, config.mix_rank
        self.config, self.width, self.backend = config, width, "auto"
        self.mix_x_D, self.mix_w_D, self.mix_k_D = (nn.Parameter(torch.empty(width)) for _ in range(3))
        self.mix_v_D, self.mix_r_D, self.mix_g_D = (nn.Parameter(torch.empty(width)) for _ in range(3))
        self.mix_in = Linear(width, MIXES * J, bias=False)
        self.w_mix_GDJ = nn.Parameter(torch.empty(MIXES, width, J))
        self.decay_HK, self.bonus_HK = (nn.Parameter(torch.empty(H, K)) for _ in range(2))
        self.decay_in = Linear(width, config.decay_rank, bias=False)
        self.decay_out = Linear(config.decay_rank, width, bias=False)
        self.r, self.k, self.v, self.g = (Linear(width, width, bias=False) for _ in range(4))
        self.norm = HeadNorm(H, K, config.norm_eps, bias=True)
        self.out = Linear(width, width, bias=False)
        self.fill(max(1, depth // 2), index // 2)

    def fill(self, layers: int, layer: int) -> None:
        """Initial values of layer `layer` among `layers`."""
        width, last, layer = self.width, max(self.width - 1, 1), min(layer, layers - 1)
        down, rise = 1 - layer / layers, layer / max(layers - 1, 1)

        def mix(power: float, less: float = 0.0) -> init.Fill:
            return init.by_channel(lambda n: 1 - (n / width) ** power - less)

        init.fill(
            self,
            {
                **dict.fromkeys(("mix_x_D", "mix_w_D", "mix_k_D"), mix(down)),
                "mix_v_D": mix(down, 0.3 * rise),
                **dict.fromkeys(("mix_r_D", "mix_g_D"), mix(down / 2)),
                "mix_in.weight": init.zeros,
                "w_mix_GDJ": init.uniform(0.01),
                "decay_HK": init.by_channel(lambda n: -6 + 5 * (n / last) ** (0.7 + 1.3 * rise)),
                "bonus_HK": init.by_channel(lambda n: rise * (1 - n / last) + 0.1 * ((n + 1) % 3 - 1)),
                "decay_in.weight": init.zeros,
                "decay_out.weight": init.uniform(0.01),
                "r.weight": init.orthogonal(),
                "k.weight": init.orthogonal(0.1),
                "v.weight": init.orthogonal(),
                "g.weight": init.orthogonal(0.1),
                "norm.weight": init.constant(((1 + layer) / layers) ** 0.7),
                "norm.bias": init.zeros,
                "out.weight": init.zeros,
            },
        )

    def mixed(self, x_BTD: Tensor, before_BTD: Tensor) -> list[Tensor]:
        """The inputs of w, k, v, r and g."""
        change_BTD = before_BTD - x_BTD
        low = torch.tanh(self.mix_in(x_BTD + change_BTD * self.mix_x_D))
        low_GMJ = low.view(-1, MIXES, self.config.mix_rank).transpose(0, 1)
        own_GMD = headwise(low_GMJ, self.w_mix_GDJ)
        mixes = self.mix_w_D, self.mix_k_D, self.mix_v_D, self.mix_r_D, self.mix_g_D
        return [
            x_BTD + change_BTD * (mix_D + own_MD.view(x_BTD.shape))
            for mix_D, own_MD in zip(mixes, own_GMD, strict=True)
        ]

    def forward(
        self,
        x_BTD: Tensor,
        state: RWKV6State | None = None,
        *,
        reset_BT: Tensor | None = None,
        lengths_B: Tensor | None = None,
    ) -> tuple[Tensor, RWKV6State]:
        """[B, T, width] -> [B, T, width] and the state after the last step; see `mixers.contract`."""
        x_BTD, reset_BT, lengths_B = checked(x_BTD, self.width, reset_BT, lengths_B)
        H = self.config.heads
        state = self.zero_state(x_BTD.shape[0]) if state is None else state
        before_BTD, shift = token_shift(x_BTD, state.shift, reset_BT=reset_BT, lengths_B=lengths_B)
        w, *inputs = self.mixed(x_BTD, before_BTD)
        k, v, r, g_BTD = (layer(x) for layer, x in zip((self.k, self.v, self.r, self.g), inputs, strict=True))
        r_BTHK, k_BTHK, v_BTHK = (torch.unflatten(x, -1, (H, -1)) for x in (r, k, v))
        w_BTHK = torch.unflatten(wide_linear(self.decay_out, torch.tanh(self.decay_in(w))), -1, (H, -1)) + self.decay_HK
        o_BTHK, cell = gated_linear_attention(
            r_BTHK,
            k_BTHK,
            v_BTHK,
            -torch.exp(w_BTHK),
            state.cell,
            bonus_HK=self.bonus_HK,
            reset_BT=reset_BT,
            lengths_B=lengths_B,
            backend=self.backend,
        )
        y_BTD = gated_norm(o_BTHK, self.norm.weight, g_BTD, bias_E=self.norm.bias, eps=self.norm.eps)
        return mask_tail(self.out(y_BTD), lengths_B), RWKV6State(shift, cell)

    def zero_state(self, batch: int, /, device: torch.device | None = None) -> RWKV6State:
        """State before the first step, on the device of the weights or on another."""
        zeros, (H, K) = wide_zeros(self.decay_HK, device), self.decay_HK.shape
        return RWKV6State(TokenShiftState(zeros(batch, self.width)), GatedLinearAttentionState(zeros(batch, H, K, K)))

    def cell_flops(self, mode: str, length: int, /) -> float:
        """FLOPs of a decay, a write and a read of S, and of the bonus."""
        return 7.0 * self.width * self.width / self.config.heads
