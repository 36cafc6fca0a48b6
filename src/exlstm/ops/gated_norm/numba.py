"""`gated_norm` on a CPU in one pass forward and one backward, compiled by Numba.

A head of one step at a time stays in a core's first cache while short loops go over it; each of them touches few
arrays, so that LLVM can tell these apart. The backward keeps nothing but the inputs. Tensors are handed over as
addresses, with the distance of their rows where these may be part of longer ones: a call costs a few microseconds.

B batch  T time  M both  H heads  V head width  E heads merged (H V)  N tiles of rows  P vectors with a gradient: g, s
"""

from typing import Any

import numpy as np
import torch
from numpy import float32
from torch import Tensor

from exlstm.ops.derivatives import twice
from exlstm.ops.gated_norm.reference import GateActivation, gated_norm_torch
from exlstm.ops.norm.numba import norm_backward, standardise
from exlstm.runtime.addresses import address, addresses
from exlstm.runtime.capture import recording
from exlstm.runtime.cpu.bfloat16 import read_numbers, write_numbers
from exlstm.runtime.cpu.jit import compiled, helper
from exlstm.runtime.cpu.loops import Array, add, add_product, multiply
from exlstm.runtime.cpu.math import sigmoid
from exlstm.runtime.cpu.memory import address_of, clear, double_as_long, double_at, keep, long_at, tensor_at
from exlstm.runtime.threads import share_out

TILE = 32  # rows whose gradients of g and s are summed before they join the others: the same for any number of threads
THREAD_NUMBERS = 1 << 16  # so much of h takes a thread longer than waking another


@helper()
def gate(z_V: Array, silu: bool, y_V: Array) -> None:
    """y *= a(z)"""
    if silu:
        for j in range(z_V.size):
            y_V[j] *= z_V[j] * sigmoid(z_V[j])
    else:
        for j in range(z_V.size):
            y_V[j] *= sigmoid(z_V[j])


@helper()
def gate_backward(z_V: Array, silu: bool, dy_V: Array, p_V: Array, dz_V: Array) -> None:
    """y = p a(z): fills dz, and p becomes its own gradient."""
    one = float32(1.0)
    if silu:
        for j in range(z_V.size):
            s = sigmoid(z_V[j])
            a = z_V[j] * s
            dz_V[j] = dy_V[j] * p_V[j] * (s + a * (one - s))
            p_V[j] = dy_V[j] * a
    else:
        for j in range(z_V.size):
            s = sigmoid(z_V[j])
            dz_V[j] = dy_V[j] * p_V[j] * (s * (one - s))
            p_V[j] = dy_V[j] * s


@compiled
def forward_rows(first: int, last: int, H: int, V: int, h: int, g: int, b: int, s: int, c: int, c_step: int,
                 z: int, z_step: int, y: int, silu: bool, eps: float) -> None:  # fmt: skip
    """Rows first to last - 1 of y. Single letters in small are addresses, of float32; b: 0 for no bias; s, c: 0 for no
    skip.

    A row of c and z begins c_step and z_step numbers after the one before it; those of h and y follow each other.
    """
    E = H * V
    for m in range(first, last):
        for e in range(0, E, V):
            y_V = tensor_at(y + 4 * (m * E + e), V, float32)
            standardise(tensor_at(h + 4 * (m * E + e), V, float32), eps, y_V)
            multiply(y_V, tensor_at(g + 4 * e, V, float32), y_V)
            if b != 0:
                add(tensor_at(b + 4 * e, V, float32), y_V)
            if s != 0:
                c_V = tensor_at(c + 4 * (m * c_step + e), V, float32)
                add_product(tensor_at(s + 4 * e, V, float32), c_V, y_V)
            gate(tensor_at(z + 4 * (m * z_step + e), V, float32), silu, y_V)


