"""Mamba: a state space whose step size, input and read-out depend on the input (Gu & Dao 2023, arXiv:2312.00752).

    u, z = W_up x                           u = silu(conv(u))
    l, b, c = W_low u                       dt = softplus(W_dt l + b_dt)
    h = exp(dt A) h' + dt u b ,  A = -exp(log_a)            Z states per channel, h' those before the step
    y = W_down ((c h + skip u) silu(z))

The published models have the inner width 2 D, Z = 16, a window of 4 and a rank of D / 16 for l; a block is a norm and
this layer, without an MLP. With `norm_dtbc`, l, b and c have RMS norms first, as in Jamba (arXiv:2403.19887) and, with
gains of one, in Falcon Mamba (arXiv:2410.05355).

B batch  T time  D model width  E inner width  Z states of a channel  J rank of the step sizes
"""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from exlstm.mixers.contract import BlockStyle, FixedStateMixer, check_width, checked, mask_tail, wide_zeros
from exlstm.nn import init
from exlstm.nn.fields import Factor, Positive, Size, check_fields
from exlstm.nn.layers import CausalConv, WidthNorm, round_up
from exlstm.nn.linear import Linear, linears
from exlstm.ops.common import upcast
from exlstm.ops.conv import ConvState
from exlstm.ops.selective_scan import SelectiveScanState, selective_scan


class MambaState(NamedTuple):
    """State of the layer: the convolution's window and the states of the channels."""

    conv: ConvState
    cell: SelectiveScanState


@dataclass(frozen=True, kw_only=True)
class MambaConfig:
    """Mamba with inner width up_factor * width, rounded up to a multiple of up_multiple.

    states: per channel. rank: of the step sizes, None for a sixteenth of the width. norm_dtbc: RMS norms, with gains,
    of what step sizes, writes and reads are made of.
    """

    style: ClassVar[BlockStyle] = BlockStyle(activation=None)

    states: Size = 16
    up_factor: Factor = 2.0
    up_multiple: Size = 1
    conv_width: Size = 4
    rank: Size | None = None
    norm_dtbc: bool = False
    norm_eps: Positive = 1e-6

    def __post_init__(self) -> None:
        check_fields(self)

    def build(self, width: int, *, depth: int = 1, index: int = 0) -> nn.Module:
        """The mixer."""
        return Mamba(width, self, depth)


class Mamba(FixedStateMixer):
    """Mamba as a mixer: see `mixers.contract`, and `MambaConfig` for its options."""

    def __init__(self, width: int, config: MambaConfig, depth: int) -> None:
        super().__init__()
        check_width(width)
        inner, states = round_up(config.up_factor * width, config.up_multiple), config.states
        rank = -(-width // 16) if config.rank is None else config.rank
        self.config, self.width, self.inner, self.rank, self.backend = config, width, inner, rank, "auto"
        self.up = Linear(width, 2 * inner, bias=False)
        self.conv = CausalConv(inner, config.conv_width)
        self.low = Linear(inner, rank + 2 * states, bias=False)
        norms = (WidthNorm(n, "rms", config.norm_eps) if config.norm_dtbc else None for n in (rank, states, states))
        self.dt_norm, self.b_norm, self.c_norm = norms
        self.dt = Linear(rank, inner)
        self.log_a_EZ = nn.Parameter(torch.empty(inner, states))
        self.skip_E = nn.Parameter(torch.empty(inner))
        self.down = Linear(inner, width, bias=False)
        # torch's defaults; steps from a thousandth to a tenth; the way back is smaller the more layers there are
        table = {
            "up.weight": init.uniform(width**-0.5),
            "conv.weight_DW": init.uniform(config.conv_width**-0.5),
            "conv.bias_D": init.uniform(config.conv_width**-0.5),
            "low.weight": init.uniform(inner**-0.5),
            "dt.weight": init.uniform(rank**-0.5),
            "dt.bias": init.inverse_softplus(init.log_uniform(1e-3, 1e-1)),
            "log_a_EZ": init.logs(init.counted),
            "skip_E": init.ones,
            "down.weight": init.uniform((inner * depth) ** -0.5),
        }
        gains = ("dt_norm.weight", "b_norm.weight", "c_norm.weight") if config.norm_dtbc else ()
        init.fill(self, table | dict.fromkeys(gains, init.ones))

    def forward(
        self,
        x_BTD: Tensor,
        state: MambaState | None = None,
        *,
        reset_BT: Tensor | None = None,
        lengths_B: Tensor | None = None,
    ) -> tuple[Tensor, MambaState]:
        """[B, T, width] -> [B, T, width] and the state after the last step; see `mixers.contract`."""
        x_BTD, reset_BT, lengths_B = checked(x_BTD, self.width, reset_BT, lengths_B)
        state = self.zero_state(x_BTD.shape[0]) if state is None else state
        u_BTE, z_BTE = self.up(x_BTD).chunk(2, dim=-1)
        u_BTE, conv = self.conv(u_BTE, state.conv, reset_BT=reset_BT, lengths_B=lengths_B, activation="silu")
        low_BTJ, b_BTZ, c_BTZ = self.low(u_BTE).split((self.rank, self.config.states, self.config.states), dim=-1)
        if self.dt_norm is not None and self.b_norm is not None and self.c_norm is not None:
            low_BTJ, b_BTZ = self.dt_norm(low_BTJ.contiguous()), self.b_norm(b_BTZ.contiguous())
            c_BTZ = self.c_norm(c_BTZ.contiguous())
        (dt_BTE,) = linears(low_BTJ, (), wide=(self.dt,))
        y_BTE, cell = selective_scan(
            u_BTE,
            dt_BTE,
            -torch.exp(upcast(self.log_a_EZ)),
            b_BTZ,
            c_BTZ,
            self.skip_E,
            state.cell,
            reset_BT=reset_BT,
            lengths_B=lengths_B,
            softplus=True,
            backend=self.backend,
        )
        return mask_tail(self.down(y_BTE * silu(z_BTE)), lengths_B), MambaState(conv, cell)

    def zero_state(self, batch: int, /, device: torch.device | None = None) -> MambaState:
        """State before the first step, on the device of the weights or on another."""
        zeros = wide_zeros(self.skip_E, device)
        past_BSD = zeros(batch, self.config.conv_width - 1, self.inner)
        return MambaState(ConvState(past_BSD), SelectiveScanState(zeros(batch, self.inner, self.config.states)))

    def cell_flops(self, mode: str, length: int, /) -> float:
        """FLOPs of the states: decay, write and read-out, the exponential counted as one."""
        return 8.0 * self.inner * self.config.states
