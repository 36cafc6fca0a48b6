"""The norms of a decoding step on a CPU, for a few rows at a time: one kernel in place of ten operations of torch.

float32 or bfloat16 in and out, float32 between. M rows  D width  H heads of width V
"""

from math import sqrt

import numpy as np
import torch
from numpy import float32, float64
from torch import Tensor

from exlstm.runtime.cpu.bfloat16 import read_numbers, write_numbers
from exlstm.runtime.cpu.jit import helper
from exlstm.runtime.cpu.kernel import Floats, kernel
from exlstm.runtime.cpu.launch import launch, microseconds
from exlstm.runtime.cpu.loops import Array, Number, add, dot, multiply, shift, total


@helper()
def standardize(h_V: Array, eps: float, n_V: Array) -> Number:
    """n = (h - mean) / sqrt(variance + eps); returns the factor."""
    one, width = float32(1.0), float32(h_V.size)
    shift(h_V, total(h_V) / width, one, n_V)
    # a large mean is wrong in its last digit; the mean of the differences corrects it
    missing = total(n_V) / width
    variance = float64(dot(n_V, n_V)) / float64(h_V.size) - float64(missing) * float64(missing)
    factor = float32(1.0 / sqrt((0.0 if variance < 0.0 else variance) + eps))
    shift(n_V, missing, factor, n_V)
    return factor


@helper()
def normalize(h_V: Array, rms: bool, eps: float, n_V: Array) -> Number:
    """n = h / sqrt(mean square + eps) or, without `rms`, `standardize`; returns the factor."""
    if not rms:
        return standardize(h_V, eps, n_V)
    factor = float32(1.0 / sqrt(float64(dot(h_V, h_V)) / h_V.size + eps))
    shift(h_V, float32(0.0), factor, n_V)
    return factor


@helper()
def norm_backward(n_V: Array, factor: Number, rms: bool, dn_V: Array, dh_V: Array) -> None:
    """dh = factor (dn - mean(dn) - n mean(n dn)); of an RMS norm without mean(dn)."""
    width = float32(n_V.size)
    mean, along = float32(0.0) if rms else total(dn_V) / width, dot(dn_V, n_V) / width
    for j in range(n_V.size):
        dh_V[j] = (dn_V[j] - mean - n_V[j] * along) * factor


@kernel()
def norm_rows(first: int, last: int, M: int, D: int, x_MD: Floats, gain_D: Floats, bias_D: Floats, y_MD: Floats,
              bf16: bool, rms: bool, eps: float) -> None:  # fmt: skip
    """Rows of y = norm of x * gain + bias."""
    row, g, b, y = np.empty(D, float32), np.empty(D, float32), np.empty(D, float32), np.empty(D, float32)
    row_bytes = (2 if bf16 else 4) * D
    read_numbers(gain_D, bf16, g)
    if bias_D != 0:
        read_numbers(bias_D, bf16, b)
    for m in range(first, last):
        read_numbers(x_MD + m * row_bytes, bf16, row)
        normalize(row, rms, eps, y)
        multiply(y, g, y)
        if bias_D != 0:
            add(b, y)
        write_numbers(y, y_MD + m * row_bytes, bf16)


def norm_numba(x: Tensor, gain_D: Tensor, bias_D: Tensor | None, eps: float, rms: bool) -> Tensor:
    """Layer norm or RMS norm of every row of x; x, the gain and the bias contiguous and of one dtype."""
    y, D = torch.empty_like(x), gain_D.shape[0]
    M, cost = x.numel() // D, microseconds(bytes=2 * x.nbytes, flops=10 * x.numel())
    launch(norm_rows, M, M, D, x, gain_D, bias_D, y, x.dtype is torch.bfloat16, rms, eps, cost=cost)
    return y


@kernel()
def head_norm_rows(first: int, last: int, M: int, H: int, V: int, h_MHV: Floats, gain_HV: Floats, bias_HV: Floats,
                   y_MHV: Floats, bf16: bool, rms: bool, eps: float) -> None:  # fmt: skip
    """Rows of y = norm of h's heads * gain + bias."""
    size, E = (2 if bf16 else 4), H * V
    g, b, h, y = np.empty(E, float32), np.empty(E, float32), np.empty(V, float32), np.empty(E, float32)
    read_numbers(gain_HV, bf16, g)
    if bias_HV != 0:
        read_numbers(bias_HV, bf16, b)
    for m in range(first, last):
        for e in range(0, E, V):
            read_numbers(h_MHV + size * (m * E + e), bf16, h)
            normalize(h, rms, eps, y[e : e + V])
        multiply(y, g, y)
        if bias_HV != 0:
            add(b, y)
        write_numbers(y, y_MHV + size * m * E, bf16)


def head_norm_numba(h_BTHV: Tensor, gain_HV: Tensor, bias_HV: Tensor | None, eps: float, rms: bool) -> Tensor:
    """`head_norm` of a few rows, without a graph; all contiguous and of one dtype."""
    H, V = gain_HV.shape
    M, y_BTHV = h_BTHV.numel() // (H * V), torch.empty_like(h_BTHV)
    cost = microseconds(bytes=2 * h_BTHV.nbytes, flops=10 * h_BTHV.numel())
    heads, bf16 = (h_BTHV.view(M, H, V), gain_HV, bias_HV, y_BTHV.view(M, H, V)), h_BTHV.dtype is torch.bfloat16
    launch(head_norm_rows, M, M, H, V, *heads, bf16, rms, eps, cost=cost)
    return y_BTHV
