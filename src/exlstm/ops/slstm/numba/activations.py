"""Activations of the sLSTM's cell input other than tanh, with their slopes: z of a block becomes phi(z).

Each is a function of a vector that returns (phi(z), d phi / dz).
"""

from collections.abc import Callable
from typing import Any

from exlstm.ops.slstm.reference import CELL_ACTIVATIONS
from exlstm.runtime.cpu.blocks import Units, simd16
from exlstm.runtime.cpu.jit import helper
from exlstm.runtime.cpu.simd import SimdValue, cosine, exp_below, sigmoid, sine, where

Pair = tuple[SimdValue, SimdValue]
KINDS = list(CELL_ACTIVATIONS)  # an activation is its place in this list for kernels; tanh is the first
# e^(t^2) erfc(t) for t >= 0 as a polynomial in 1 / (1 + 0.44 t) without a constant, fitted to 2e-7 of its value
_DECAY = 0.44
_TAIL = (0.24822098, 0.24887092, 0.21731471, 0.21580971, -0.020178122, 0.29668669, -0.27794849, 0.071223757)


def identity(z: SimdValue) -> Pair:
    """Identity z."""
    return z, (z - z) + 1.0  # NaN and infinity show


def silu(z: SimdValue) -> Pair:
    """SiLU, z sigmoid(z)."""
    s = sigmoid(z)
    return z * s, s * (z * (1.0 - s) + 1.0)


def gelu(z: SimdValue) -> Pair:
    """GELU, z Phi(z) with the normal distribution Phi: the exact form."""
    e, u = exp_below(z * z * -0.5), 1.0 / (abs(z) * (_DECAY * 0.5**0.5) + 1.0)
    tail = u * _TAIL[-1]
    for coefficient in _TAIL[-2::-1]:
        tail = (tail + coefficient) * u
    half = tail * e * 0.5
    share = where(z < 0.0, half, 1.0 - half)
    return z * share, share + z * e * 0.39894228


def sin(z: SimdValue) -> Pair:
    """Sine of z."""
    return sine(z), cosine(z)


def softsign(z: SimdValue) -> Pair:
    """Softsign, z / (1 + |z|)."""
    s = 1.0 / (abs(z) + 1.0)
    return z * s, s * s


def activation(function: Callable[[SimdValue], Pair]) -> Any:
    """A function (block, saved) that applies an activation to a block and saves its slope."""

    def apply(block: Units, saved: Units) -> None:
        block[2], saved[9] = function(block[2])

    return simd16(apply)


apply_identity, apply_silu, apply_gelu, apply_sin, apply_softsign = (
    activation(function) for function in (identity, silu, gelu, sin, softsign)
)
IDENTITY, SILU, GELU, SIN = (KINDS.index(name) for name in ("identity", "silu", "gelu", "sin"))


@helper()
def apply_activation(block: int, saved: int, kind: int) -> None:
    """The activation of this place in `KINDS`: z of a block becomes phi(z)."""
    if kind == IDENTITY:
        apply_identity(block, saved)
    elif kind == SILU:
        apply_silu(block, saved)
    elif kind == GELU:
        apply_gelu(block, saved)
    elif kind == SIN:
        apply_sin(block, saved)
    else:
        apply_softsign(block, saved)
