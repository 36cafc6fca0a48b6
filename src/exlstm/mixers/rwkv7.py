"""The time mix of RWKV-7, Goose (Peng et al. 2025, arXiv:2503.14456), without its value residual.

    x_j = x_t + (x_{t-1} - x_t) mu_j                        j = r, w, k, v, a, g: six mixes with the input before
    r, k, v = W_j x_j
    log w = -e^{-1/2} sigmoid(w_0 + W_w2 tanh(W_w1 x_w))    a decay per channel
    a = sigmoid(a_0 + W_a2 W_a1 x_a)                        a rate per channel, in context
    g = W_g2 sigmoid(W_g1 x_g)
    kappa = k k_k / |k k_k| ,  k' = k (1 + (a - 1) k_a)     of every head
    S_t = diag(w) S_{t-1} - (kappa a) (S_{t-1}^T kappa)^T + k' v^T ,  o_t = S_t^T r
    y = W_o ((GroupNorm(o) + (sum_k r k' r_k) v) g)

In the published model v is mixed with that of the first layer, which is no function of this layer's input; here it is
not. Its channel mix is a mixer of its own, which follows in a block without an MLP.

B batch  T time  D model width  H heads  K head width, also of values
"""

from dataclasses import dataclass
from math import exp
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from exlstm.mixers.contract import BlockStyle, FixedStateMixer, Partner, check_width, checked, mask_tail, wide_zeros
from exlstm.nn import init
from exlstm.nn.fields import Positive, Size, check_fields
from exlstm.nn.layers import HeadNorm
from exlstm.nn.linear import Linear, linears
from exlstm.ops.bonus import bonus
from exlstm.ops.common import upcast
from exlstm.ops.delta_rule import DeltaState, dplr_rule
from exlstm.ops.token_shift import TokenShiftState, token_shift
from exlstm.ops.vector_norm import vector_norm

STRONGEST_DECAY = -exp(-0.5)  # of log w
TINY = 1e-24  # beside a squared length


class RWKV7State(NamedTuple):
    """State of the layer: the last input and the memory."""

    shift: TokenShiftState
    memory: DeltaState


PARTNER = Partner("rwkv_channel", {"share": "past", "bend": 4.0, "receptance": False})


@dataclass(frozen=True, kw_only=True)
class RWKV7Config:
    """RWKV-7 with heads of width / heads; published models have heads of 64.

    decay_rank, rate_rank, gate_rank: of w, a and g. None: 1.8 sqrt(width), the same, and 0.6 width^0.8, rounded to a
    multiple of 32, at least 32.
    """

    style: ClassVar[BlockStyle] = BlockStyle(norm="layer", activation=None, partner=PARTNER)

    heads: Size = 4
    decay_rank: Size | None = None
    rate_rank: Size | None = None
    gate_rank: Size | None = None
    norm_eps: Positive = 64e-5

    def __post_init__(self) -> None:
        check_fields(self)

    def build(self, width: int, *, depth: int = 1, index: int = 0) -> nn.Module:
        """The mixer. ValueError where the width cannot be divided into heads."""
        return RWKV7(width, self, depth, index)


def rank(given: int | None, size: float) -> int:
    """The rank that was given, or `size` rounded to a multiple of 32, at least 32."""
    return max(32, 32 * round(size / 32)) if given is None else given


def initial_values(width: int, head_width: int, depth: int, index: int) -> dict[str, init.Fill]:
    """Those of the parameters by channel n, by the layer's place: `late` rises from 0 to 1, `early` falls from 1."""
    late, early, most = index / max(depth - 1, 1), 1 - index / max(depth, index + 1), max(width - 1, 1)

    def mix(power: float) -> init.Fill:
        return init.by_channel(lambda n: 1 - (n / width) ** power)

    def zigzag(n: Tensor) -> Tensor:
        z = (n % head_width - (head_width - 1) / 2) / max((head_width - 1) / 2, 1)
        return z * z.abs()

    return {
        "mix_r_D": mix(0.2 * early),
        "mix_w_D": mix(0.9 * early),
        "mix_k_D": mix(0.7 * early),
        "mix_v_D": mix(0.7 * early),
        "mix_a_D": mix(0.9 * early),
        "mix_g_D": mix(0.2 * early),
        "w0_D": init.by_channel(lambda n: -5.5 + 6 * (n / most) ** (1 + late**0.3) + 2.5 * zigzag(n)),
        "a0_D": init.by_channel(lambda n: -0.19 + 0.3 * zigzag(n) + 0.4 * (n / most - 0.5)),
        "k_k_D": init.by_channel(lambda n: 0.71 - 0.1 * (n / most - 0.5)),
        "k_a_D": init.constant(1.02),
        "r_k_HK": init.constant(-0.04),
    }


