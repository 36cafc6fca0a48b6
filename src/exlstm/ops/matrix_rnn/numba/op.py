"""Recurrent nets with a matrix memory over a whole sequence on a CPU: scans forward and backward.

B batch  T time  H heads  K key width  U, V value width  N spans
"""

from typing import Any

import torch
from torch import Tensor

from exlstm.ops.common import detached_contiguous, upcast
from exlstm.ops.derivatives import once_differentiable
from exlstm.ops.matrix_rnn.numba.scan import SPAN, Gradients, Rows, backward_scan, forward_scan
from exlstm.ops.matrix_rnn.numba.step import Inputs, Sizes
from exlstm.ops.matrix_rnn.reference import MatrixRNNState
from exlstm.runtime.cpu.launch import launch, microseconds
from exlstm.runtime.tracing import has_gradients


def cost_of(sizes: Sizes, products: int) -> float:
    """The cost of a scan with so many products of the matrix with R in a step."""
    flops = 40 + 2 * products * sizes.V * sizes.mixing
    return microseconds(flops=sizes.B * sizes.T * sizes.H * sizes.K * sizes.V * flops)


def forward(
    q_BTHK: Tensor,
    k_BTHK: Tensor,
    v_BTHV: Tensor,
    f_BTH: Tensor | None,
    r_HUV: Tensor | None,
    h_BHKV: Tensor,
    rows: Rows,
    N: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:
    """o of every step, the matrix after the last one, and that before each of N spans; without a graph."""
    q_BTHK, k_BTHK, v_BTHV, h_BHKV = detached_contiguous(q_BTHK, k_BTHK, v_BTHV, h_BHKV)
    f_BTH, r_HUV = (None if x is None else x.detach().contiguous() for x in (f_BTH, r_HUV))
    (B, T, H, V), K = v_BTHV.shape, q_BTHK.shape[3]
    sizes = Sizes(B, T, H, K, V, V, N, f_BTH is not None, r_HUV is not None)
    o_BTHV, after_BHKV, starts_NBHKV = map(v_BTHV.new_empty, (v_BTHV.shape, h_BHKV.shape, (N, B, H, K, V)))
    inputs = Inputs(q_BTHK, k_BTHK, v_BTHV, f_BTH)
    launch(
        forward_scan,
        B * H,
        sizes,
        inputs,
        r_HUV,
        rows,
        h_BHKV,
        o_BTHV,
        after_BHKV,
        starts_NBHKV,
        cost=cost_of(sizes, 1),
    )
    return o_BTHV, after_BHKV, starts_NBHKV


class MatrixRNNScan(torch.autograd.Function):
    """(q, k, v, f, R, matrix) -> (o of every step, matrix after); all float32, f and R possibly None."""

    @staticmethod
    def forward(
        ctx: Any,
        q_BTHK: Tensor,
        k_BTHK: Tensor,
        v_BTHV: Tensor,
        f_BTH: Tensor | None,
        r_HUV: Tensor | None,
        h_BHKV: Tensor,
        rows: Rows,
    ) -> tuple[Tensor, Tensor]:
        N = -(-v_BTHV.shape[1] // SPAN)
        o_BTHV, after_BHKV, starts_NBHKV = forward(q_BTHK, k_BTHK, v_BTHV, f_BTH, r_HUV, h_BHKV, rows, N)
        ctx.save_for_backward(q_BTHK, k_BTHK, v_BTHV, f_BTH, r_HUV, starts_NBHKV)
        ctx.rows = rows
        return o_BTHV, after_BHKV

    @staticmethod
    @once_differentiable("matrix_rnn", "numba")
    def backward(ctx: Any, do_BTHV: Tensor, dafter_BHKV: Tensor) -> tuple[Tensor | None, ...]:
        *inputs, starts_NBHKV = ctx.saved_tensors
        q_BTHK, k_BTHK, v_BTHV, f_BTH, r_HUV = (None if x is None else x.detach().contiguous() for x in inputs)
        do_BTHV, dafter_BHKV = detached_contiguous(do_BTHV, dafter_BHKV)
        (N, B, H, K, V), T = starts_NBHKV.shape, do_BTHV.shape[1]
        sizes = Sizes(B, T, H, K, V, V, N, f_BTH is not None, r_HUV is not None)
        given = Inputs(q_BTHK, k_BTHK, v_BTHV, f_BTH)
        found = Inputs(*(None if x is None else torch.empty_like(x) for x in given))
        dr_BHUV = None if r_HUV is None else r_HUV.new_empty(B, H, V, V)
        gradients = Gradients(do_BTHV, dafter_BHKV, dr_BHUV, torch.empty_like(dafter_BHKV))
        scan = sizes, given, r_HUV, ctx.rows, starts_NBHKV, found, gradients
        launch(backward_scan, B * H, *scan, cost=cost_of(sizes, 3))
        return *found, None if dr_BHUV is None else dr_BHUV.sum(0), gradients.dbefore_BHKV, None


def matrix_rnn_numba(
    q_BTHK: Tensor,
    k_BTHK: Tensor,
    v_BTHV: Tensor,
    f_BTH: Tensor | None,
    r_HUV: Tensor | None,
    state: MatrixRNNState,
    /,
    *,
    reset_BT: Tensor | None,
    lengths_B: Tensor | None,
) -> tuple[Tensor, MatrixRNNState]:
    """The numbers of `matrix_rnn_recurrent`, in float32."""
    q_BTHK, k_BTHK, v_BTHV = upcast(q_BTHK), upcast(k_BTHK), upcast(v_BTHV)
    f_BTH, r_HUV = (None if x is None else upcast(x) for x in (f_BTH, r_HUV))
    inputs = q_BTHK, k_BTHK, v_BTHV, f_BTH, r_HUV, state.h_BHKV
    rows = Rows(*(None if x is None else x.contiguous() for x in (reset_BT, lengths_B)))
    if has_gradients(inputs):
        o_BTHV, after_BHKV = MatrixRNNScan.apply(*inputs, rows)  # type: ignore[no-untyped-call]
    else:
        o_BTHV, after_BHKV, _ = forward(*inputs, rows)
    return o_BTHV, MatrixRNNState(after_BHKV)
