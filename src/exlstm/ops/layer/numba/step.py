"""One step of a recurrent layer on a CPU with a gradient for each weight: one kernel forward and one backward.

B batch  T time  D width of the input  K width of a head  M of all heads  J gates of all heads (4 M)  S width of c
E numbers saved for the backward
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from exlstm.ops.common import detached_contiguous
from exlstm.ops.derivatives import once_differentiable
from exlstm.ops.layer import Layer, contiguous
from exlstm.ops.layer.numba.pre_activations import MANY, StepInputs, StepSizes
from exlstm.runtime.cpu.kernel import Kernel
from exlstm.runtime.cpu.launch import launch, microseconds
from exlstm.runtime.cpu.tile import PANEL
from exlstm.runtime.tracing import has_gradients

Pair = tuple[Tensor, Tensor]


class StepKernels(NamedTuple):
    """The kernels of a cell's step, see `exlstm.ops.slstm.numba.one_step`. saved: numbers of 16 units of a row."""

    op: str
    forward: Kernel
    backward: Kernel
    variant: int
    saved: int


def sizes_of(x_BD: Tensor, layer: Layer, S: int, saved_E: Tensor | None) -> tuple[StepSizes, int, float]:
    """Sizes of a step, its items and its cost."""
    (B, D), (J, K) = x_BD.shape, layer.r_JK.shape
    M, read = J // 4, J * (D + K)
    sizes = StepSizes(B, D, K, M, J, S, 0 if saved_E is None else saved_E.numel())
    flops = B * (read // 2 if B >= MANY else 2 * read)  # of many rows they are four times as fast
    return sizes, M // K * -(-K // PANEL), microseconds(bytes=4 * read, flops=flops + B * 30 * J)


def run_step(
    kernels: StepKernels,
    x_BD: Tensor,
    layer: Layer,
    h_BM: Tensor,
    c_BS: Tensor,
    reset_B: Tensor | None,
    saved_E: Tensor | None = None,
) -> Pair:
    """h and c after the step. saved_E: filled for the backward."""
    sizes, items, cost = sizes_of(x_BD, layer, c_BS.shape[1], saved_E)
    next_h_BM, next_c_BS = torch.empty_like(h_BM), torch.empty_like(c_BS)
    inputs = StepInputs(x_BD, *layer, reset_B, h_BM)
    launch(kernels.forward, items, sizes, inputs, c_BS, next_h_BM, next_c_BS, saved_E, kernels.variant, cost=cost)
    return next_h_BM, next_c_BS


def step_function(kernels: StepKernels) -> type[torch.autograd.Function]:
    """An autograd Function (x [B, D], the tensors of `Layer`, h [B, M], c [B, S], reset [B] or None) -> h and c."""

    class Step(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *arguments: Any) -> Pair:
            x_BD, layer, h_BM, c_BS, reset_B = arguments[0], Layer(*arguments[1:5]), *arguments[5:]
            J, K = layer.r_JK.shape
            saved_E = torch.empty(len(h_BM) * (J // (4 * K)) * -(-K // PANEL) * kernels.saved)
            ctx.save_for_backward(x_BD, *layer, h_BM, reset_B, saved_E)
            return run_step(kernels, x_BD, layer, h_BM, c_BS, reset_B, saved_E)

        @staticmethod
        @once_differentiable(kernels.op, "numba")
        def backward(ctx: Any, dh_BM: Tensor, dc_BS: Tensor) -> tuple[Tensor | None, ...]:
            dh_BM, dc_BS = detached_contiguous(dh_BM, dc_BS)
            return step_gradients(kernels, ctx.saved_tensors, ctx.needs_input_grad, dh_BM, dc_BS)

    return Step


def one_step(kernels: StepKernels) -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
    """A function (x [B, 1, D], layer, h [B, M], c [B, S], reset [B, 1] or None) -> h [B, 1, M], and h and c after."""
    function: Any = step_function(kernels)

    def run(
        x_BTD: Tensor, layer: Layer, h_BM: Tensor, c_BS: Tensor, reset_BT: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        graph = has_gradients((x_BTD, *layer, h_BM, c_BS))
        B, _, D = x_BTD.shape
        x_BD, h_BM, c_BS = x_BTD.reshape(B, D).contiguous(), h_BM.contiguous(), c_BS.contiguous()
        reset_B = None if reset_BT is None else reset_BT.reshape(B).contiguous()
        if graph:
            h_BM, c_BS = function.apply(x_BD, *contiguous(layer), h_BM, c_BS, reset_B)
        else:
            h_BM, c_BS = run_step(kernels, x_BD, contiguous(layer), h_BM, c_BS, reset_B)
        return h_BM.unsqueeze(1), h_BM, c_BS

    return run


def step_gradients(
    kernels: StepKernels, saved: tuple[Tensor, ...], needed: tuple[bool, ...], dh_BM: Tensor, dc_BS: Tensor
) -> tuple[Tensor | None, ...]:
    """Gradients of the arguments of the Function that are needed, from those of h and c."""
    x_BD, w_JD, r_JK, b_J, more_b_J, h_BM, reset_B, saved_E = saved
    needs_x, needs_w, needs_r, needs_b, needs_more, needs_h, *_ = needed
    sizes, items, cost = sizes_of(x_BD, Layer(w_JD, r_JK, b_J, more_b_J), dc_BS.shape[1], saved_E)
    draw_BJ, dfirst_c_BS = x_BD.new_empty(sizes.B, sizes.J), torch.empty_like(dc_BS)
    given = reset_B, saved_E, dh_BM, dc_BS
    launch(kernels.backward, items, sizes, *given, draw_BJ, dfirst_c_BS, kernels.variant, cost=cost)
    if reset_B is not None:
        h_BM = h_BM.masked_fill(reset_B[:, None], 0)
    db_J = draw_BJ.sum(0) if needs_b or needs_more else None
    dh_first_BM = through_r(draw_BJ, r_JK) if needs_h else None
    if dh_first_BM is not None and reset_B is not None:
        dh_first_BM = dh_first_BM.masked_fill(reset_B[:, None], 0)
    return (
        draw_BJ @ w_JD if needs_x else None,
        draw_BJ.mT @ x_BD if needs_w else None,
        step_r_gradient(draw_BJ, h_BM, r_JK) if needs_r else None,
        db_J if needs_b else None,
        db_J if needs_more else None,
        dh_first_BM,
        dfirst_c_BS,
        None,
    )


def through_r(draw_BJ: Tensor, r_JK: Tensor) -> Tensor:
    """Gradient of h [B, M] from that of the gates."""
    (J, K), B = r_JK.shape, len(draw_BJ)
    if J == 4 * K:
        return draw_BJ @ r_JK
    blocks = J // K  # of all gates, gate by gate
    dh = draw_BJ.view(B, blocks, K).transpose(0, 1) @ r_JK.view(blocks, K, K)
    return dh.view(4, blocks // 4, B, K).sum(0).transpose(0, 1).reshape(B, J // 4)


def step_r_gradient(draw_BJ: Tensor, h_BM: Tensor, r_JK: Tensor) -> Tensor:
    """Gradient of R from that of the gates and from h before the step."""
    (J, K), B = r_JK.shape, len(draw_BJ)
    if J == 4 * K:
        return draw_BJ.mT @ h_BM
    heads_HBK = h_BM.view(B, J // (4 * K), K).transpose(0, 1)
    blocks = torch.cat(4 * [heads_HBK])  # of h for all gates, gate by gate
    return (draw_BJ.view(B, J // K, K).permute(1, 2, 0) @ blocks).view_as(r_JK)
