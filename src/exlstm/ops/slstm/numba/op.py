"""sLSTM over a whole sequence on a CPU: forward and backward scans, products outside as GEMMs.

Only the sequential part is in the scans: h_{t-1} R and the gates forward, d(gates) R^T and the gates backward. The
forward saves what the gates' derivatives need, so the backward computes no exponentials, and the gradient of R is one
batched GEMM after the scan. An item is a head with some rows of the batch.

B batch  T time  H heads  K, V head width  G gates: i, f, z, o  J all gates of a head (4 V)  M rows and steps
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from exlstm.ops.common import detached_contiguous, rows_for_kernels, upcast, without_autocast
from exlstm.ops.derivatives import once_differentiable
from exlstm.ops.gates import InputGate
from exlstm.ops.slstm.numba.inputs import NOTHING, Inputs, Steps
from exlstm.ops.slstm.numba.recurrent import Recurrent
from exlstm.ops.slstm.numba.scan import (
    NOT_KEPT,
    Call,
    Kept,
    Sizes,
    State,
    StateGradients,
    backward_scan,
    forward_scan,
)
from exlstm.ops.slstm.numba.variants import saved_size, variant_of
from exlstm.ops.slstm.reference import CellActivation, SLSTMState
from exlstm.runtime.capture import active
from exlstm.runtime.cpu.barrier import NO_BARRIER, launch_shared, new_barrier
from exlstm.runtime.cpu.kernel import Kernel
from exlstm.runtime.cpu.launch import launch, microseconds, threads_for
from exlstm.runtime.cpu.memory import LINE, LINE_NUMBERS, SIZE
from exlstm.runtime.cpu.tile import PANEL
from exlstm.runtime.internals import fills_memory_with_nan
from exlstm.runtime.tracing import has_gradients

MAX_ROWS = 8  # of a tile: R of a head is read once for all of them, from the second cache or from memory
# Threads that share an item wait for each other after every step, for about a microsecond. They do so in sequences of
# wide heads that would not keep all threads busy, or whose R a core's second cache does not hold.
SHARED_UNITS, SHARED_STEPS, SHARED_ROWS, CACHE = 192, 4, 64, 3 << 19
LARGE_NUMEL = 1 << 20  # from there on large pages are worth asking for


class Plan(NamedTuple):
    """How a scan is cut: items, rows of the batch in each, its cost, and whether R is packed.

    sharing: threads that share every item, or 1: each thread has items of its own.
    """

    items: int
    rows: int
    cost: float
    packed: bool
    sharing: int


def plan(B: int, T: int, H: int, V: int, r_nbytes: int, inputs: int = 0) -> Plan:
    """Whole batches where the heads alone keep all threads busy; else tiles of them, of no fewer than four rows.

    inputs: of a head, that are projected in the scan.
    """
    # R is read from a cache, which is several times as fast as memory
    cost = microseconds(bytes=T * r_nbytes // 8, flops=B * T * H * V * (120 + 3 * V + inputs))
    threads, tiles = threads_for(cost), max(1, -(-B // 4))
    alone = H * tiles % threads == 0 and 4 * V * V * SIZE <= CACHE
    if V >= SHARED_UNITS and T >= SHARED_STEPS and not alone and active() is None:
        rows = min(B, SHARED_ROWS)
        return Plan(H * -(-B // rows), rows, cost, True, min(threads, -(-V // PANEL)))
    most = tiles
    for n in range(max(1, -(-B // MAX_ROWS)), most + 1):
        if H * n % threads == 0:
            tiles = n
            break
    rows = -(-most // tiles) * 4
    return Plan(H * -(-B // rows), rows, cost, T * B >= 6, 1)


def run_scan(kernel: Kernel, plan: Plan, sizes: Sizes, *arguments: Any) -> None:
    """Runs a scan as planned."""
    if plan.sharing == 1:
        launch(kernel, plan.items, sizes, NO_BARRIER, *arguments, cost=plan.cost)
    else:
        barrier = new_barrier()
        launch_shared(kernel, plan.sharing, barrier, sizes, barrier, *arguments)


class Scan(torch.autograd.Function):
    """(x, R, h, c, n, m, call) -> (h of every step, last h, c, n, m), in float32. R may have width 0: no mixing."""

    @staticmethod
    def forward(ctx: Any, x_BTHGV: Tensor, r_HKGV: Tensor, *state_and_call: Any) -> tuple[Tensor, ...]:
        *state, call = state_and_call
        T = x_BTHGV.shape[1]
        kept = room_for((len(x_BTHGV), T, *state[0].shape[1:]), call.variant)
        out = run(x_BTHGV, r_HKGV, SLSTMState(*state), call, T=T, kept=kept)
        remember(ctx, r_HKGV, kept, call, out)
        return out

    @staticmethod
    @once_differentiable("slstm", "numba")
    def backward(ctx: Any, dh_BTHV: Tensor, *dlast: Tensor) -> tuple[Tensor | None, ...]:
        needs_r = ctx.needs_input_grad[1]
        dx_BTHGV, dr_HKGV, dfirst = scan_gradients(ctx.saved_tensors, ctx.variant, needs_r, dh_BTHV, dlast)
        return dx_BTHGV, dr_HKGV, *dfirst, None, None


def remember(ctx: Any, r_HKGV: Tensor, kept: Kept, call: Call, out: Sequence[Tensor], *inputs: Tensor | None) -> None:
    """Saves what `scan_gradients` reads, and tensors that a projection needs besides. The last m has no gradient."""
    ctx.save_for_backward(r_HKGV, *kept, call.reset_BT, call.lengths_B, *inputs)
    ctx.variant = call.variant
    ctx.mark_non_differentiable(out[4])


def room_for(sizes: tuple[int, int, int, int], variant: int) -> Kept:
    """Room for the backward of a scan. sizes: B, T, H and V."""
    B, T, H, V = sizes
    return Kept(aligned_empty(H, B, T, V), aligned_empty(numbers_saved(B, T, H, V, variant)))


def scan_gradients(
    saved: Sequence[Tensor], variant: int, needs_r: bool, dh_BTHV: Tensor, dlast: Sequence[Tensor]
) -> tuple[Tensor, Tensor | None, list[Tensor]]:
    """Gradients of the pre-activations, of R if needed, and of the first h, c, n.

    saved: R, the past and the residuals, resets and lengths.
    """
    B, _, H, V = dh_BTHV.shape
    dfirst = [aligned_empty(B, H, V) for _ in range(3)]
    last, first = (StateGradients(h, c, n, H * V, 2) for h, c, n in (detached_contiguous(*dlast[:3]), dfirst))
    dx_BTHGV = run_backward(saved, variant, dh_BTHV, last, first)
    return dx_BTHGV, r_gradient(saved[0], saved[1], dx_BTHGV) if needs_r else None, dfirst


def run_backward(
    saved: Sequence[Tensor], variant: int, dh_BTHV: Tensor, dlast: StateGradients, dfirst: StateGradients
) -> Tensor:
    """Gradients of the pre-activations; fills those of the first state. saved: as in `scan_gradients`."""
    r_HKGV, _, saved_E, reset_BT, lengths_B = saved
    B, T, H, V = dh_BTHV.shape
    dh_BTHV, dx_BTHGV = dh_BTHV.detach(), aligned_empty(B, T, H, 4, V)
    if not has_whole_steps(dh_BTHV):
        dh_BTHV = dh_BTHV.contiguous()
    cut = plan(B, T, H, V, r_HKGV.nbytes)
    inputs = dh_BTHV, steps_of(dh_BTHV), strided(r_HKGV), Call(reset_BT, lengths_B, variant), dlast
    sizes = sizes_of(cut.rows, dh_BTHV, r_HKGV, variant)
    run_scan(backward_scan, cut, sizes, *inputs, dx_BTHGV, dfirst, saved_E)
    return dx_BTHGV


def r_gradient(r_HKGV: Tensor, past_HBTV: Tensor, dx_BTHGV: Tensor) -> Tensor:
    """The gradient of R, from h before every step and the gradients of the pre-activations."""
    H, K, _, V = r_HKGV.shape
    if K == 0:
        return torch.zeros_like(r_HKGV)
    past_HMV, dx_HMJ = past_HBTV.flatten(1, 2), dx_BTHGV.view(-1, H, 4 * V).transpose(0, 1)
    with without_autocast(dx_BTHGV):
        return (past_HMV.mT @ dx_HMJ).view_as(r_HKGV)


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


def has_whole_steps(x: Tensor) -> bool:
    """Whether the numbers of a step of x [B, T, ...] follow one another."""
    numbers = 1
    for size, apart in zip(x.shape[:1:-1], x.stride()[:1:-1], strict=True):
        if size > 1 and apart != numbers:
            return False
        numbers *= size
    return x.stride(-1) == 1


def steps_of(x: Tensor) -> Steps:
    """Where steps of x [B, T, ...] are."""
    return Steps(*x.stride()[:2])


def strided(r_HKGV: Tensor) -> Recurrent:
    """R as kernels read it."""
    return Recurrent(r_HKGV.detach(), *r_HKGV.stride())


def run(
    x_BTHGV: Tensor | None,
    r_HKGV: Tensor,
    state: SLSTMState,
    call: Call,
    *,
    T: int,
    kept: Kept = NOT_KEPT,
    inputs: Inputs = NOTHING,
) -> tuple[Tensor, ...]:
    """The forward scan; R may be bfloat16. x is None where pre-activations are projected from inputs."""
    B, H, V = state.h_BHV.shape
    last = [aligned_empty(B, H, V) for _ in range(4)]
    x_BTHGV = None if x_BTHGV is None else detached_contiguous(x_BTHGV)[0]
    r_HKGV, *first = detached_contiguous(r_HKGV, *state)
    before, after = (State(h, c, n, m, H * V, 3) for h, c, n, m in (first, last))
    return run_forward(x_BTHGV, r_HKGV, before, after, call, T=T, kept=kept, inputs=inputs), *last


def run_forward(
    x_BTHGV: Tensor | None,
    r_HKGV: Tensor,
    first: State,
    last: State,
    call: Call,
    *,
    T: int,
    kept: Kept = NOT_KEPT,
    inputs: Inputs = NOTHING,
) -> Tensor:
    """h of every step of the forward scan; fills the last state."""
    B, H, V = first.h_BHV.shape
    by_steps = inputs.places.row < inputs.places.step  # the result lies as the inputs do
    h_BTHV = aligned_empty(T, B, H, V).transpose(0, 1) if by_steps else aligned_empty(B, T, H, V)
    cut = plan(B, T, H, V, r_HKGV.nbytes, inputs.N)
    packed = cut.packed or not r_HKGV.is_contiguous()  # in place only rows of all gates are read
    sizes = sizes_of(cut.rows, h_BTHV, r_HKGV, call.variant)
    read, written = (packed, x_BTHGV, inputs, strided(r_HKGV), call, first), (h_BTHV, steps_of(h_BTHV), last, kept)
    run_scan(forward_scan, cut, sizes, *read, *written, r_HKGV.dtype is torch.bfloat16)
    return h_BTHV


def readable(r_HKGV: Tensor) -> Tensor:
    """R as the forward scan reads it. In bfloat16 it has half as many bytes, which are what decoding waits for."""
    return r_HKGV if r_HKGV.dtype is torch.bfloat16 else upcast(r_HKGV)


def slstm_numba(
    x_BTHGV: Tensor, r_HKGV: Tensor | None, state: SLSTMState, /,
    *, reset_BT: Tensor | None, lengths_B: Tensor | None, exp_forget: bool, input_gate: InputGate = "exp",
    cell_activation: CellActivation = "tanh", normalize: bool = True,
) -> tuple[Tensor, SLSTMState]:  # fmt: skip
    """The same numbers as `slstm_recurrent`, in float32."""
    _, T, H, _, V = x_BTHGV.shape
    dtype, x_BTHGV = x_BTHGV.dtype, upcast(x_BTHGV)
    r_HKGV = x_BTHGV.new_empty(H, 0, 4, V) if r_HKGV is None else r_HKGV
    call = Call(
        *rows_for_kernels(x_BTHGV, reset_BT, lengths_B), variant_of(input_gate, exp_forget, normalize, cell_activation)
    )
    if has_gradients((x_BTHGV, r_HKGV, *state)):
        h_BTHV, *last = Scan.apply(x_BTHGV, upcast(r_HKGV), *state, call)  # type: ignore[no-untyped-call]
    else:
        h_BTHV, *last = run(x_BTHGV, readable(r_HKGV), state, call, T=T)
    return h_BTHV.to(dtype), SLSTMState(*last)
