"""The norms over the model's width on a CPU, for a few rows at a time: compiled by Numba, one call in place of ten.

float32 or bfloat16 in and out, float32 between. M rows  D width
"""

from math import sqrt

import numpy as np
import torch
from numba import njit
from numpy import float32, float64
from torch import Tensor

from exlstm.ops.numba_gated_norm import Array, dot, multiply, shift, standardise
from exlstm.ops.numba_jit import compiled, tensor_at
from exlstm.ops.numba_math import FASTMATH, bits_of_float, float_of_bits


@njit(fastmath=FASTMATH)
def read_numbers(x: int, m: int, short: bool, x_D: Array) -> None:
    """Row m of the tensor at x, of bfloat16 if `short`, else of float32."""
    D = x_D.size
    if short:
        short_D = tensor_at(x + 2 * m * D, D, np.uint16)
        for j in range(D):
            x_D[j] = float_of_bits(np.int32(np.uint32(short_D[j]) << np.uint32(16)))
    else:
        x_D[:] = tensor_at(x + 4 * m * D, D, float32)


@njit(fastmath=FASTMATH)
def write_numbers(x_D: Array, x: int, m: int, short: bool) -> None:
    """The same way back: to the nearest bfloat16, of two to the even one; what is no number stays none."""
    D = x_D.size
    if short:
        short_D = tensor_at(x + 2 * m * D, D, np.uint16)
        for j in range(D):
            bits = np.uint32(bits_of_float(x_D[j]))
            half = np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
            nan = (bits & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000)
            short_D[j] = np.uint16((bits if nan else bits + half) >> np.uint32(16))
    else:
        tensor_at(x + 4 * m * D, D, float32)[:] = x_D


@compiled
def norm_rows(M: int, D: int, x: int, gain: int, y: int, short: bool, rms: bool, eps: float) -> None:
    """y of M rows. x, gain, y: addresses of tensors, all of bfloat16 if `short`, else of float32."""
    x_D, gain_D, y_D = np.empty(D, float32), np.empty(D, float32), np.empty(D, float32)
    read_numbers(gain, 0, short, gain_D)
    for m in range(M):
        read_numbers(x, m, short, x_D)
        if rms:
            shift(x_D, float32(0.0), float32(1.0 / sqrt(float64(dot(x_D, x_D)) / D + eps)), y_D)
        else:
            standardise(x_D, eps, y_D)
        multiply(y_D, gain_D, y_D)
        write_numbers(y_D, y, m, short)


def norm_numba(x: Tensor, gain_D: Tensor, eps: float, rms: bool) -> Tensor:
    """Layer norm or RMS norm of every row of x; x and the gain contiguous and of one dtype."""
    y, D = torch.empty_like(x), gain_D.shape[0]
    norm_rows(x.numel() // D, D, x.data_ptr(), gain_D.data_ptr(), y.data_ptr(), x.dtype is torch.bfloat16, rms, eps)
    return y