@compiled
def backward_rows(first: int, last: int, M: int, H: int, V: int, h: int, g: int, b: int, s: int, c: int, c_step: int,
                  z: int, z_step: int, dy: int, dy_step: int, dh: int, dz: int, dc: int, dgs: int, db: int, silu: bool,
                  eps: float) -> None:  # fmt: skip
    """Tiles first to last - 1 of the gradients; addresses as in `forward_rows`. dgs: of g and s, for each tile; db: of
    b."""  # fmt: skip
    E = H * V
    work = np.empty(2 * V, float32)
    n_V = tensor_at(address_of(work), V, float32)
    p_V = tensor_at(address_of(work) + 4 * V, V, float32)
    for tile in range(first, last):
        dg, ds = dgs + 8 * tile * E, dgs + 4 * (2 * tile + 1) * E
        clear(dg, 2 * E)
        if b != 0:
            clear(db + 4 * tile * E, E)
        for m in range(tile * TILE, min((tile + 1) * TILE, M)):
            for e in range(0, E, V):
                here = 4 * (m * E + e)
                g_V, s_V = tensor_at(g + 4 * e, V, float32), tensor_at(s + 4 * e, V, float32)
                c_V = tensor_at(c + 4 * (m * c_step + e), V, float32)
                z_V = tensor_at(z + 4 * (m * z_step + e), V, float32)
                factor = standardise(tensor_at(h + here, V, float32), eps, n_V)
                multiply(n_V, g_V, p_V)
                if b != 0:
                    add(tensor_at(b + 4 * e, V, float32), p_V)
                if s != 0:
                    add_product(s_V, c_V, p_V)
                dy_V = tensor_at(dy + 4 * (m * dy_step + e), V, float32)
                gate_backward(z_V, silu, dy_V, p_V, tensor_at(dz + here, V, float32))
                add_product(p_V, n_V, tensor_at(dg + 4 * e, V, float32))
                if b != 0:
                    add(p_V, tensor_at(db + 4 * (tile * E + e), V, float32))
                if s != 0:
                    add_product(p_V, c_V, tensor_at(ds + 4 * e, V, float32))
                    multiply(p_V, s_V, tensor_at(dc + here, V, float32))
                multiply(p_V, g_V, p_V)
                norm_backward(n_V, factor, p_V, tensor_at(dh + here, V, float32))
    keep(work)


def even_rows(x_BTE: Tensor) -> tuple[Tensor, int]:
    """`x` and how many numbers apart its rows are; a copy of it if they are not at equal distances."""
    T = x_BTE.shape[1]
    to_row, step, to_number = x_BTE.stride()
    if to_number == 1 and (to_row == T * step or x_BTE.shape[0] == 1):
        return x_BTE, step
    return x_BTE.contiguous(), x_BTE.shape[2]


def skip_in_rows(skip_E: Tensor | None, c_BTE: Tensor | None) -> tuple[Tensor | None, Tensor | None, int]:
    """The same for c; the vector in order. None, None, 0 if there are none."""
    if skip_E is None or c_BTE is None:
        return None, None, 0
    return skip_E.contiguous(), *even_rows(c_BTE)


def read_by_both(count: int, h_BTHV: Tensor, gain_E: Tensor, bias_E: Tensor | None, skip_E: Tensor | None,
                 c_BTE: Tensor | None) -> tuple[int, ...]:  # fmt: skip
    """The addresses that the forward and the backward begin with; h and c have `count` numbers."""
    E = h_BTHV.shape[2] * h_BTHV.shape[3]
    return address(h_BTHV, count), *addresses(E, gain_E, bias_E, skip_E), address(c_BTE, count, gaps=True)


def threads_for(numbers: int) -> int:
    """How many threads so many numbers are worth."""
    return 1 + numbers // THREAD_NUMBERS


