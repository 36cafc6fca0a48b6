"""HGRN: a gated linear recurrence with a bound below its forget gate (Qin et al. 2023, arXiv:2311.04823).

    lambda = gamma + (1 - gamma) sigmoid(W_f x)
    h_t = lambda_t h_{t-1} + (1 - lambda_t) silu(W_i x_t)
    y = W_o (RMSNorm(h) silu(W_g x))

This is the real form, which the xLSTM paper compares. gamma, a learned bound per channel, starts at index / depth; the
paper shares one parameter among all layers, so that bounds rise with depth throughout training, and here each layer has
its own.

In the complex form, the authors' own, the factor is lambda e^(i angle) with a learned angle per channel. W_i and W_g
then give two numbers per channel, and the norm is a layer norm over both parts of h. Here maps have no biases.

B batch  T time  D model width  E inner width  M parts of all channels
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from exlstm.mixers.contract import BlockStyle, FixedStateMixer, check_width, checked, mask_tail, wide_zeros
from exlstm.nn import init
from exlstm.nn.fields import Factor, Positive, Size, check_fields
from exlstm.nn.layers import HeadNorm, round_up
from exlstm.nn.linear import Linear, linears
from exlstm.ops.common import upcast
from exlstm.ops.gated_norm import gated_norm
from exlstm.ops.scan import RotatingState, ScanState, rotating_scan, scan

HGRNState = ScanState | RotatingState


@dataclass(frozen=True, kw_only=True)
class HGRNConfig:
    """HGRN with inner width up_factor * width, rounded up to a multiple of `up_multiple`. form: of the recurrence."""

    style: ClassVar[BlockStyle] = BlockStyle()

    up_factor: Factor = 1.0
    up_multiple: Size = 1
    norm_eps: Positive = 1e-5
    form: Literal["real", "complex"] = "real"

    def __post_init__(self) -> None:
        check_fields(self)

    def build(self, width: int, *, depth: int = 1, index: int = 0) -> nn.Module:
        """The mixer."""
        return HGRN(width, self, depth, index)


class HGRN(FixedStateMixer):
    """HGRN as a mixer: see `mixers.contract`, and `HGRNConfig` for its options."""

    def __init__(self, width: int, config: HGRNConfig, depth: int, index: int) -> None:
        super().__init__()
        check_width(width)
        inner = round_up(config.up_factor * width, config.up_multiple)
        self.config, self.width, self.inner, self.backend = config, width, inner, "auto"
        turns, parts = config.form == "complex", 2 if config.form == "complex" else 1
        self.i, self.f, self.g = (Linear(width, n * inner, bias=False) for n in (parts, 1, parts))
        self.bound_E = nn.Parameter(torch.empty(inner)) if index > 0 else None
        self.angle_E = nn.Parameter(torch.empty(inner)) if turns else None
        self.norm = HeadNorm(1, parts * inner, config.norm_eps, bias=turns, kind="layer" if turns else "rms")
        self.out = Linear(parts * inner, width, bias=False)
        table: dict[str, init.Fill] = {
            **dict.fromkeys(("i.weight", "f.weight", "g.weight", "out.weight"), init.normal(0.02)),
            "norm.weight": init.ones,
        }
        if index > 0:
            table["bound_E"] = init.logits(init.constant(index / max(depth, index + 1)))
        if turns:
            table |= {"norm.bias": init.zeros, "angle_E": init.geometric(1.0, 10_000.0 ** (-2 / inner))}
        init.fill(self, table)

    def forward(
        self,
        x_BTD: Tensor,
        state: HGRNState | None = None,
        *,
        reset_BT: Tensor | None = None,
        lengths_B: Tensor | None = None,
    ) -> tuple[Tensor, HGRNState]:
        """[B, T, width] -> [B, T, width] and the state after the last step; see `mixers.contract`."""
        x_BTD, reset_BT, lengths_B = checked(x_BTD, self.width, reset_BT, lengths_B)
        i_BTM, f_BTE, g_BTM = linears(x_BTD, (self.i, self.f, self.g))
        # 1 - lambda as a product: the difference would lose its digits where the gate is open
        write_BTE = torch.sigmoid(-upcast(f_BTE))
        if self.bound_E is not None:
            write_BTE = torch.sigmoid(-upcast(self.bound_E)) * write_BTE
        h_BTM, state = self.recur(write_BTE, upcast(silu(i_BTM)), state, reset_BT, lengths_B)
        y_BTM = gated_norm(
            h_BTM.to(x_BTD.dtype)[:, :, None],
            self.norm.weight,
            g_BTM,
            bias_E=self.norm.bias,
            norm=self.norm.kind,
            eps=self.norm.eps,
        )
        return mask_tail(self.out(y_BTM), lengths_B), state

    def recur(
        self,
        write_BTE: Tensor,
        i_BTM: Tensor,
        state: HGRNState | None,
        reset_BT: Tensor | None,
        lengths_B: Tensor | None,
    ) -> tuple[Tensor, HGRNState]:
        """h of every step, both parts of it side by side if it is complex."""
        if state is None:
            state = self.zero_state(write_BTE.shape[0])
        if self.angle_E is None:
            return scan(
                1 - write_BTE,
                i_BTM * write_BTE,
                state,  # type: ignore[arg-type]
                reset_BT=reset_BT,
                lengths_B=lengths_B,
                backend=self.backend,
            )
        re_BTE, im_BTE = i_BTM.chunk(2, dim=-1)
        re_BTE, im_BTE, after = rotating_scan(
            1 - write_BTE,
            upcast(self.angle_E),
            re_BTE * write_BTE,
            im_BTE * write_BTE,
            state,  # type: ignore[arg-type]
            reset_BT=reset_BT,
            lengths_B=lengths_B,
            backend=self.backend,
        )
        return torch.cat([re_BTE, im_BTE], dim=-1), after

    def zero_state(self, batch: int, /, device: torch.device | None = None) -> HGRNState:
        """State before the first step, on the device of the weights or on another."""
        zeros = wide_zeros(self.norm.weight, device)
        if self.angle_E is None:
            return ScanState(zeros(batch, self.inner))
        return RotatingState(zeros(batch, self.inner), zeros(batch, self.inner))

    def cell_flops(self, mode: str, length: int, /) -> float:
        """FLOPs of about 10 pointwise operations per channel, gates included; twice as many of complex numbers."""
        return (10.0 if self.angle_E is None else 20.0) * self.inner