class RWKV7(FixedStateMixer):
    """The time mix of RWKV-7 as a mixer: see `mixers.contract`, and `RWKV7Config` for its options."""

    def __init__(self, width: int, config: RWKV7Config, depth: int, index: int) -> None:
        super().__init__()
        check_width(width, config.heads)
        self.config, self.width, self.head_width, self.backend = config, width, width // config.heads, "auto"
        self.mix_r_D, self.mix_w_D, self.mix_k_D, self.mix_v_D, self.mix_a_D, self.mix_g_D = (
            nn.Parameter(torch.empty(width)) for _ in range(6)
        )
        self.r, self.k, self.v, self.out = (Linear(width, width, bias=False) for _ in range(4))
        self.w0_D, self.a0_D, self.k_k_D, self.k_a_D = (nn.Parameter(torch.empty(width)) for _ in range(4))
        decay, rate = rank(config.decay_rank, 1.8 * width**0.5), rank(config.rate_rank, 1.8 * width**0.5)
        gate = rank(config.gate_rank, 0.6 * width**0.8)
        self.w1, self.a1, self.g1 = (Linear(width, size, bias=False) for size in (decay, rate, gate))
        self.w2, self.a2, self.g2 = (Linear(size, width, bias=False) for size in (decay, rate, gate))
        self.r_k_HK = nn.Parameter(torch.empty(config.heads, self.head_width))
        self.norm = HeadNorm(config.heads, self.head_width, config.norm_eps, bias=True)
        init.fill(
            self,
            {
                **initial_values(width, self.head_width, depth, index),
                **dict.fromkeys(("r.weight", "v.weight"), init.orthogonal()),
                "k.weight": init.orthogonal(0.1),
                **dict.fromkeys(("w1.weight", "a1.weight", "g1.weight", "out.weight", "norm.bias"), init.zeros),
                **dict.fromkeys(("w2.weight", "a2.weight", "g2.weight"), init.orthogonal(0.1)),
                "norm.weight": init.constant(((1 + index) / max(depth, index + 1)) ** 0.7),
            },
        )

    def forward(
        self,
        x_BTD: Tensor,
        state: RWKV7State | None = None,
        *,
        reset_BT: Tensor | None = None,
        lengths_B: Tensor | None = None,
    ) -> tuple[Tensor, RWKV7State]:
        """[B, T, width] -> [B, T, width] and the state after the last step; see `mixers.contract`."""
        x_BTD, reset_BT, lengths_B = checked(x_BTD, self.width, reset_BT, lengths_B)
        state, H = self.zero_state(x_BTD.shape[0]) if state is None else state, self.config.heads
        before_BTD, shift = token_shift(x_BTD, state.shift, reset_BT=reset_BT, lengths_B=lengths_B)
        change_BTD = before_BTD - x_BTD
        mixes = self.mix_r_D, self.mix_w_D, self.mix_k_D, self.mix_v_D, self.mix_a_D, self.mix_g_D
        for_r, for_w, for_k, for_v, for_a, for_g = (x_BTD + change_BTD * mu_D for mu_D in mixes)
        r_BTD, k_BTD, v_BTD = self.r(for_r), upcast(self.k(for_k)), self.v(for_v)
        (w_BTD,) = linears(torch.tanh(self.w1(for_w)), (), wide=(self.w2,))
        (a_BTD,) = linears(self.a1(for_a), (), wide=(self.a2,))
        log_w_BTD = STRONGEST_DECAY * torch.sigmoid(w_BTD + upcast(self.w0_D))
        a_BTD = torch.sigmoid(a_BTD + upcast(self.a0_D))
        g_BTD = self.g2(torch.sigmoid(self.g1(for_g)))
        kappa_BTHK = vector_norm(torch.unflatten(k_BTD * upcast(self.k_k_D), -1, (H, -1)), eps=TINY)
        k_BTD = k_BTD * (1 + (a_BTD - 1) * upcast(self.k_a_D))
        r_BTHK, k_BTHK, v_BTHK, a_BTHK, log_w_BTHK = (
            torch.unflatten(x, -1, (H, -1)) for x in (r_BTD, k_BTD, v_BTD, a_BTD, log_w_BTD)
        )
        o_BTHK, memory = dplr_rule(
            r_BTHK,
            k_BTHK,
            v_BTHK,
            kappa_BTHK,
            -(kappa_BTHK * a_BTHK),
            log_w_BTHK,
            state.memory,
            reset_BT=reset_BT,
            lengths_B=lengths_B,
            backend=self.backend,
        )
        current_BTHK = bonus(upcast(r_BTHK), k_BTHK, upcast(self.r_k_HK), upcast(v_BTHK)).to(v_BTHK.dtype)
        y_BTD = self.out((self.norm(o_BTHK) + current_BTHK.flatten(2)) * g_BTD)
        return mask_tail(y_BTD, lengths_B), RWKV7State(shift, memory)

    def zero_state(self, batch: int, /, device: torch.device | None = None) -> RWKV7State:
        """State before the first step, on the device of the weights or on another."""
        H, K, zeros = self.config.heads, self.head_width, wide_zeros(self.norm.weight, device)
        return RWKV7State(TokenShiftState(zeros(batch, self.width)), DeltaState(zeros(batch, H, K, K)))

    def cell_flops(self, mode: str, length: int, /) -> float:
        """FLOPs of decay, read, two writes and read-out for every number of the memory."""
        return 10.0 * self.width * self.head_width