def forward(h_BTHV: Tensor, gain_E: Tensor, z_BTE: Tensor, skip_E: Tensor | None, c_BTE: Tensor | None,
            bias_E: Tensor | None, silu: bool, eps: float) -> Tensor:  # fmt: skip
    """y, without a graph."""
    B, T, H, V = h_BTHV.shape
    h_BTHV, gain_E, (z_BTE, z_step) = h_BTHV.contiguous(), gain_E.contiguous(), even_rows(z_BTE)
    skip_E, c_BTE, c_step = skip_in_rows(skip_E, c_BTE)
    bias_E = None if bias_E is None else bias_E.contiguous()
    y_BTE, count = torch.empty((B, T, H * V), dtype=torch.float32), B * T * H * V
    arguments = (
        H, V, *read_by_both(count, h_BTHV, gain_E, bias_E, skip_E, c_BTE), c_step, address(z_BTE, count, gaps=True),
        z_step, address(y_BTE, count), silu, eps,
    )  # fmt: skip
    threads = threads_for(B * T * H * V)
    if threads == 1:
        forward_rows(0, B * T, *arguments)
    else:
        share_out(forward_rows, B * T, *arguments, threads=threads)
    return y_BTE


class GatedNorm(torch.autograd.Function):
    """`forward` with gradients."""

    @staticmethod
    def forward(ctx: Any, h_BTHV: Tensor, gain_E: Tensor, z_BTE: Tensor, skip_E: Tensor | None, c_BTE: Tensor | None,
                bias_E: Tensor | None, activation: GateActivation, eps: float) -> Tensor:  # fmt: skip
        ctx.save_for_backward(h_BTHV, gain_E, z_BTE, skip_E, c_BTE, bias_E)
        ctx.options = {"activation": activation, "eps": eps}
        return forward(h_BTHV, gain_E, z_BTE, skip_E, c_BTE, bias_E, activation == "silu", eps)

    @staticmethod
    @twice(gated_norm_torch)
    def backward(ctx: Any, dy_BTE: Tensor) -> tuple[Tensor | None, ...]:
        h_BTHV, gain_E, z_BTE, skip_E, c_BTE, bias_E = ctx.saved_tensors
        B, T, H, V = h_BTHV.shape
        E, N, count = H * V, -(-B * T // TILE), h_BTHV.numel()
        h_BTHV, gain_E = h_BTHV.contiguous(), gain_E.contiguous()
        (z_BTE, z_step), (dy_BTE, dy_step) = even_rows(z_BTE), even_rows(dy_BTE)
        skip_E, c_BTE, c_step = skip_in_rows(skip_E, c_BTE)
        dh_BTHV, dz_BTE = torch.empty_like(h_BTHV), torch.empty((B, T, E), dtype=torch.float32)
        dc_BTE = None if c_BTE is None else torch.empty_like(dz_BTE)
        dgs_NPE = torch.empty((N, 2, E), dtype=torch.float32)
        bias_E = None if bias_E is None else bias_E.contiguous()
        db_NE = None if bias_E is None else torch.empty((N, E), dtype=torch.float32)
        share_out(
            backward_rows, N, B * T, H, V, *read_by_both(count, h_BTHV, gain_E, bias_E, skip_E, c_BTE), c_step,
            address(z_BTE, count, gaps=True), z_step, address(dy_BTE, count, gaps=True), dy_step,
            *addresses(count, dh_BTHV, dz_BTE, dc_BTE), address(dgs_NPE, N * 2 * E), address(db_NE, N * E),
            ctx.options["activation"] == "silu", ctx.options["eps"], threads=threads_for(count),
        )  # fmt: skip
        dgain_E, dskip_E = dgs_NPE.sum(0)
        dbias_E = None if db_NE is None else db_NE.sum(0)
        return dh_BTHV, dgain_E, dz_BTE, None if skip_E is None else dskip_E, dc_BTE, dbias_E, None, None


def gated_norm_numba(
    h_BTHV: Tensor, gain_E: Tensor, z_BTE: Tensor, skip_E: Tensor | None, c_BTE: Tensor | None,
    bias_E: Tensor | None, activation: GateActivation, eps: float,
) -> Tensor:  # fmt: skip
    """The numbers of `gated_norm_torch`, in float32."""
    arguments = (h_BTHV, gain_E, z_BTE, skip_E, c_BTE, bias_E)
    if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in arguments):
        y_BTE: Tensor = GatedNorm.apply(*arguments, activation, eps)  # type: ignore[no-untyped-call]
        return y_BTE
    return forward(*arguments, activation == "silu", eps)


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
