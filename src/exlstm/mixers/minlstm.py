"""minLSTM: an LSTM whose gates do not see its state, so that it is a scan (Feng et al. 2024, arXiv:2410.01201).

    f, i = sigmoid(W_f x), sigmoid(W_i x) ,  n = g(W_h x)
    h_t = f / (f + i) h_{t-1} + i / (f + i) n_t
    g(x) = x + 1/2 for x >= 0, else sigmoid(x)

With an inner width of its own there is a projection back. The shares f / (f + i) are computed as a sigmoid of
log f - log i. As in `mingru`, the scan is direct, and `positive` may be left out: n = W_h x.

B batch  T time  D model width  E inner width
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from exlstm.mixers.contract import BlockStyle, FixedStateMixer, check_width, checked, mask_tail, wide_zeros
from exlstm.nn import init
from exlstm.nn.fields import Factor, Size, check_fields
from exlstm.nn.layers import positive, round_up
from exlstm.nn.linear import Linear, linears
from exlstm.ops.common import upcast
from exlstm.ops.scan import ScanState, scan


@dataclass(frozen=True, kw_only=True)
class MinLSTMConfig:
    """minLSTM with inner width up_factor * width, rounded up to a multiple of `up_multiple`. positive: n > 0, by g."""

    style: ClassVar[BlockStyle] = BlockStyle()

    up_factor: Factor = 1.0
    up_multiple: Size = 1
    positive: bool = True

    def __post_init__(self) -> None:
        check_fields(self)

    def build(self, width: int, *, depth: int = 1, index: int = 0) -> nn.Module:
        """The mixer."""
        return MinLSTM(width, self)


class MinLSTM(FixedStateMixer):
    """minLSTM as a mixer: see `mixers.contract`, and `MinLSTMConfig` for its options."""

    def __init__(self, width: int, config: MinLSTMConfig) -> None:
        super().__init__()
        check_width(width)
        inner = round_up(config.up_factor * width, config.up_multiple)
        self.config, self.width, self.inner, self.backend = config, width, inner, "auto"
        self.f, self.i, self.h = (Linear(width, inner, bias=False) for _ in range(3))
        self.out = None if inner == width else Linear(inner, width, bias=False)
        table = dict.fromkeys(("f.weight", "i.weight", "h.weight"), init.uniform(width**-0.5))
        init.fill(self, table if self.out is None else table | {"out.weight": init.uniform(inner**-0.5)})

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
        f_BTE, i_BTE, n_BTE = map(upcast, linears(x_BTD, (self.f, self.i, self.h)))
        if self.config.positive:
            n_BTE = positive(n_BTE)
        keep_BTE = logsigmoid(f_BTE) - logsigmoid(i_BTE)
        h_BTE, state = scan(
            torch.sigmoid(keep_BTE),
            torch.sigmoid(-keep_BTE) * n_BTE,
            state,
            reset_BT=reset_BT,
            lengths_B=lengths_B,
            backend=self.backend,
        )
        y_BTD = h_BTE.to(x_BTD.dtype)
        return mask_tail(y_BTD if self.out is None else self.out(y_BTD), lengths_B), state

    def zero_state(self, batch: int, /, device: torch.device | None = None) -> ScanState:
        """State before the first step, on the device of the weights or on another."""
        return ScanState(wide_zeros(self.f.like, device)(batch, self.inner))

    def cell_flops(self, mode: str, length: int, /) -> float:
        """FLOPs of about 10 pointwise operations per channel, the gates included."""
        return 10.0 * self.inner
