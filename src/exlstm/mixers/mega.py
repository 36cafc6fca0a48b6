"""Mega: damped moving averages, and one head of attention that reads them (Ma et al. 2022, arXiv:2209.10655).

    h_t = (1 - alpha delta) h_{t-1} + alpha beta x_t          Z averages of a channel; alpha, delta sigmoids of weights
    m_t = silu(sum_z gamma_z h_t[z] / sqrt(Z) + omega x_t)
    [u, z, r, c] = W_m m + bias ,  u = sigmoid(u) ,  z = silu(z) ,  r = silu(r)        update gate, shared, reset gate
    q = scale_q z + shift_q ,  k = scale_k z (+ shift_k) ,  v = silu(W_v x + bias)
    o_t = sum_s f(q_t k_s + bias_{t-s}) v_s                   f softmax or laplace: see `ops.chunk_attention.reference`
    y = u (silu(c + W_h (o r) + bias) - x)

The published layer returns x_raw + u (h - x_raw), with x_raw from before the norm. A block here adds x_raw to the
mixer's output, and the mixer sees the normed input x alone: so y has x in place of x_raw, inside of the gate only. The
state holds h_t without alpha beta, which is applied where it is read.

With chunks (Mega-chunk, the default) a step attends to its own chunk only, and what lies before reaches it through the
averages. The chunks of a row are counted from its beginning or its last reset, and its place in them is in the state,
which has the same size at any length; without chunks it grows.

Two published parameters that change nothing are left out: biases of distances into the future, and shift_k beside
softmax, to which it adds the same number for all keys.

B batch  T time  D model width  Z averages of a channel  K key width  V value width  R distances
"""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from exlstm.mixers.contract import BlockStyle, check_width, checked, mask_tail, wide_zeros, zero_state_bytes
from exlstm.nn import init
from exlstm.nn.fields import Factor, Size, check_fields
from exlstm.nn.layers import round_up
from exlstm.nn.linear import Linear
from exlstm.ops.chunk_attention import (
    AttentionFunction,
    ChunkState,
    WholeState,
    chunk_attention,
    chunk_attention_flops,
    empty_cache,
)
from exlstm.ops.common import upcast, wide_dtype
from exlstm.ops.ema import EMAState, ema, ema_flops


class MegaState(NamedTuple):
    """State of the layer: the averages, and the attention's cache."""

    average: EMAState
    cache: ChunkState | WholeState


@dataclass(frozen=True, kw_only=True)
class MegaConfig:
    """Mega with `states` averages per channel, queries and keys of key_width channels, values of value_factor * width.

    chunk: steps that attend to one another, None: all. distances: that have a bias of their own, the last of them
    stands for all that are farther; None: as many as a chunk has. function: of attention.
    """

    style: ClassVar[BlockStyle] = BlockStyle(norm="layer", activation="silu", factor=2.0, gated=False, bias=True)

    states: Size = 16
    key_width: Size = 64
    value_factor: Factor = 2.0
    chunk: Size | None = 128
    distances: Size | None = None
    function: AttentionFunction = "softmax"

    def __post_init__(self) -> None:
        check_fields(self)
        if self.chunk is None and self.distances is None:
            raise ValueError("chunk and distances are None; without chunks give distances, the number of biases.")

    def build(self, width: int, *, depth: int = 1, index: int = 0) -> nn.Module:
        """The mixer."""
        return Mega(width, self)


def alternating(x: Tensor) -> None:
    """1, -1, 1, ... along the last axis, each plus N(0, 0.02^2)."""
    x.normal_(0, 0.02)
    x[..., ::2] += 1
    x[..., 1::2] -= 1


