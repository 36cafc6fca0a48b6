"""HGRN: a gated linear recurrence with a bound below its forget gate (Qin et al. 2023, arXiv:2311.04823).

    lambda = gamma + (1 - gamma) sigmoid(W_f x)
    h_t = lambda_t h_{t-1} + (1 - lambda_t) silu(W_i x_t)
    y = W_o (RMSNorm(h) silu(W_g x))

This is the real form, which the xLSTM paper compares. gamma, a learned bound per channel, starts at index / depth; the
paper shares one parameter among all layers, so that bounds rise with depth throughout training, and here each layer has
its own.

B batch  T time  D model width  E inner width
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from exlstm.mixers.contract import BlockStyle, check_width, checked, constant_state_bytes, mask_tail, wide_zeros
from exlstm.nn import init
from exlstm.nn.fields import Factor, Positive, Size, check_fields
from exlstm.nn.layers import HeadNorm, round_up
from exlstm.nn.linear import Linear, linears
from exlstm.ops.common import upcast
from exlstm.ops.gated_norm import gated_norm
from exlstm.ops.scan import ScanState, scan


@dataclass(frozen=True, kw_only=True)
class HGRNConfig:
    """HGRN with inner width expand * width, rounded up to a multiple of `multiple`."""

    style: ClassVar[BlockStyle] = BlockStyle()

    expand: Factor = 1.0
    multiple: Size = 1
    norm_eps: Positive = 1e-5

    def __post_init__(self) -> None:
        check_fields(self)

    def build(self, width: int, *, depth: int = 1, index: int = 0) -> nn.Module:
        """The mixer."""
        return HGRN(width, self, depth, index)


class HGRN(nn.Module):
    """HGRN as a mixer: see `mixers.contract`, and `HGRNConfig` for its options."""

    def __init__(self, width: int, config: HGRNConfig, depth: int, index: int) -> None:
        super().__init__()
        check_width(width)
        inner = round_up(config.expand * width, config.multiple)
        self.config, self.width, self.inner, self.backend = config, width, inner, "auto"
        self.i, self.f, self.g = (Linear(width, inner, bias=False) for _ in range(3))
        self.bound_E = nn.Parameter(torch.empty(inner)) if index > 0 else None
        self.norm = HeadNorm(1, inner, config.norm_eps, kind="rms")
        self.out = Linear(inner, width, bias=False)
        bound = {} if index == 0 else {"bound_E": init.logits(init.constant(index / max(depth, index + 1)))}
        init.fill(
            self,
            {
                **dict.fromkeys(("i.weight", "f.weight", "g.weight", "out.weight"), init.normal(0.02)),
                "norm.weight": init.ones,
                **bound,
            },
        )

    def forward(
        self,
        x_BTD: Tensor,
        state: ScanState | None = None,
        *,
        reset_BT: Tensor | None = None,
        lengths_B: Tensor | None = None,
    ) -> tuple[Tensor, ScanState]:
        """[B, T, width] -> [B, T, width] and the state after the last step; see `mixers.contract`."""
        x_BTD, reset_BT, lengths_B = checked(x_BTD, self.width, reset_BT, lengths_B)
        i_BTE, f_BTE, g_BTE = linears(x_BTD, (self.i, self.f, self.g))
        # 1 - lambda as a product: the difference would lose its digits where the gate is open
        write_BTE = torch.sigmoid(-upcast(f_BTE))
        if self.bound_E is not None:
            write_BTE = torch.sigmoid(-upcast(self.bound_E)) * write_BTE
        h_BTE, state = scan(
            1 - write_BTE,
            upcast(silu(i_BTE)) * write_BTE,
            state,
            reset_BT=reset_BT,
            lengths_B=lengths_B,
            backend=self.backend,
        )
        y_BTE = gated_norm(h_BTE.to(x_BTD.dtype)[:, :, None], self.norm.weight, g_BTE, norm="rms", eps=self.norm.eps)
        return mask_tail(self.out(y_BTE), lengths_B), state

    def zero_state(self, batch: int, /, device: torch.device | None = None) -> ScanState:
        """State before the first step, on the device of the weights or on another."""
        return ScanState(wide_zeros(self.norm.weight, device)(batch, self.inner))

    def state_bytes(self, length: int = 0, /) -> int:
        """Bytes of one sequence's state, the same at any length."""
        return constant_state_bytes(self)

    def cell_flops(self, mode: str, length: int, /) -> float:
        """FLOPs of about 10 pointwise operations per channel, gates included."""
        return 10.0 * self.inner
