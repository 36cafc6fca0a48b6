"""sLSTM over a whole sequence on a CPU: forward and backward scans, products outside as GEMMs.

Only the sequential part is in the scans: h_{t-1} R and the gates forward, d(gates) R^T and the gates backward. The
forward saves what the gates' derivatives need, so the backward computes no exponentials, and the gradient of R is one
batched GEMM after the scan. An item is a head with some rows of the batch.

B batch  T time  H heads  K, V head width  G gates: i, f, z, o  J all gates of a head (4 V)  M rows and steps
"""

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from exlstm.ops.common import detached_contiguous, rows_for_kernels, upcast, without_autocast
from exlstm.ops.derivatives import once_differentiable
from exlstm.ops.gates import InputGate
from exlstm.ops.slstm.numba.scan import Sizes, State, StateGradients, backward_scan, forward_scan
from exlstm.ops.slstm.numba.variants import saved_size, variant_of
from exlstm.ops.slstm.reference import CellActivation, SLSTMState
from exlstm.runtime.cpu.launch import launch, microseconds, threads_for
from exlstm.runtime.cpu.memory import LINE, LINE_NUMBERS, SIZE
from exlstm.runtime.cpu.tile import PANEL
from exlstm.runtime.internals import fills_memory_with_nan
from exlstm.runtime.tracing import has_gradients

MAX_ROWS = 8  # of a tile: R of a head is read once for all of them, from the second cache or from memory
LARGE_NUMEL = 1 << 20  # from there on large pages are worth asking for


class Plan(NamedTuple):
    """How a scan is cut: items, rows of the batch in each, its cost, and whether R is packed."""

    items: int
    rows: int
    cost: float
    packed: bool


