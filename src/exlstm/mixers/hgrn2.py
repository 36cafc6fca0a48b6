"""HGRN2: HGRN with a matrix memory, whose keys are what its forget gates leave (Qin et al. 2024, arXiv:2404.07904).

    lambda = gamma + (1 - gamma) sigmoid(W_f x)             per key channel
    q = silu(W_q x)      k = 1 - lambda      v = W_i x
    S_t = diag(lambda_t) S_{t-1} + k_t v_t^T ,  o_t = S_t^T q_t / sqrt K
    y = W_o RMSNorm(o)                                      over the whole width

gamma, a learned bound per channel, starts at index / depth, and the first block has none. The paper shares one
parameter among all layers, so that bounds rise with depth throughout training; here each layer has its own.

B batch  T time  D model width  H heads  K width of a head, of keys and values
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid, silu, softplus

from exlstm.mixers.contract import BlockStyle, FixedStateMixer, check_width, checked, mask_tail, wide_zeros
from exlstm.nn import init
from exlstm.nn.fields import Positive, Size, check_fields
from exlstm.nn.layers import WidthNorm
from exlstm.nn.linear import Linear, linears
from exlstm.ops.common import upcast
from exlstm.ops.gated_linear_attention import GatedLinearAttentionState, gated_linear_attention


@dataclass(frozen=True, kw_only=True)
class HGRN2Config:
    """HGRN2. Its published models have heads of 128 channels."""

    style: ClassVar[BlockStyle] = BlockStyle()

    heads: Size = 4
    norm_eps: Positive = 1e-5

    def __post_init__(self) -> None:
        check_fields(self)

    def build(self, width: int, *, depth: int = 1, index: int = 0) -> nn.Module:
        """The mixer. ValueError where the width cannot be divided into heads."""
        return HGRN2(width, self, depth, index)


class HGRN2(FixedStateMixer):
    """HGRN2 as a mixer: see `mixers.contract`, and `HGRN2Config` for its options."""

    def __init__(self, width: int, config: HGRN2Config, depth: int, index: int) -> None:
        super().__init__()
        check_width(width, config.heads)
        self.config, self.width, self.backend = config, width, "auto"
        self.q, self.f, self.i = (Linear(width, width, bias=False) for _ in range(3))
        self.bound_D = nn.Parameter(torch.empty(width)) if index > 0 else None
        self.norm = WidthNorm(width, "rms", config.norm_eps)
        self.out = Linear(width, width, bias=False)
        bound = {} if index == 0 else {"bound_D": init.logits(init.constant(index / max(depth, index + 1)))}
        weights = dict.fromkeys(("q.weight", "f.weight", "i.weight", "out.weight"), init.normal(0.02))
        init.fill(self, {**weights, "norm.weight": init.ones, **bound})

    def gates(self, f_BTD: Tensor) -> tuple[Tensor, Tensor]:
        """log lambda and 1 - lambda, wide; the latter as a product, for the difference would lose its digits."""
        f_BTD = upcast(f_BTD)
        log_f_BTD, write_BTD = logsigmoid(f_BTD), torch.sigmoid(-f_BTD)
        if self.bound_D is None:
            return log_f_BTD, write_BTD
        bound_D = upcast(self.bound_D)
        # the logarithm of a sum: log gamma + log(1 + sigmoid(f) (1 - gamma) / gamma)
        return logsigmoid(bound_D) + softplus(log_f_BTD - bound_D), torch.sigmoid(-bound_D) * write_BTD

    def forward(
        self,
        x_BTD: Tensor,
        state: GatedLinearAttentionState | None = None,
        *,
        reset_BT: Tensor | None = None,
        lengths_B: Tensor | None = None,
    ) -> tuple[Tensor, GatedLinearAttentionState]:
        """[B, T, width] -> [B, T, width] and the state after the last step; see `mixers.contract`."""
        x_BTD, reset_BT, lengths_B = checked(x_BTD, self.width, reset_BT, lengths_B)
        H, K = self.config.heads, self.width // self.config.heads
        q_BTD, f_BTD, v_BTD = linears(x_BTD, (self.q, self.f, self.i))
        g_BTD, k_BTD = self.gates(f_BTD)
        q_BTHK, k_BTHK, v_BTHK, g_BTHK = (torch.unflatten(x, -1, (H, K)) for x in (silu(q_BTD), k_BTD, v_BTD, g_BTD))
        o_BTHK, state = gated_linear_attention(
            q_BTHK * K**-0.5,
            k_BTHK,
            v_BTHK,
            g_BTHK,
            state,
            reset_BT=reset_BT,
            lengths_B=lengths_B,
            backend=self.backend,
        )
        return mask_tail(self.out(self.norm(o_BTHK.flatten(2))), lengths_B), state

    def zero_state(self, batch: int, /, device: torch.device | None = None) -> GatedLinearAttentionState:
        """State before the first step, on the device of the weights or on another."""
        H, K = self.config.heads, self.width // self.config.heads
        return GatedLinearAttentionState(wide_zeros(self.norm.weight, device)(batch, H, K, K))

    def cell_flops(self, mode: str, length: int, /) -> float:
        """FLOPs of a decay, a write and a read of S."""
        return 6.0 * self.width * self.width / self.config.heads
