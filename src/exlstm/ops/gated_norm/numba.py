"""`gated_norm` on a CPU in one pass forward and one backward.

A head of one step at a time stays in a core's first cache while short loops go over it. The backward saves nothing but
the inputs. c and z may be slices of wider tensors, so they come with the distance between rows.

B batch  T time  M both  H heads  V head width  E heads merged (H V)  N tiles of rows  P vectors with a gradient: g, s
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy import float32
from torch import Tensor

from exlstm.ops.derivatives import twice_differentiable
from exlstm.ops.gated_norm.reference import NormOptions, gated_norm_torch
from exlstm.ops.norm.numba import norm_backward, normalize
from exlstm.runtime.cpu.bfloat16 import read_numbers, write_numbers
from exlstm.runtime.cpu.jit import helper
from exlstm.runtime.cpu.kernel import F32, F32Rows, FloatRows, Floats, kernel
from exlstm.runtime.cpu.launch import launch, microseconds
from exlstm.runtime.cpu.loops import Array, add, add_product, multiply
from exlstm.runtime.cpu.math import sigmoid
from exlstm.runtime.cpu.memory import address_of, clear, copy, hold, tensor_at
from exlstm.runtime.tracing import has_gradients

TILE_ROWS = 32  # of partial sums of the gradients of g and s: fixed, so that threads change nothing
FLOPS = 40  # forward, for each number of h


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


class Inputs(NamedTuple):
    """Inputs of forward and backward. Rows of c and z begin `*_step` numbers after one another."""

    B: int
    T: int
    H: int
    V: int
    E: int
    h_BTHV: Floats
    gain_E: Floats
    bias_E: Floats
    skip_E: Floats
    c_BTE: FloatRows
    c_step: int
    z_BTE: FloatRows
    z_step: int


class NormKind(NamedTuple):
    """`NormOptions` as kernels read them."""

    silu: bool
    rms: bool
    gate_first: bool
    eps: float


@kernel()
def forward_rows(first: int, last: int, x: Inputs, y_BTE: F32, kind: NormKind) -> None:
    """Rows of y."""
    V, E = x.V, x.E
    work = np.empty(V, float32)
    p_V = tensor_at(address_of(work), V, float32)
    for m in range(first, last):
        for e in range(0, E, V):
            h, y_V = x.h_BTHV + 4 * (m * E + e), tensor_at(y_BTE + 4 * (m * E + e), V, float32)
            z_V = tensor_at(x.z_BTE + 4 * (m * x.z_step + e), V, float32)
            if kind.gate_first:
                copy(address_of(p_V), h, V)
                gate(z_V, kind.silu, p_V)
                normalize(p_V, kind.rms, kind.eps, y_V)
            else:
                normalize(tensor_at(h, V, float32), kind.rms, kind.eps, y_V)
            multiply(y_V, tensor_at(x.gain_E + 4 * e, V, float32), y_V)
            if x.bias_E != 0:
                add(tensor_at(x.bias_E + 4 * e, V, float32), y_V)
            if x.skip_E != 0:
                c_V = tensor_at(x.c_BTE + 4 * (m * x.c_step + e), V, float32)
                add_product(tensor_at(x.skip_E + 4 * e, V, float32), c_V, y_V)
            if not kind.gate_first:
                gate(z_V, kind.silu, y_V)
    hold(work)


class Gradients(NamedTuple):
    """Gradients that the backward fills. dgs: of g and s, db: of b, the partial sums of every tile."""

    N: int
    dh_BTHV: F32
    dz_BTE: F32
    dc_BTE: F32
    dgs_NPE: F32
    db_NE: F32


class HeadRow(NamedTuple):
    """Addresses of one head at one step: inputs, gradients, and two vectors to work with, n and p."""

    V: int
    h: int
    g: int
    b: int
    s: int
    c: int
    z: int
    dy: int
    dh: int
    dz: int
    dc: int
    n: int
    p: int


@helper()
def add_gradients(row: HeadRow, dg: int, ds: int, db: int, kind: NormKind) -> None:
    """The gradients of a head whose gate comes after the norm; those of g, s and b are added."""
    V = row.V
    n_V, p_V, g_V = tensor_at(row.n, V, float32), tensor_at(row.p, V, float32), tensor_at(row.g, V, float32)
    s_V, c_V, dz_V = tensor_at(row.s, V, float32), tensor_at(row.c, V, float32), tensor_at(row.dz, V, float32)
    factor = normalize(tensor_at(row.h, V, float32), kind.rms, kind.eps, n_V)
    multiply(n_V, g_V, p_V)
    if row.b != 0:
        add(tensor_at(row.b, V, float32), p_V)
    if row.s != 0:
        add_product(s_V, c_V, p_V)
    gate_backward(tensor_at(row.z, V, float32), kind.silu, tensor_at(row.dy, V, float32), p_V, dz_V)
    add_product(p_V, n_V, tensor_at(dg, V, float32))
    if row.b != 0:
        add(p_V, tensor_at(db, V, float32))
    if row.s != 0:
        add_product(p_V, c_V, tensor_at(ds, V, float32))
        multiply(p_V, s_V, tensor_at(row.dc, V, float32))
    multiply(p_V, g_V, p_V)
    norm_backward(n_V, factor, kind.rms, p_V, tensor_at(row.dh, V, float32))


@helper()
def add_gradients_gate_first(row: HeadRow, dg: int, db: int, kind: NormKind) -> None:
    """The gradients of a head whose gate is inside the norm; those of g and b are added."""
    V = row.V
    n_V, p_V, dy_V = tensor_at(row.n, V, float32), tensor_at(row.p, V, float32), tensor_at(row.dy, V, float32)
    z_V, dh_V, dz_V = tensor_at(row.z, V, float32), tensor_at(row.dh, V, float32), tensor_at(row.dz, V, float32)
    copy(row.p, row.h, V)
    gate(z_V, kind.silu, p_V)
    factor = normalize(p_V, kind.rms, kind.eps, n_V)
    add_product(dy_V, n_V, tensor_at(dg, V, float32))
    if row.b != 0:
        add(dy_V, tensor_at(db, V, float32))
    multiply(dy_V, tensor_at(row.g, V, float32), dz_V)
    norm_backward(n_V, factor, kind.rms, dz_V, p_V)
    copy(row.dh, row.h, V)
    gate_backward(z_V, kind.silu, p_V, dh_V, dz_V)


@kernel(P=2)
def backward_tiles(
    first: int, last: int, x: Inputs, dy_BTE: F32Rows, dy_step: int, out: Gradients, kind: NormKind
) -> None:
    """Tiles of the gradients."""
    M, V, E = x.B * x.T, x.V, x.E
    work = np.empty(2 * V, float32)
    for tile in range(first, last):
        dg, ds, db = out.dgs_NPE + 8 * tile * E, out.dgs_NPE + 4 * (2 * tile + 1) * E, out.db_NE + 4 * tile * E
        clear(dg, 2 * E)
        if x.bias_E != 0:
            clear(db, E)
        for m in range(tile * TILE_ROWS, min((tile + 1) * TILE_ROWS, M)):
            for e in range(0, E, V):
                here = 4 * (m * E + e)
                b, s = x.bias_E + 4 * e if x.bias_E != 0 else 0, x.skip_E + 4 * e if x.skip_E != 0 else 0
                c, z = x.c_BTE + 4 * (m * x.c_step + e), x.z_BTE + 4 * (m * x.z_step + e)
                gradients = dy_BTE + 4 * (m * dy_step + e), out.dh_BTHV + here, out.dz_BTE + here, out.dc_BTE + here
                inputs = x.h_BTHV + here, x.gain_E + 4 * e, b, s, c, z
                row = HeadRow(V, *inputs, *gradients, address_of(work), address_of(work) + 4 * V)
                if kind.gate_first:
                    add_gradients_gate_first(row, dg + 4 * e, db + 4 * e, kind)
                else:
                    add_gradients(row, dg + 4 * e, ds + 4 * e, db + 4 * e, kind)
    hold(work)


def even_rows(x_BTE: Tensor) -> tuple[Tensor, int]:
    """`x` and the distance between its rows in numbers; a copy of `x` if the distances differ."""
    T = x_BTE.shape[1]
    to_row, step, to_number = x_BTE.stride()
    if to_number == 1 and (to_row == T * step or x_BTE.shape[0] == 1):
        return x_BTE, step
    return x_BTE.contiguous(), x_BTE.shape[2]


def inputs_of(
    h_BTHV: Tensor, gain_E: Tensor, z_BTE: Tensor, skip_E: Tensor | None, c_BTE: Tensor | None, bias_E: Tensor | None
) -> Inputs:
    """The `Inputs` of the kernels; tensors are copied where a kernel cannot read their strides."""
    B, T, H, V = h_BTHV.shape
    c, c_step = (None, 0) if c_BTE is None else even_rows(c_BTE)
    gain, bias, skip = (None if x is None else x.contiguous() for x in (gain_E, bias_E, skip_E))
    return Inputs(B, T, H, V, H * V, h_BTHV.contiguous(), gain, bias, skip, c, c_step, *even_rows(z_BTE))


def cost_of(h_BTHV: Tensor, passes: int) -> float:
    """The cost of `passes` tensors like h, read or written, and of their arithmetic."""
    return microseconds(bytes=passes * h_BTHV.nbytes, flops=passes * FLOPS * h_BTHV.numel() // 4)


def kind_of(options: NormOptions) -> NormKind:
    """The options as kernels read them."""
    return NormKind(options.activation == "silu", options.norm == "rms", options.gate_first, options.eps)


def forward(h_BTHV: Tensor, gain_E: Tensor, z_BTE: Tensor, skip_E: Tensor | None, c_BTE: Tensor | None,
            bias_E: Tensor | None, options: NormOptions) -> Tensor:  # fmt: skip
    """y, without a graph."""
    B, T, H, V = h_BTHV.shape
    y_BTE = torch.empty((B, T, H * V), dtype=torch.float32)
    inputs = inputs_of(h_BTHV, gain_E, z_BTE, skip_E, c_BTE, bias_E)
    launch(forward_rows, B * T, inputs, y_BTE, kind_of(options), cost=cost_of(h_BTHV, 4))
    return y_BTE


class GatedNorm(torch.autograd.Function):
    """`forward` with gradients."""

    @staticmethod
    def forward(ctx: Any, h_BTHV: Tensor, gain_E: Tensor, z_BTE: Tensor, skip_E: Tensor | None, c_BTE: Tensor | None,
                bias_E: Tensor | None, options: NormOptions) -> Tensor:  # fmt: skip
        ctx.save_for_backward(h_BTHV, gain_E, z_BTE, skip_E, c_BTE, bias_E)
        ctx.options = {"options": options}
        return forward(h_BTHV, gain_E, z_BTE, skip_E, c_BTE, bias_E, options)

    @staticmethod
    @twice_differentiable(gated_norm_torch)
    def backward(ctx: Any, dy_BTE: Tensor) -> tuple[Tensor | None, ...]:
        h_BTHV, _, _, skip_E, c_BTE, bias_E = saved = ctx.saved_tensors
        B, T, H, V = h_BTHV.shape
        E, N = H * V, -(-B * T // TILE_ROWS)
        dh_BTHV, dz_BTE = torch.empty((B, T, H, V)), torch.empty((B, T, E))
        dc_BTE = None if c_BTE is None else torch.empty_like(dz_BTE)
        dgs_NPE = torch.empty((N, 2, E))
        db_NE = None if bias_E is None else torch.empty((N, E))
        gradients, kind = Gradients(N, dh_BTHV, dz_BTE, dc_BTE, dgs_NPE, db_NE), kind_of(ctx.options["options"])
        launch(backward_tiles, N, inputs_of(*saved), *even_rows(dy_BTE), gradients, kind, cost=cost_of(h_BTHV, 8))
        dgain_E, dskip_E = dgs_NPE.sum(0)
        dbias_E = None if db_NE is None else db_NE.sum(0)
        return dh_BTHV, dgain_E, dz_BTE, None if skip_E is None else dskip_E, dc_BTE, dbias_E, None


def gated_norm_numba(
    h_BTHV: Tensor, gain_E: Tensor, z_BTE: Tensor, skip_E: Tensor | None, c_BTE: Tensor | None,
    bias_E: Tensor | None, options: NormOptions,
) -> Tensor:  # fmt: skip
    """The numbers of `gated_norm_torch`, in float32."""
    arguments = (h_BTHV, gain_E, z_BTE, skip_E, c_BTE, bias_E)
    if has_gradients(arguments):
        y_BTE: Tensor = GatedNorm.apply(*arguments, options)  # type: ignore[no-untyped-call]
        return y_BTE
    return forward(*arguments, options)


@kernel()
def small_rows(first: int, last: int, x: Inputs, y_BTE: Floats, bf16: bool, kind: NormKind) -> None:
    """Rows of y."""
    size, V, E = (2 if bf16 else 4), x.V, x.E
    gain, skip, h, y = np.empty(E, float32), np.empty(E, float32), np.empty(E, float32), np.empty(E, float32)
    other = np.empty(E, float32)
    read_numbers(x.gain_E, bf16, gain)
    if x.skip_E != 0:
        read_numbers(x.skip_E, bf16, skip)
    for m in range(first, last):
        read_numbers(x.h_BTHV + size * m * E, bf16, h)
        if kind.gate_first:
            read_numbers(x.z_BTE + size * m * x.z_step, bf16, other)
            gate(other, kind.silu, h)
        for e in range(0, E, V):
            normalize(h[e : e + V], kind.rms, kind.eps, y[e : e + V])
        multiply(y, gain, y)
        if x.bias_E != 0:
            read_numbers(x.bias_E, bf16, other)
            add(other, y)
        if x.skip_E != 0:
            read_numbers(x.c_BTE + size * m * x.c_step, bf16, other)
            add_product(skip, other, y)
        if not kind.gate_first:
            read_numbers(x.z_BTE + size * m * x.z_step, bf16, other)
            gate(other, kind.silu, y)
        write_numbers(y, y_BTE + size * m * E, bf16)


def gated_norm_small(h_BTHV: Tensor, gain_E: Tensor, z_BTE: Tensor, skip_E: Tensor | None, c_BTE: Tensor | None,
                     bias_E: Tensor | None, options: NormOptions) -> Tensor:  # fmt: skip
    """`gated_norm` of a small input, without a graph; all tensors of one dtype."""
    B, T, H, V = h_BTHV.shape
    y_BTE, inputs = h_BTHV.new_empty((B, T, H * V)), inputs_of(h_BTHV, gain_E, z_BTE, skip_E, c_BTE, bias_E)
    bf16 = h_BTHV.dtype is torch.bfloat16
    launch(small_rows, B * T, inputs, y_BTE, bf16, kind_of(options), cost=cost_of(h_BTHV, 4))
    return y_BTE
