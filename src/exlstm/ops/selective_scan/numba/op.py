"""The selective scan on a CPU, with its backward.

B batch  T time  E channels  Z states of a channel  Q items of a row  C channels of an item  N chunks
"""

from typing import Any

import torch
from torch import Tensor

from exlstm.ops.common import upcast
from exlstm.ops.derivatives import once_differentiable
from exlstm.ops.selective_scan.numba.scan import Gradients, Inputs, backward_items, forward_items, step_items
from exlstm.ops.selective_scan.numba.tile import TILE
from exlstm.ops.selective_scan.reference import SelectiveScanInputs
from exlstm.runtime.cpu.launch import launch, microseconds
from exlstm.runtime.cpu.memory import SIZE
from exlstm.runtime.tracing import has_gradients

MOST_STEPS, LEAST_STEPS = 64, 16  # of a chunk
CHUNK_STATES = 512  # of a channel in a chunk, about: with 64 channels states and decays are 256 KB


def chunk_length(Z: int) -> int:
    """Steps of a chunk, so that its states and decays fit into the second cache."""
    return max(LEAST_STEPS, min(MOST_STEPS, CHUNK_STATES // Z))


def inputs_of(given: SelectiveScanInputs, reset_BT: Tensor | None, lengths_B: Tensor | None, softplus: bool) -> Inputs:
    """The inputs of all kernels; sequences whose channels are apart are copied."""
    (B, T, E), Z = given.x_BTE.shape, given.a_EZ.shape[1]
    L, Q = chunk_length(Z), -(-E // TILE)
    tensors: list[Any] = []
    for x in given.steps:
        rows = x if x.stride(2) == 1 else x.contiguous()
        tensors += rows, rows.stride(0) * SIZE, rows.stride(1) * SIZE
    rest = given.a_EZ, given.skip_E, given.h_BEZ, reset_BT, lengths_B
    tensors += [None if x is None else x.contiguous() for x in rest]
    return Inputs(B, T, E, Z, Q, -(-T // L), L, *(*tensors, softplus))


def run(x: Inputs, borders_BQNZC: Tensor | None) -> tuple[Tensor, Tensor]:
    """y and the states after the last step; borders: room for the states before every chunk, for a backward."""
    y_BTE, after_BEZ = x.h_BEZ.new_empty(x.B, x.T, x.E), x.h_BEZ.new_empty(x.h_BEZ.shape)
    cost = microseconds(flops=8 * y_BTE.numel() * x.Z)
    if x.T == 1 and borders_BQNZC is None:
        launch(step_items, x.B * x.Q, x, y_BTE, after_BEZ, cost=cost)
    else:
        launch(forward_items, x.B * x.Q, x, y_BTE, after_BEZ, borders_BQNZC, cost=cost)
    return y_BTE, after_BEZ


class SelectiveScan(torch.autograd.Function):
    """(resets, lengths, softplus, those of a `SelectiveScanInputs`) -> (y, h after), all float32."""

    @staticmethod
    def forward(
        ctx: Any, reset_BT: Tensor | None, lengths_B: Tensor | None, softplus: bool, *given: Tensor
    ) -> tuple[Tensor, Tensor]:
        x = inputs_of(SelectiveScanInputs(*given), reset_BT, lengths_B, softplus)
        borders_BQNZC = x.h_BEZ.new_empty(x.B, x.Q, x.N, x.Z, TILE)
        ctx.softplus = softplus
        ctx.save_for_backward(reset_BT, lengths_B, *given, borders_BQNZC)
        return run(x, borders_BQNZC)

    @staticmethod
    @once_differentiable("selective_scan", "numba")
    def backward(ctx: Any, dy_BTE: Tensor, dafter_BEZ: Tensor) -> tuple[Tensor | None, ...]:
        reset_BT, lengths_B, *given, borders_BQNZC = ctx.saved_tensors
        x = inputs_of(SelectiveScanInputs(*given), reset_BT, lengths_B, ctx.softplus)
        steps, states, shares = dy_BTE.shape, dafter_BEZ.shape, (x.B, x.Q, x.T, x.Z)
        shapes = steps, steps, states, shares, shares, states[:2], states
        made = [dy_BTE.new_empty(shape) for shape in shapes]
        g = Gradients(dy_BTE.contiguous(), dafter_BEZ.contiguous(), *made)
        cost = microseconds(flops=20 * dy_BTE.numel() * x.Z)
        launch(backward_items, x.B * x.Q, x, borders_BQNZC, g, cost=cost)
        sums = g.da_BEZ.sum(0), g.db_BQTZ.sum(1), g.dc_BQTZ.sum(1), g.dskip_BE.sum(0)
        return None, None, None, g.dx_BTE, g.ddt_BTE, *sums, g.dh_BEZ


def selective_scan_numba(
    given: SelectiveScanInputs, reset_BT: Tensor | None, lengths_B: Tensor | None, softplus: bool
) -> tuple[Tensor, Tensor]:
    """The numbers of `selective_scan_recurrent`, in float32."""
    given = SelectiveScanInputs(*map(upcast, given))
    if not has_gradients(given):
        return run(inputs_of(given, reset_BT, lengths_B, softplus), None)
    y_BTE, after_BEZ = SelectiveScan.apply(reset_BT, lengths_B, softplus, *given)  # type: ignore[no-untyped-call]
    return y_BTE, after_BEZ