def plan(B: int, T: int, H: int, V: int, r_nbytes: int) -> Plan:
    """Whole batches where the heads alone keep all threads busy; else tiles of them, of no fewer than four rows."""
    cost = microseconds(bytes=T * r_nbytes, flops=B * T * H * V * (120 + 3 * V))
    threads, tiles = threads_for(cost), max(1, -(-B // 4))
    most = tiles
    for n in range(max(1, -(-B // MAX_ROWS)), most + 1):
        if H * n % threads == 0:
            tiles = n
            break
    rows = -(-most // tiles) * 4
    return Plan(H * -(-B // rows), rows, cost, T * B >= 6)


class Scan(torch.autograd.Function):
    """(x, R, h, c, n, m) -> (h of every step, last h, c, n, m); all float32, R possibly of width 0: no mixing."""

    @staticmethod
    def forward(ctx: Any, x_BTHGV: Tensor, r_HKGV: Tensor, h_BHV: Tensor, c_BHV: Tensor, n_BHV: Tensor, m_BHV: Tensor,
                reset_BT: Tensor | None, lengths_B: Tensor, variant: int) -> tuple[Tensor, ...]:  # fmt: skip
        B, T, H, _, V = x_BTHGV.shape
        past_HBTV = aligned_empty(H, B, T, V)
        saved_E = aligned_empty(numbers_saved(B, T, H, V, variant))
        state = SLSTMState(h_BHV, c_BHV, n_BHV, m_BHV)
        out = run(x_BTHGV, r_HKGV, state, reset_BT, lengths_B, variant, past_HBTV, saved_E)
        ctx.save_for_backward(r_HKGV, past_HBTV, saved_E, reset_BT, lengths_B)
        ctx.variant = variant
        ctx.mark_non_differentiable(out[4])
        return out

    @staticmethod
    @once_differentiable("slstm", "numba")
    def backward(ctx: Any, dh_BTHV: Tensor, *dlast: Tensor) -> tuple[Tensor | None, ...]:
        r_HKGV, past_HBTV, saved_E, reset_BT, lengths_B = ctx.saved_tensors
        B, T, H, V = dh_BTHV.shape
        dx_BTHGV = aligned_empty(B, T, H, 4, V)
        dfirst = [aligned_empty(B, H, V) for _ in range(3)]
        dh_BTHV, r_HKGV, *dstate = detached_contiguous(dh_BTHV, r_HKGV, *dlast[:3])
        items, rows, cost, _ = plan(B, T, H, V, r_HKGV.nbytes)
        launch(
            backward_scan, items, sizes_of(rows, dh_BTHV, r_HKGV, ctx.variant), dh_BTHV, r_HKGV, reset_BT, lengths_B,
            StateGradients(*dstate), dx_BTHGV, StateGradients(*dfirst), saved_E, ctx.variant, cost=cost,
        )  # fmt: skip
        dr_HKGV = None
        if ctx.needs_input_grad[1]:
            past_HMV, dx_HMJ = past_HBTV.flatten(1, 2), dx_BTHGV.view(B * T, H, 4 * V).transpose(0, 1)
            with without_autocast(dx_BTHGV):
                dr_HKGV = (past_HMV.mT @ dx_HMJ).view_as(r_HKGV) if r_HKGV.shape[1] else torch.zeros_like(r_HKGV)
        return dx_BTHGV, dr_HKGV, *dfirst, None, None, None, None


def aligned_empty(*shape: int) -> Tensor:
    """An uninitialized tensor, aligned for BLAS.

    NumPy asks for much memory in large pages, which the system hands out several times faster, but aligns it less.
    """
    count = math.prod(shape)
    if count < LARGE_NUMEL:
        return torch.empty(shape)
    room = np.empty(count + LINE_NUMBERS, dtype=np.float32)
    start = -room.ctypes.data % LINE // SIZE
    x = torch.from_numpy(room[start : start + count]).view(shape)
    if fills_memory_with_nan():
        x.fill_(torch.nan)
    return x


def sizes_of(rows: int, h_BTHV: Tensor, r_HKGV: Tensor, variant: int) -> Sizes:
    """The `Sizes` of a scan."""
    (B, T, H, V), K = h_BTHV.shape, r_HKGV.shape[1]
    return Sizes(rows, K > 0, B, T, H, K, V, numbers_saved(B, T, H, V, variant))


def numbers_saved(B: int, T: int, H: int, V: int, variant: int) -> int:
    """How many numbers the forward saves for the backward, beside the past."""
    return B * T * H * -(-V // PANEL) * saved_size(variant)


def run(x_BTHGV: Tensor, r_HKGV: Tensor, state: SLSTMState, reset_BT: Tensor | None, lengths_B: Tensor,
        variant: int, past_HBTV: Tensor | None = None, saved_E: Tensor | None = None
        ) -> tuple[Tensor, ...]:  # fmt: skip
    """The forward scan; R may be bfloat16. past_HBTV and saved_E are filled for the backward, if there is to be one."""
    B, T, H, _, V = x_BTHGV.shape
    h_BTHV = aligned_empty(B, T, H, V)
    last = [aligned_empty(B, H, V) for _ in range(4)]
    x_BTHGV, r_HKGV, *first = detached_contiguous(x_BTHGV, r_HKGV, *state)
    items, rows, cost, packed = plan(B, T, H, V, r_HKGV.nbytes)
    launch(
        forward_scan, items, sizes_of(rows, h_BTHV, r_HKGV, variant), packed, x_BTHGV, r_HKGV, reset_BT, lengths_B,
        variant, State(*first), h_BTHV, State(*last), past_HBTV, saved_E, r_HKGV.dtype is torch.bfloat16, cost=cost,
    )  # fmt: skip
    return h_BTHV, *last


def slstm_numba(
    x_BTHGV: Tensor, r_HKGV: Tensor | None, state: SLSTMState, /,
    *, reset_BT: Tensor | None, lengths_B: Tensor | None, exp_forget: bool, input_gate: InputGate = "exp",
    cell_activation: CellActivation = "tanh", normalize: bool = True,
) -> tuple[Tensor, SLSTMState]:  # fmt: skip
    """The same numbers as `slstm_recurrent`, in float32."""
    _, _, H, _, V = x_BTHGV.shape
    dtype, x_BTHGV = x_BTHGV.dtype, upcast(x_BTHGV)
    r_HKGV = x_BTHGV.new_empty(H, 0, 4, V) if r_HKGV is None else r_HKGV
    variant = variant_of(input_gate, exp_forget, normalize, cell_activation)
    rows = *rows_for_kernels(x_BTHGV, reset_BT, lengths_B), variant
    if has_gradients((x_BTHGV, r_HKGV, *state)):
        h_BTHV, *last = Scan.apply(x_BTHGV, upcast(r_HKGV), *state, *rows)  # type: ignore[no-untyped-call]
    else:
        # R in bfloat16 is read as it is: half as many bytes, which are what decoding waits for
        h_BTHV, *last = run(x_BTHGV, r_HKGV if r_HKGV.dtype is torch.bfloat16 else upcast(r_HKGV), state, *rows)
    return h_BTHV.to(dtype), SLSTMState(*last)
