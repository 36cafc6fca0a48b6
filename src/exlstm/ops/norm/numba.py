"""The norms of a decoding step on a CPU, for a few rows at a time: compiled by Numba, one call in place of ten.

float32 or bfloat16 in and out, float32 between. M rows  D width  E = H V: H heads of width V
"""

from math import prod, sqrt

import numpy as np
import torch
from numpy import float32, float64
from torch import Tensor

from exlstm.runtime.addresses import addresses
from exlstm.runtime.capture import recording
from exlstm.runtime.cpu.bfloat16 import read_numbers, write_numbers
from exlstm.runtime.cpu.jit import compiled, helper
from exlstm.runtime.cpu.loops import Array, Number, add, dot, multiply, shift, total
from exlstm.runtime.cpu.memory import double_as_long, double_at, long_at


@helper()
def standardise(h_V: Array, eps: float, n_V: Array) -> Number:
    """n = (h - mean) / sqrt(variance + eps); returns the factor."""
    one, width = float32(1.0), float32(h_V.size)
    shift(h_V, total(h_V) / width, one, n_V)
    # of a large mean the last digit is wrong; the mean of the differences is what is missing
    missing = total(n_V) / width
    variance = float64(dot(n_V, n_V)) / float64(h_V.size) - float64(missing) * float64(missing)
    factor = float32(1.0 / sqrt((0.0 if variance < 0.0 else variance) + eps))
    shift(n_V, missing, factor, n_V)
    return factor


@helper()
def norm_backward(n_V: Array, factor: Number, dn_V: Array, dh_V: Array) -> None:
    """dh = factor (dn - mean(dn) - n mean(n dn))"""
    width = float32(n_V.size)
    mean, along = total(dn_V) / width, dot(dn_V, n_V) / width
    for j in range(n_V.size):
        dh_V[j] = (dn_V[j] - mean - n_V[j] * along) * factor


@compiled
def norm_rows(M: int, D: int, x: int, gain: int, bias: int, y: int, short: bool, rms: bool, eps: float) -> None:
    """y of M rows. x, gain, bias (or 0), y: addresses of tensors, all of bfloat16 if `short`, else of float32."""
    x_D, gain_D, y_D = np.empty(D, float32), np.empty(D, float32), np.empty(D, float32)
    row_bytes = (2 if short else 4) * D
    read_numbers(gain, short, gain_D)
    for m in range(M):
        read_numbers(x + m * row_bytes, short, x_D)
        if rms:
            shift(x_D, float32(0.0), float32(1.0 / sqrt(float64(dot(x_D, x_D)) / D + eps)), y_D)
        else:
            standardise(x_D, eps, y_D)
        multiply(y_D, gain_D, y_D)
        if bias != 0:
            read_numbers(bias, short, x_D)  # the row is not needed any more
            add(x_D, y_D)
        write_numbers(y_D, y + m * row_bytes, short)


def norm_piece(a: int, _piece: int) -> None:
    """For a `Tape`: the arguments of `norm_rows`."""
    norm_rows(long_at(a), long_at(a + 8), long_at(a + 16), long_at(a + 24), long_at(a + 32), long_at(a + 40),
              long_at(a + 48) != 0, long_at(a + 56) != 0, double_at(a + 64))  # fmt: skip


def norm_numba(x: Tensor, gain_D: Tensor, bias_D: Tensor | None, eps: float, rms: bool) -> Tensor:
    """Layer norm or RMS norm of every row of x; x, the gain and the bias contiguous and of one dtype."""
    y, D = torch.empty_like(x), gain_D.shape[0]
    M, short = x.numel() // D, x.dtype is torch.bfloat16
    rows, gains = addresses(M * D, x, y, dtype=x.dtype), addresses(D, gain_D, bias_D, dtype=x.dtype)
    arguments = M, D, rows[0], *gains, rows[1], short, rms
    norm_rows(*arguments, eps)
    if (tape := recording()) is not None:
        tape.add(norm_piece, *arguments, double_as_long(eps))
    return y


@compiled
def head_norm_rows(M: int, H: int, V: int, h: int, gain: int, bias: int, y: int, short: bool, eps: float) -> None:
    """y = norm of h's heads * gain + bias of M rows. Small letters are addresses; bias or 0.

    All are of bfloat16 if `short`, else of float32.
    """
    size, E = (2 if short else 4), H * V
    gain_E, h_V, y_E = np.empty(E, float32), np.empty(V, float32), np.empty(E, float32)
    bias_E = np.empty(E, float32)
    read_numbers(gain, short, gain_E)
    if bias != 0:
        read_numbers(bias, short, bias_E)
    for m in range(M):
        for e in range(0, E, V):
            read_numbers(h + size * (m * E + e), short, h_V)
            standardise(h_V, eps, y_E[e : e + V])
        multiply(y_E, gain_E, y_E)
        if bias != 0:
            add(bias_E, y_E)
        write_numbers(y_E, y + size * m * E, short)


def head_norm_piece(a: int, _piece: int) -> None:
    """For a `Tape`: the arguments of `head_norm_rows`."""
    head_norm_rows(long_at(a), long_at(a + 8), long_at(a + 16), long_at(a + 24), long_at(a + 32), long_at(a + 40),
                   long_at(a + 48), long_at(a + 56) != 0, double_at(a + 64))  # fmt: skip


def head_norm_numba(h_BTHV: Tensor, gain_HV: Tensor, bias_HV: Tensor | None, eps: float) -> Tensor:
    """`head_norm` of a few rows, without a graph; all contiguous and of one dtype."""
    *outer, H, V = h_BTHV.shape
    M, y_BTHV, dtype = prod(outer), torch.empty_like(h_BTHV), h_BTHV.dtype
    h, y = addresses(M * H * V, h_BTHV, y_BTHV, dtype=dtype)
    gains = addresses(H * V, gain_HV, bias_HV, dtype=dtype)
    arguments = (M, H, V, h, *gains, y, dtype is torch.bfloat16)
    head_norm_rows(*arguments, eps)
    if (tape := recording()) is not None:
        tape.keep((h_BTHV, gain_HV, bias_HV))
        tape.add(head_norm_piece, *arguments, double_as_long(eps))
    return y_BTHV