class Mega(nn.Module):
    """Mega as a mixer: see `mixers.contract`, and `MegaConfig` for its options."""

    def __init__(self, width: int, config: MegaConfig) -> None:
        super().__init__()
        check_width(width)
        K, V = config.key_width, round_up(config.value_factor * width, 1)
        self.config, self.width, self.value_width, self.backend = config, width, V, "auto"
        self.alpha_DZ, self.delta_DZ, self.beta_DZ, self.gamma_DZ = (
            nn.Parameter(torch.empty(width, config.states)) for _ in range(4)
        )
        self.omega_D = nn.Parameter(torch.empty(width))
        self.v, self.mx, self.h = Linear(width, V), Linear(width, 2 * width + K + V), Linear(V, width)
        self.scale_q_K, self.shift_q_K, self.scale_k_K = (nn.Parameter(torch.empty(K)) for _ in range(3))
        self.shift_k_K = None if config.function == "softmax" else nn.Parameter(torch.empty(K))
        self.distance_R = nn.Parameter(torch.empty(config.distances or config.chunk or 1))
        near_zero = ("v.weight", "mx.weight", "h.weight", "scale_q_K", "scale_k_K", "distance_R")
        zero = ("v.bias", "mx.bias", "h.bias", "shift_q_K", *([] if self.shift_k_K is None else ["shift_k_K"]))
        init.fill(
            self,
            {
                **dict.fromkeys(("alpha_DZ", "delta_DZ"), init.normal(0.2)),
                "beta_DZ": alternating,
                **dict.fromkeys(("gamma_DZ", "omega_D"), init.normal(1.0)),
                **dict.fromkeys(near_zero, init.normal(0.02)),
                **dict.fromkeys(zero, init.zeros),
            },
        )

    def forward(
        self,
        x_BTD: Tensor,
        state: MegaState | None = None,
        *,
        reset_BT: Tensor | None = None,
        lengths_B: Tensor | None = None,
    ) -> tuple[Tensor, MegaState]:
        """[B, T, width] -> [B, T, width] and the state after the last step; see `mixers.contract`."""
        x_BTD, reset_BT, lengths_B = checked(x_BTD, self.width, reset_BT, lengths_B)
        average, cache = (None, None) if state is None else state
        alpha_DZ = torch.sigmoid(upcast(self.alpha_DZ))
        factor_DZ = 1 - alpha_DZ * torch.sigmoid(upcast(self.delta_DZ))
        weight_DZ = alpha_DZ * upcast(self.beta_DZ) * upcast(self.gamma_DZ) * self.config.states**-0.5
        s_BTD, average = ema(
            upcast(x_BTD),
            factor_DZ,
            weight_DZ,
            upcast(self.omega_D),
            average,
            reset_BT=reset_BT,
            lengths_B=lengths_B,
            backend=self.backend,
        )
        sizes = self.width, self.config.key_width, self.value_width, self.width
        u_BTD, z_BTK, r_BTV, c_BTD = self.mx(silu(s_BTD).to(x_BTD.dtype)).split(sizes, dim=-1)
        z_BTK = silu(upcast(z_BTK))
        k_BTK = z_BTK * upcast(self.scale_k_K)
        o_BTV, cache = chunk_attention(
            z_BTK * upcast(self.scale_q_K) + upcast(self.shift_q_K),
            k_BTK if self.shift_k_K is None else k_BTK + upcast(self.shift_k_K),
            upcast(silu(self.v(x_BTD))),
            upcast(self.distance_R),
            cache,
            chunk=self.config.chunk,
            function=self.config.function,
            reset_BT=reset_BT,
            lengths_B=lengths_B,
            backend=self.backend,
        )
        h_BTD = silu(c_BTD + self.h(o_BTV.to(x_BTD.dtype) * silu(r_BTV)))
        return mask_tail(torch.sigmoid(u_BTD) * (h_BTD - x_BTD), lengths_B), MegaState(average, cache)

    def zero_state(self, batch: int, /, device: torch.device | None = None) -> MegaState:
        """State before the first step, on the device of the weights or on another."""
        zeros, chunk = wide_zeros(self.omega_D, device), self.config.chunk
        cache = empty_cache(zeros(0), batch, self.config.key_width, self.value_width, chunk)
        h_BDZ = zeros(batch, self.width, self.config.states)
        return MegaState(EMAState(h_BDZ), WholeState(*cache) if chunk is None else cache)

    def state_bytes(self, length: int = 0, /) -> int:
        """Bytes of one sequence's state: without chunks a key and a value more for every step."""
        grown = length if self.config.chunk is None else 0
        entry = (self.config.key_width + self.value_width) * wide_dtype(self.omega_D.dtype).itemsize
        return zero_state_bytes(self) + grown * entry

    def cell_flops(self, mode: str, length: int, /) -> float:
        """FLOPs of the averages and of products with keys and values."""
        attended = chunk_attention_flops(mode, length, self.config.chunk, self.config.key_width + self.value_width)
        return self.width * ema_flops(mode, length, self.config.states) + attended
