"""Torch forms of scans, state spaces and long convolutions, as their papers compute them on whole sequences.

Each takes the arguments of our op and stands in its place. They are for training from zero states: resets, lengths and
the state after the last step are left out.
"""

from typing import Any

import torch
from torch import Tensor

from exlstm.ops.lti.reference import LTIParameters, discretized


def associative(a_BTE: Tensor, b_BTE: Tensor) -> Tensor:
    """h_t = a_t h_{t-1} + b_t as JAX's associative scan has it: pairs of steps first, then the steps between."""
    T = a_BTE.shape[1]
    if T == 1:
        return b_BTE
    if T % 2:
        before_BTE = associative(a_BTE[:, :-1], b_BTE[:, :-1])
        return torch.cat([before_BTE, a_BTE[:, -1:] * before_BTE[:, -1:] + b_BTE[:, -1:]], dim=1)
    first_a, second_a, first_b, second_b = a_BTE[:, ::2], a_BTE[:, 1::2], b_BTE[:, ::2], b_BTE[:, 1::2]
    second_h = associative(first_a * second_a, second_a * first_b + second_b)
    between_h = torch.cat([first_b[:, :1], first_a[:, 1:] * second_h[:, :-1] + first_b[:, 1:]], dim=1)
    return torch.stack([between_h, second_h], dim=2).flatten(1, 2)


def associative_scan(a_BTE: Tensor, b_BTE: Tensor, state: Any = None, **_: Any) -> tuple[Tensor, Any]:
    """`scan`. Sums of logarithms (Heinsen 2023, arXiv:2311.06281) are ten times slower, and 2 % off in gradients."""
    return associative(a_BTE, b_BTE), state


def complex_scan(
    r_BTE: Tensor, theta_E: Tensor, re_BTE: Tensor, im_BTE: Tensor, state: Any = None, **_: Any
) -> tuple[Tensor, Tensor, Any]:
    """`rotating_scan` on complex numbers."""
    h_BTE = associative(torch.polar(r_BTE, theta_E.expand_as(r_BTE)), torch.complex(re_BTE, im_BTE))
    return h_BTE.real, h_BTE.imag, state


def convolved(u_BTE: Tensor, taps_RE: Tensor) -> Tensor:
    """The causal convolution by Fourier transforms of twice the length."""
    length = u_BTE.shape[1] + len(taps_RE)
    u_BEF = torch.fft.rfft(u_BTE.transpose(1, 2), length)
    y_BET = torch.fft.irfft(u_BEF * torch.fft.rfft(taps_RE.T, length), length)
    return y_BET[..., : u_BTE.shape[1]].transpose(1, 2)


def fft_conv(u_BTE: Tensor, taps_RE: Tensor, state: Any = None, **_: Any) -> tuple[Tensor, Any]:
    """`long_conv`."""
    return convolved(u_BTE, taps_RE), state


def fft_lti(
    u_BTE: Tensor, parameters: LTIParameters, state: Any = None, *, method: Any = "zoh", **_: Any
) -> tuple[Tensor, Any]:
    """`lti` as S4D computes it: taps as sums of powers of the poles, then a long convolution."""
    system = discretized(parameters, method)
    steps_T = torch.arange(u_BTE.shape[1], dtype=u_BTE.dtype)
    powers_PZT = torch.exp(torch.complex(system.a_re_PZ, system.a_im_PZ).log()[..., None] * steps_T)
    c_QZ = torch.complex(system.c_re_QZ, system.c_im_QZ)
    taps_QT = c_QZ @ powers_PZT[0] if len(powers_PZT) == 1 else torch.einsum("ez,ezt->et", c_QZ, powers_PZT)
    taps_TE = taps_QT.real.T.expand(-1, u_BTE.shape[2])
    return convolved(u_BTE, taps_TE) + system.skip_R * u_BTE, state


def fft_ema(
    u_BTE: Tensor, factor_EZ: Tensor, weight_EZ: Tensor, skip_E: Tensor, state: Any = None, /, **_: Any
) -> tuple[Tensor, Any]:
    """`ema` as Mega computes it: taps as sums of powers of the factors, then a long convolution."""
    steps_T = torch.arange(u_BTE.shape[1], dtype=u_BTE.dtype)
    powers_EZT = torch.exp(factor_EZ.log()[..., None] * steps_T)
    taps_TE = torch.einsum("ez,ezt->te", weight_EZ, powers_EZT)
    return convolved(u_BTE, taps_TE) + skip_E * u_BTE, state
