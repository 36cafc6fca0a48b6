"""The norms of a decoding step on a CPU, for a few rows at a time: compiled by Numba, one call in place of ten.

float32 or bfloat16 in and out, float32 between. M rows  D width  E = H V: H heads of width V
"""

from math import prod, sqrt

import numpy as np
import torch
from numpy import float32, float64
from torch import Tensor

from exlstm.ops.gated_norm import GateActivation
from exlstm.ops.numba_gated_norm import (
    Array,
    add,
    add_product,
    dot,
    even_rows,
    gate,
    multiply,
    shift,
    skip_in_rows,
    standardise,
)
from exlstm.ops.numba_jit import compiled, helper
from exlstm.ops.numba_math import bits_of_float, float_of_bits
from exlstm.ops.numba_tensors import address_of, copy, double_as_long, double_at, long_at, tensor_at
from exlstm.ops.shared import address, addresses
from exlstm.ops.tape import recording


@helper()
def read_numbers(x: int, short: bool, x_D: Array) -> None:
    """The numbers that begin at address x, of bfloat16 if `short`, else of float32."""
    D = x_D.size
    if short:
        short_D = tensor_at(x, D, np.uint16)
        for j in range(D):
            x_D[j] = float_of_bits(np.int32(np.uint32(short_D[j]) << np.uint32(16)))
    else:
        copy(address_of(x_D), x, D)


@helper()
def write_numbers(x_D: Array, x: int, short: bool) -> None:
    """The same way back: to the nearest bfloat16, of two to the even one; what is no number stays none."""
    D = x_D.size
    if short:
        short_D = tensor_at(x, D, np.uint16)
        for j in range(D):
            bits = np.uint32(bits_of_float(x_D[j]))
            half = np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
            nan = (bits & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000)
            short_D[j] = np.uint16((bits if nan else bits + half) >> np.uint32(16))
    else:
        copy(x, address_of(x_D), D)


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
def gated_norm_rows(M: int, H: int, V: int, h: int, gain: int, bias: int, skip: int, c: int, c_step: int, z: int,
                    z_step: int, y: int, short: bool, silu: bool, eps: float) -> None:  # fmt: skip
    """y = (norm of h's heads * gain + bias + skip c) a(z) of M rows. Small letters are addresses; bias, skip, z or 0.

    All are of bfloat16 if `short`, else of float32. A row of c and z begins c_step and z_step numbers after the last.
    """
    size, E = (2 if short else 4), H * V
    gain_E, skip_E, h_V, y_E = np.empty(E, float32), np.empty(E, float32), np.empty(V, float32), np.empty(E, float32)
    other_E = np.empty(E, float32)
    read_numbers(gain, short, gain_E)
    if skip != 0:
        read_numbers(skip, short, skip_E)
    for m in range(M):
        for e in range(0, E, V):
            read_numbers(h + size * (m * E + e), short, h_V)
            standardise(h_V, eps, y_E[e : e + V])
        multiply(y_E, gain_E, y_E)
        if bias != 0:
            read_numbers(bias, short, other_E)
            add(other_E, y_E)
        if skip != 0:
            read_numbers(c + size * m * c_step, short, other_E)
            add_product(skip_E, other_E, y_E)
        if z != 0:
            read_numbers(z + size * m * z_step, short, other_E)
            gate(other_E, silu, y_E)
        write_numbers(y_E, y + size * m * E, short)


def gated_norm_piece(a: int, _piece: int) -> None:
    """For a `Tape`: the arguments of `gated_norm_rows`."""
    gated_norm_rows(
        long_at(a), long_at(a + 8), long_at(a + 16), long_at(a + 24), long_at(a + 32), long_at(a + 40), long_at(a + 48),
        long_at(a + 56), long_at(a + 64), long_at(a + 72), long_at(a + 80), long_at(a + 88), long_at(a + 96) != 0,
        long_at(a + 104) != 0, double_at(a + 112),
    )  # fmt: skip


def head_norm_numba(h_BTHV: Tensor, gain_HV: Tensor, bias_HV: Tensor | None, eps: float) -> Tensor:
    """`head_norm` of a few rows, without a graph; all contiguous and of one dtype."""
    *outer, H, V = h_BTHV.shape
    M, y_BTHV, dtype = prod(outer), torch.empty_like(h_BTHV), h_BTHV.dtype
    h, y = addresses(M * H * V, h_BTHV, y_BTHV, dtype=dtype)
    gains = addresses(H * V, gain_HV, bias_HV, dtype=dtype)
    arguments = (M, H, V, h, *gains, 0, 0, 0, 0, 0, y, dtype is torch.bfloat16, False)
    gated_norm_rows(*arguments, eps)
    if (tape := recording()) is not None:
        tape.keep((h_BTHV, gain_HV, bias_HV))
        tape.add(gated_norm_piece, *arguments, double_as_long(eps))
    return y_BTHV


def gated_norm_few(h_BTHV: Tensor, gain_E: Tensor, z_BTE: Tensor, skip_E: Tensor | None, c_BTE: Tensor | None,
                   bias_E: Tensor | None, activation: GateActivation, eps: float) -> Tensor:  # fmt: skip
    """`gated_norm` of a few rows, without a graph; all tensors of one dtype."""
    B, T, H, V = h_BTHV.shape
    (M, E), dtype = (B * T, H * V), h_BTHV.dtype
    h_BTHV, gain_E, (z_BTE, z_step) = h_BTHV.contiguous(), gain_E.contiguous(), even_rows(z_BTE)
    skip_E, c_BTE, c_step = skip_in_rows(skip_E, c_BTE)
    bias_E = None if bias_E is None else bias_E.contiguous()
    y_BTE = h_BTHV.new_empty((B, T, E))
    arguments = (
        M, H, V, address(h_BTHV, M * E, dtype), *addresses(E, gain_E, bias_E, skip_E, dtype=dtype),
        address(c_BTE, M * E, dtype, gaps=True), c_step, address(z_BTE, M * E, dtype, gaps=True), z_step,
        address(y_BTE, M * E, dtype), dtype is torch.bfloat16, activation == "silu",
    )  # fmt: skip
    gated_norm_rows(*arguments, eps)
    if (tape := recording()) is not None:
        tape.keep((h_BTHV, gain_E, z_BTE, skip_E, c_BTE, bias_E))
        tape.add(gated_norm_piece, *arguments, double_as_long(eps))
    return y_BTE
