"""A layer of sLSTM cells on a CPU from weights in the order of torch, with a gradient for each: a Function per call.

Rows of W, R and b are in the order (gate, head, unit). c of a row is c, n and m side by side. The layer of the LSTM is
another cell in the same scan.

B batch  T time  D width of the input  H heads  K width of a head  M of all heads  J gates of all heads (4 M)
G gates: i, f, z, o  V head width  S width of c (3 M, of the LSTM M)
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from exlstm.ops.common import detached_contiguous, rows_for_kernels
from exlstm.ops.derivatives import once_differentiable
from exlstm.ops.layer import Layer, contiguous
from exlstm.ops.layer.numba.step import StepKernels, one_step
from exlstm.ops.slstm.numba.one_step import step_backward, step_forward
from exlstm.ops.slstm.numba.op import (
    plan,
    r_gradient,
    room_for,
    run_backward,
    run_forward,
)
from exlstm.ops.slstm.numba.projected import gradients_of_inputs, gradients_of_weights, packed
from exlstm.ops.slstm.numba.scan import NOT_KEPT, Call, Kept, State, StateGradients
from exlstm.ops.slstm.numba.variants import LSTM as LSTM_VARIANT
from exlstm.ops.slstm.numba.variants import saved_size, variant_of
from exlstm.ops.slstm.projection import as_heads
from exlstm.runtime.tracing import has_gradients

Result = tuple[Tensor, Tensor, Tensor]  # outputs, and h and c after the last step


class LayerCell(NamedTuple):
    """A cell with the gates of the sLSTM: how a sequence is computed with a graph and without, and a single step."""

    function: Any  # an autograd Function of `forward` and `backward`
    variant: int
    step: Callable[..., Result]


def forward(ctx: Any, *arguments: Any) -> Result:
    """(x [B, T, D], the tensors of `Layer`, h [B, M], c [B, S], call) -> h of every step, and the last h and c."""
    x_BTD, layer, h_BM, c_BS, call = arguments[0], Layer(*arguments[1:5]), *arguments[5:]
    B, T, _ = x_BTD.shape
    kept = room_for((B, T, layer.heads, layer.r_JK.shape[1]), call.variant)
    ctx.save_for_backward(*layer[:2], *kept, call.reset_BT, call.lengths_B, x_BTD)
    ctx.variant = call.variant
    return run_scan(x_BTD, layer, h_BM, c_BS, call, kept)


def backward(ctx: Any, dy_BTM: Tensor, dh_BM: Tensor, dc_BS: Tensor) -> tuple[Tensor | None, ...]:
    """Gradients of the arguments of `forward`."""
    w_JD, r_JK, *kept, x_BTD = ctx.saved_tensors
    needs_x, needs_w, needs_r, needs_b, needs_more, *_ = ctx.needs_input_grad
    (B, T, _), (J, K) = dy_BTM.shape, r_JK.shape
    x, r_HKGV = as_heads(x_BTD, Layer(w_JD, r_JK, None, None))
    dh_BM, dc_BS = detached_contiguous(dh_BM, dc_BS)
    dfirst_BM, dfirst_c_BS = torch.empty_like(dh_BM), torch.zeros_like(dc_BS)
    last, first = (
        StateGradients(each.h_BHV, each.c_BHV, each.n_BHV, each.apart, min(each.parts, 2))
        for each in (by_heads(dh_BM, dc_BS, K), by_heads(dfirst_BM, dfirst_c_BS, K))
    )
    draw_BTHGV = run_backward([r_HKGV, *kept], ctx.variant, dy_BTM.reshape(B, T, J // (4 * K), K), last, first)
    dx_BTD = gradients_of_inputs(x, draw_BTHGV)[0] if needs_x else None
    dw_JD = db_J = dr_JK = None
    if needs_w or needs_b or needs_more:
        dw_HGVD, db_HGV = gradients_of_weights(x, draw_BTHGV, kept[3])
        dw_JD, db_J = dw_HGVD.transpose(0, 1).view(J, -1), db_HGV.transpose(0, 1).view(J)
    if needs_r:
        dr_JK = r_gradient(r_HKGV, kept[0], draw_BTHGV).permute(2, 0, 3, 1).reshape(J, K)
    return (
        dx_BTD,
        dw_JD,
        dr_JK,
        db_J if needs_b else None,
        db_J if needs_more else None,
        dfirst_BM,
        dfirst_c_BS,
        None,
    )


class SLSTMLayer(torch.autograd.Function):
    """See `forward` and `backward`."""

    forward = staticmethod(forward)
    backward = staticmethod(once_differentiable("slstm", "numba")(backward))


def by_heads(h_BM: Tensor, c_BS: Tensor, K: int) -> State:
    """Views of h and of the parts of c, one or three, by heads of K units."""
    B, M = h_BM.shape
    h_BHV = h_BM.view(B, M // K, K)
    if c_BS.shape[1] == M:
        c_BHV = c_BS.view(B, M // K, K)
        return State(h_BHV, c_BHV, c_BHV, c_BHV, M, 1)  # n and m are not read
    c_BHV, n_BHV, m_BHV = c_BS.view(B, 3, M // K, K).unbind(1)
    return State(h_BHV, c_BHV, n_BHV, m_BHV, 3 * M, 3)


def run_scan(x_BTD: Tensor, layer: Layer, h_BM: Tensor, c_BS: Tensor, call: Call, kept: Kept = NOT_KEPT) -> Result:
    """Outputs, and h and c after the last step."""
    (B, T, _), M, (_, K) = x_BTD.shape, h_BM.shape[1], layer.r_JK.shape
    x, r_HKGV = as_heads(x_BTD, layer)
    rows = min(B, plan(B, T, M // K, K, r_HKGV.nbytes, x.w_HGVN.shape[3]).rows)
    last_BM, last_c_BS = torch.empty_like(h_BM), torch.empty_like(c_BS)
    first, last = by_heads(h_BM, c_BS, K), by_heads(last_BM, last_c_BS, K)
    y_BTHV = run_forward(None, r_HKGV, first, last, call, T=T, kept=kept, inputs=packed(x, rows))
    return y_BTHV.flatten(2), last_BM, last_c_BS


def run_layer(
    cell: LayerCell,
    x_BTD: Tensor,
    layer: Layer,
    h_BM: Tensor,
    c_BS: Tensor,
    reset_BT: Tensor | None,
    lengths_B: Tensor | None,
) -> Result:
    """A sequence through a layer: outputs, and h and c after the last step."""
    if x_BTD.shape[1] == 1 and lengths_B is None:
        return cell.step(x_BTD, layer, h_BM, c_BS, reset_BT)
    graph = has_gradients((x_BTD, *layer, h_BM, c_BS))
    h_BM, c_BS = h_BM.contiguous(), c_BS.contiguous()
    layer = contiguous(layer)
    call = Call(*rows_for_kernels(x_BTD, reset_BT, lengths_B), cell.variant)
    if graph:
        y_BTM, h_BM, c_BS = cell.function.apply(x_BTD, *layer, h_BM, c_BS, call)
        return y_BTM, h_BM, c_BS
    return run_scan(x_BTD, layer, h_BM, c_BS, call)


class LSTMLayer(torch.autograd.Function):
    """See `forward` and `backward`."""

    forward = staticmethod(forward)
    backward = staticmethod(once_differentiable("lstm", "numba")(backward))


def layer_cell(op: str, function: Any, variant: int) -> LayerCell:
    """The cell of a variant, with the op's name in errors."""
    step = one_step(StepKernels(op, step_forward, step_backward, variant, saved_size(variant)))
    return LayerCell(function, variant, step)


SLSTM = layer_cell("slstm", SLSTMLayer, variant_of("exp", False, True, "tanh"))
LSTM = layer_cell("lstm", LSTMLayer, LSTM_VARIANT)
