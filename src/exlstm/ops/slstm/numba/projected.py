"""sLSTM with its input projection, on a CPU: the pre-activations are never written to memory.

B batch  T time  D width of an input  H heads  V head width  G gates: i, f, z, o  N inputs of a head
K rows of R  P panels  Q columns of all panels
"""

from typing import Any

import torch
from torch import Tensor

from exlstm.ops.common import detached_contiguous, rows_for_kernels, upcast
from exlstm.ops.derivatives import once_differentiable
from exlstm.ops.gates import InputGate
from exlstm.ops.slstm.numba.inputs import (
    COLUMNS,
    ROWS,
    Inputs,
    InputSizes,
    Places,
    input_gradients,
    pack_inputs,
    weight_gradients,
)
from exlstm.ops.slstm.numba.op import (
    aligned_empty,
    has_whole_steps,
    plan,
    readable,
    remember,
    room_for,
    run,
    scan_gradients,
    steps_of,
)
from exlstm.ops.slstm.numba.scan import NOT_KEPT, Call, Kept
from exlstm.ops.slstm.numba.variants import variant_of
from exlstm.ops.slstm.projection import Projection
from exlstm.ops.slstm.reference import CellActivation, SLSTMState
from exlstm.runtime.cpu.launch import launch, microseconds
from exlstm.runtime.cpu.tile import PANEL
from exlstm.runtime.tracing import has_gradients

SCRATCH = 1 << 16  # numbers of pre-activations at a time: a quarter of a core's second cache
MOST_STEPS = 64


class ProjectedScan(torch.autograd.Function):
    """(the tensors of `Projection`, R, h, c, n, m, call) -> as `Scan`."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, ...]:
        x, r_HKGV, state, call = Projection(*arguments[:4]), arguments[4], SLSTMState(*arguments[5:9]), arguments[9]
        kept = room_for((*x.if_BTD.shape[:2], *state.h_BHV.shape[1:]), call.variant)
        out = run_projected(x, r_HKGV, state, call, kept)
        remember(ctx, r_HKGV, kept, call, out, *x[:3])
        return out

    @staticmethod
    @once_differentiable("slstm", "numba")
    def backward(ctx: Any, dh_BTHV: Tensor, *dlast: Tensor) -> tuple[Tensor | None, ...]:
        *saved, if_BTD, zo_BTD, w_HGVN = ctx.saved_tensors
        needs_if, needs_zo, needs_w, needs_b, needs_r = ctx.needs_input_grad[:5]
        draw_BTHGV, dr_HKGV, dfirst = scan_gradients(saved, ctx.variant, needs_r, dh_BTHV, dlast)
        x = Projection(if_BTD, zo_BTD, w_HGVN, None)
        dinputs = gradients_of_inputs(x, draw_BTHGV) if needs_if or needs_zo else (None, None)
        dweights = gradients_of_weights(x, draw_BTHGV, saved[4]) if needs_w or needs_b else (None, None)
        return *dinputs, dweights[0], dweights[1] if needs_b else None, dr_HKGV, *dfirst, None, None


def apart(D: int, H: int, N: int) -> int:
    """Numbers from the inputs of a head to those of the next: 0 where each head reads the whole input."""
    return N if H > 1 and N * H == D else 0


def placed(x: Projection) -> tuple[Tensor, Places, Tensor | None]:
    """W and b without a graph, and where their rows are. Heads and gates may be in any order, rows are contiguous."""
    w_HGVN, b_HGV = x.w_HGVN.detach(), None if x.b_HGV is None else x.b_HGV.detach()
    N = w_HGVN.shape[3]
    head, gate, row, number = w_HGVN.stride()
    places = Places(head // N, gate // N)
    if (row, number) == (N, 1) and (b_HGV is None or b_HGV.stride() == (*places, 1)):
        return w_HGVN, places, b_HGV
    w_HGVN, b_HGV = w_HGVN.contiguous(), None if b_HGV is None else b_HGV.contiguous()
    return w_HGVN, Places(4 * w_HGVN.shape[2], w_HGVN.shape[2]), b_HGV


def inputs_of(x: Projection) -> tuple[Tensor, Tensor]:
    """Both inputs without a graph, as kernels read them. Where they are one, rows and steps may lie in any order."""
    if x.zo_BTD is not None:
        if_BTD, zo_BTD = detached_contiguous(x.if_BTD, x.zo_BTD)
        return if_BTD, zo_BTD
    if_BTD = x.if_BTD.detach()
    if_BTD = if_BTD if has_whole_steps(if_BTD) else if_BTD.contiguous()
    return if_BTD, if_BTD


def sizes_of(x: Projection) -> InputSizes:
    """Sizes of a projection's gradients."""
    (B, T, D), (H, _, V, N) = x.if_BTD.shape, x.w_HGVN.shape
    return InputSizes(B, T, D, H, V, N, apart(D, H, N), x.zo_BTD is None)


