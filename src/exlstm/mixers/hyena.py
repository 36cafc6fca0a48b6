"""Hyena of order two: a long convolution between two gates (Poli et al. 2023, arXiv:2302.10866).

    z = W_z x + bias ;  [x0, x1, v] = conv(z)                 W = 3 taps per channel
    w = v x1 ,  y_t = sum_l f_l w_{t-l} + skip w_t            over the R taps of the filter
    out = W_o (y x0) + bias
    f_l = MLP(features of l) exp(-|delta| l / (R - 1))        sines of a learned frequency as activations

The filter is a function of the place l, so R, `filter_len`, costs no parameters. The model is defined for any T: taps
beyond R are 0, where the published code cuts sequences at R. Features and delta are constants here; there, features are
parameters with a small learning rate. The state is the cache of w, which grows up to R - 1 steps.

B batch  T time  D model width  M channels of the short convolution (3 D)  R taps  F width of the MLP  I features
"""

from dataclasses import dataclass
from math import log, pi
from typing import ClassVar, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from exlstm.mixers.contract import BlockStyle, check_width, checked, mask_tail, wide_zeros, zero_state_bytes
from exlstm.nn import init
from exlstm.nn.fields import Factor, Size, check_fields
from exlstm.nn.layers import CausalConv
from exlstm.nn.linear import Linear, decoding, wide_linear
from exlstm.ops.common import upcast, wide_dtype
from exlstm.ops.conv import ConvState
from exlstm.ops.long_conv import LongConvState, long_conv, long_conv_flops
from exlstm.runtime.capture import refuse
from exlstm.runtime.internals import version

FAST, SLOW, TARGET = 0.3, 1.5, 0.01  # shares of the filter after which the windows of channels have fallen to TARGET


class HyenaState(NamedTuple):
    """State of the layer: the short convolution's window, and the inputs that the filter still reaches."""

    conv: ConvState
    cache: LongConvState


@dataclass(frozen=True, kw_only=True)
class HyenaConfig:
    """Hyena with filters of `filter_len` taps, made by an MLP of width filter_width.

    features: of a place, an odd number: itself, and cosine and sine of (features - 1) / 2 frequencies. frequency: that
    the sines of the MLP start with.
    """

    style: ClassVar[BlockStyle] = BlockStyle(norm="layer", activation="gelu", factor=4.0, gated=False, bias=True)

    filter_len: Size = 2048
    filter_width: Size = 64
    features: Size = 33
    frequency: Factor = 14.0
    conv_width: Size = 3

    def __post_init__(self) -> None:
        check_fields(self)
        if self.features < 3 or self.features % 2 == 0:
            raise ValueError(f"features is {self.features}; it must be an odd number of at least 3.")

    def build(self, width: int, *, depth: int = 1, index: int = 0) -> nn.Module:
        """The mixer."""
        return Hyena(width, self, depth)


class HyenaFilter(nn.Module):
    """The filter as a function of its parameters: taps [R, D], float32 or wider."""

    def __init__(self, width: int, config: HyenaConfig) -> None:
        super().__init__()
        self.width, self.config = width, config
        hidden = config.filter_width
        self.first = Linear(config.features, hidden)
        self.second, self.third = Linear(hidden, hidden), Linear(hidden, hidden)
        self.last = Linear(hidden, width, bias=False)
        self.frequency_F = nn.Parameter(torch.empty(hidden))

    def forward(self, count: int) -> Tensor:
        """taps_RD: the first `count`. They depend on their places and on `filter_len` alone."""
        like, length = self.frequency_F, self.config.filter_len
        # sines of this frequency magnify rounding, which in products depends on the number of rows
        place_R1 = torch.arange(count, device=like.device, dtype=torch.float64)[:, None]
        share_R1 = place_R1 / max(length - 1, 1)
        bands = (self.config.features - 1) // 2
        band = torch.linspace(1e-4, bands - 1, bands, device=like.device, dtype=place_R1.dtype)
        angle = place_R1 * (2 * pi / length) * band
        x_RI, frequency_F = torch.cat([share_R1, angle.cos(), -angle.sin()], dim=1), upcast(like)
        h_RF = torch.sin(frequency_F * wide_linear(self.first, x_RI))
        for layer in (self.second, self.third):
            h_RF = torch.sin(frequency_F * wide_linear(layer, h_RF))
        rates = torch.linspace(
            -log(TARGET) / SLOW, -log(TARGET) / FAST, self.width, device=like.device, dtype=place_R1.dtype
        )
        taps_RD = wide_linear(self.last, h_RF) * torch.exp(-share_R1 * rates)
        return taps_RD.to(wide_dtype(like.dtype))


class KeptTaps(NamedTuple):
    """The taps of a filter in inference, and what they were computed from."""

    parameters: list[tuple[int, int, torch.dtype, torch.device]]
    taps_RD: Tensor