def gradients_of_inputs(x: Projection, draw_BTHGV: Tensor) -> tuple[Tensor, Tensor | None]:
    """Gradients of both inputs, from those of the pre-activations."""
    sizes, w_HGVN, places, _ = sizes_of(x), *placed(x)
    dif_BTD = aligned_empty(*x.if_BTD.shape)
    dzo_BTD = None if sizes.shared else aligned_empty(*x.if_BTD.shape)
    items, cost = -(-sizes.B * sizes.T // ROWS), microseconds(bytes=draw_BTHGV.nbytes * (1 + sizes.N // 32))
    launch(input_gradients, items, sizes, places, draw_BTHGV, w_HGVN, dif_BTD, dzo_BTD, cost=cost)
    return dif_BTD, dzo_BTD


def gradients_of_weights(x: Projection, draw_BTHGV: Tensor, lengths_B: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of W and b, from those of the pre-activations."""
    sizes = sizes_of(x)
    if_BTD, zo_BTD = inputs_of(x)
    w_HGVN, places, _ = placed(x)
    dw_HGVN = torch.empty_like(w_HGVN)  # in the same order
    db_HGV = torch.empty_strided(w_HGVN.shape[:3], (*places, 1))
    if not len(if_BTD):  # the kernel writes at the first row
        return dw_HGVN.zero_(), db_HGV.zero_()
    items, cost = 2 * sizes.H * -(-2 * sizes.V // COLUMNS), microseconds(bytes=draw_BTHGV.nbytes * (1 + sizes.N // 32))
    inputs = steps_of(if_BTD), if_BTD, zo_BTD
    launch(weight_gradients, items, sizes, places, lengths_B, draw_BTHGV, *inputs, dw_HGVN, db_HGV, cost=cost)
    return dw_HGVN, db_HGV


def packed(x: Projection, rows: int) -> Inputs:
    """Inputs of a scan, with W packed. rows: of the batch, in an item."""
    (if_BTD, zo_BTD), (w_HGVN, places, b_HGV) = inputs_of(x), placed(x)
    (H, _, V, N), D, units = w_HGVN.shape, if_BTD.shape[2], -(-x.w_HGVN.shape[2] // PANEL)
    Q = H * units * COLUMNS
    panels_P, bias_Q = aligned_empty(Q * N), torch.empty(Q)
    cost = microseconds(bytes=2 * panels_P.nbytes)
    launch(pack_inputs, H * units, H, V, N, Q, places, w_HGVN, b_HGV, panels_P, bias_Q, cost=cost)
    steps = max(4, min(MOST_STEPS, SCRATCH // (max(1, rows) * units * COLUMNS) // 4 * 4))
    return Inputs(D, steps_of(if_BTD), N, apart(D, H, N), steps, Q * N, Q, if_BTD, zo_BTD, panels_P, bias_Q)


def run_projected(
    x: Projection, r_HKGV: Tensor, state: SLSTMState, call: Call, kept: Kept = NOT_KEPT
) -> tuple[Tensor, ...]:
    """The forward scan of inputs."""
    (B, T, _), (H, _, V, N) = x.if_BTD.shape, x.w_HGVN.shape
    rows = min(B, plan(B, T, H, V, r_HKGV.nbytes, N).rows)
    return run(None, r_HKGV, state, call, T=T, kept=kept, inputs=packed(x, rows))


def projected_slstm_numba(
    x: Projection,
    r_HKGV: Tensor | None,
    state: SLSTMState,
    /,
    *,
    reset_BT: Tensor | None,
    lengths_B: Tensor | None,
    exp_forget: bool,
    input_gate: InputGate,
    cell_activation: CellActivation,
    normalize: bool,
) -> tuple[Tensor, SLSTMState]:
    """The same numbers as the projection and `slstm`, in float32."""
    H, _, V, _ = x.w_HGVN.shape
    r_HKGV = x.w_HGVN.new_empty(H, 0, 4, V) if r_HKGV is None else r_HKGV
    variant = variant_of(input_gate, exp_forget, normalize, cell_activation)
    call = Call(*rows_for_kernels(x.if_BTD, reset_BT, lengths_B), variant)
    if has_gradients((*x, r_HKGV, *state)):
        h_BTHV, *last = ProjectedScan.apply(*x, upcast(r_HKGV), *state, call)  # type: ignore[no-untyped-call]
    else:
        h_BTHV, *last = run_projected(x, readable(r_HKGV), state, call)
    return h_BTHV, SLSTMState(*last)