kept: WeakKeyDictionary[nn.Module, KeptTaps] = WeakKeyDictionary()


def taps_of(module: HyenaFilter, count: int) -> Tensor:
    """taps_RD, the first `count`. In inference all of them are kept, as long as parameters are what they were."""
    if not decoding() or any(x.is_inference() or type(x) is not nn.Parameter for x in module.parameters()):
        taps_RD: Tensor = module(count)
        return taps_RD
    refuse("a filter that is kept, of which a replay would not notice that its parameters change")
    parameters = [(x.data_ptr(), version(x), x.dtype, x.device) for x in module.parameters()]
    found = kept.get(module)
    if found is None or found.parameters != parameters:
        found = kept[module] = KeptTaps(parameters, module(module.config.filter_len))
    return found.taps_RD[:count]


class Hyena(nn.Module):
    """Hyena as a mixer: see `mixers.contract`, and `HyenaConfig` for its options."""

    def __init__(self, width: int, config: HyenaConfig, depth: int) -> None:
        super().__init__()
        check_width(width)
        self.config, self.width, self.backend = config, width, "auto"
        self.up = Linear(width, 3 * width)
        self.conv = CausalConv(3 * width, config.conv_width)
        self.filter = HyenaFilter(width, config)
        self.skip_D = nn.Parameter(torch.empty(width))
        self.out = Linear(width, width)
        hidden, first = init.uniform(config.filter_width**-0.5), init.uniform(config.features**-0.5)
        table = {f"filter.{layer}.{kind}": hidden for layer in ("second", "third") for kind in ("weight", "bias")}
        init.fill(
            self,
            table
            | {
                "filter.first.weight": first,
                "filter.first.bias": first,
                "filter.last.weight": hidden,
                "filter.frequency_F": init.constant(config.frequency),
                "up.weight": init.normal(0.02),
                "up.bias": init.zeros,
                "conv.weight_DW": init.uniform(config.conv_width**-0.5),
                "conv.bias_D": init.uniform(config.conv_width**-0.5),
                "skip_D": init.normal(1.0),
                "out.weight": init.normal(0.02 / (2 * depth) ** 0.5),
                "out.bias": init.zeros,
            },
        )

    def forward(
        self,
        x_BTD: Tensor,
        state: HyenaState | None = None,
        *,
        reset_BT: Tensor | None = None,
        lengths_B: Tensor | None = None,
    ) -> tuple[Tensor, HyenaState]:
        """[B, T, width] -> [B, T, width] and the state after the last step; see `mixers.contract`."""
        x_BTD, reset_BT, lengths_B = checked(x_BTD, self.width, reset_BT, lengths_B)
        state = self.zero_state(x_BTD.shape[0]) if state is None else state
        z_BTM, conv = self.conv(self.up(x_BTD), state.conv, reset_BT=reset_BT, lengths_B=lengths_B)
        x0_BTD, x1_BTD, v_BTD = map(upcast, z_BTM.chunk(3, dim=-1))
        w_BTD = v_BTD * x1_BTD
        reach = min(self.config.filter_len, state.cache.u_BSE.shape[1] + x_BTD.shape[1])
        y_BTD, cache = long_conv(
            w_BTD,
            taps_of(self.filter, reach),
            state.cache,
            reset_BT=reset_BT,
            lengths_B=lengths_B,
            filter_len=self.config.filter_len,
            backend=self.backend,
        )
        y_BTD = ((y_BTD + upcast(self.skip_D) * w_BTD) * x0_BTD).to(x_BTD.dtype)
        return mask_tail(self.out(y_BTD), lengths_B), HyenaState(conv, cache)

    def zero_state(self, batch: int, /, device: torch.device | None = None) -> HyenaState:
        """State before the first step, on the device of the weights or on another."""
        zeros = wide_zeros(self.skip_D, device)
        counts = torch.zeros(batch, dtype=torch.long, device=device or self.skip_D.device)
        past_BSM = zeros(batch, self.config.conv_width - 1, 3 * self.width)
        return HyenaState(ConvState(past_BSM), LongConvState(zeros(batch, 0, self.width), counts))

    def state_bytes(self, length: int = 0, /) -> int:
        """Bytes of one sequence's state: beside the short convolution's, an input per step that the filter reaches."""
        cached = min(length, self.config.filter_len - 1)
        return zero_state_bytes(self) + cached * self.width * wide_dtype(self.skip_D.dtype).itemsize

    def cell_flops(self, mode: str, length: int, /) -> float:
        """FLOPs of both convolutions."""
        window = 2.0 * self.config.conv_width * 3 * self.width
        return window + self.width * long_conv_flops(mode, length, self.config.filter_len)
