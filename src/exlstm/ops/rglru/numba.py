"""The gates of the RG-LRU on a CPU: one pass forward and one backward. The backward saves nothing but the inputs.

1 - a^2 is tanh(-log a) (1 + a^2), which keeps its digits where a is near 1.

B batch  T time  E channels  N tiles of steps
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from exlstm.ops.derivatives import once_differentiable
from exlstm.ops.rglru.reference import STEEPEST
from exlstm.runtime.cpu.jit import helper
from exlstm.runtime.cpu.kernel import F32, I64, Bools, kernel
from exlstm.runtime.cpu.launch import launch, microseconds
from exlstm.runtime.cpu.memory import SIZE, byte_at, clear, long_at, put_byte
from exlstm.runtime.cpu.simd import SimdValue, exp, sigmoid, sqrt, tanh, where
from exlstm.runtime.cpu.vectors import Vectors, elementwise
from exlstm.runtime.tracing import has_gradients

TILE_STEPS = 32  # of partial sums of decay's gradient: fixed, so that threads change nothing
FLOPS = 80  # of a channel's step, forward


def root_of(log_a: SimdValue, a: SimdValue) -> SimdValue:
    """sqrt(1 - a^2)"""
    return sqrt(tanh(-log_a) * (1.0 + a * a))


def forward_of(starts: bool) -> Any:
    """A function (count, u, r, i, decay, a, b) for a step that is a row's first, or a later one."""

    @elementwise
    def step(v: Vectors, u: Any, r: Any, i: Any, decay: Any, a: Any, b: Any) -> None:
        log_a = v.load(decay) * sigmoid(v.load(r))
        factor, written = exp(log_a), sigmoid(v.load(i)) * v.load(u)
        v.store(factor, a)
        v.store(written if starts else root_of(log_a, factor) * written, b)

    return step


def backward_of(starts: bool) -> Any:
    """A function (count, u, r, i, decay, da, db, du, dr, di, ddecay); the step's share of ddecay is added."""

    @elementwise
    def step(
        v: Vectors, u: Any, r: Any, i: Any, decay: Any, da: Any, db: Any, du: Any, dr: Any, di: Any, ddecay: Any
    ) -> None:
        gate, write, rate, x, slope = sigmoid(v.load(r)), sigmoid(v.load(i)), v.load(decay), v.load(u), v.load(db)
        log_a = rate * gate
        a = exp(log_a)
        dlog_a = v.load(da) * a
        scaled = slope
        if not starts:
            root = root_of(log_a, a)
            scaled = slope * root
            steep = 0.5 / root
            dlog_a = dlog_a - 2.0 * a * a * (slope * write * x) * where(steep < STEEPEST, steep, STEEPEST)
        v.store(scaled * write, du)
        v.store(scaled * x * write * (1.0 - write), di)
        v.store(dlog_a * rate * gate * (1.0 - gate), dr)
        v.store(v.load(ddecay) + dlog_a * gate, ddecay)

    return step


forward_first, forward_later = forward_of(True), forward_of(False)
backward_first, backward_later = backward_of(True), backward_of(False)


class Inputs(NamedTuple):
    """Inputs of forward and backward."""

    B: int
    T: int
    E: int
    u_BTE: F32
    r_BTE: F32
    i_BTE: F32
    decay_E: F32
    seen_B: Bools
    reset_BT: Bools


@helper()
def is_first(x: Inputs, m: int) -> bool:
    """Whether step m of all rows is its row's first."""
    return bool(
        (x.reset_BT != 0 and byte_at(x.reset_BT + m) != 0) or (m % x.T == 0 and byte_at(x.seen_B + m // x.T) == 0)
    )


@kernel()
def forward_steps(first: int, last: int, x: Inputs, lengths_B: I64, a_BTE: F32, b_BTE: F32, after_B: Bools) -> None:
    """Steps of a and b, and the flags of rows after them."""
    for m in range(first, last):
        here = m * x.E * SIZE
        u, r, i = x.u_BTE + here, x.r_BTE + here, x.i_BTE + here
        if is_first(x, m):
            forward_first(x.E, u, r, i, x.decay_E, a_BTE + here, b_BTE + here)
        else:
            forward_later(x.E, u, r, i, x.decay_E, a_BTE + here, b_BTE + here)
        if m % x.T == 0:
            row = m // x.T
            has_steps = lengths_B == 0 or long_at(lengths_B + 8 * row) > 0
            put_byte(after_B + row, has_steps or byte_at(x.seen_B + row) != 0)


class Gradients(NamedTuple):
    """Gradients of the outputs, and those that the backward fills. ddecay: the share of every tile."""

    N: int
    da_BTE: F32
    db_BTE: F32
    du_BTE: F32
    dr_BTE: F32
    di_BTE: F32
    ddecay_NE: F32


@kernel()
def backward_tiles(first: int, last: int, x: Inputs, g: Gradients) -> None:
    """Tiles of the gradients."""
    for tile in range(first, last):
        share = g.ddecay_NE + tile * x.E * SIZE
        clear(share, x.E)
        for m in range(tile * TILE_STEPS, min((tile + 1) * TILE_STEPS, x.B * x.T)):
            here = m * x.E * SIZE
            u, r, i, da, db = x.u_BTE + here, x.r_BTE + here, x.i_BTE + here, g.da_BTE + here, g.db_BTE + here
            du, dr, di = g.du_BTE + here, g.dr_BTE + here, g.di_BTE + here
            if is_first(x, m):
                backward_first(x.E, u, r, i, x.decay_E, da, db, du, dr, di, share)
            else:
                backward_later(x.E, u, r, i, x.decay_E, da, db, du, dr, di, share)


def inputs_of(
    u_BTE: Tensor, r_BTE: Tensor, i_BTE: Tensor, decay_E: Tensor, seen_B: Tensor, reset_BT: Tensor | None
) -> Inputs:
    """The inputs of both kernels."""
    tensors = (u_BTE, r_BTE, i_BTE, decay_E, seen_B, reset_BT)
    return Inputs(*u_BTE.shape, *(None if x is None else x.contiguous() for x in tensors))


def run_forward(x: Inputs, lengths_B: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """a, b and the flags afterwards, without a graph."""
    a_BTE, b_BTE, after_B = torch.empty_like(x.u_BTE), torch.empty_like(x.u_BTE), torch.empty_like(x.seen_B)
    lengths_B = None if lengths_B is None else lengths_B.contiguous()
    cost = microseconds(bytes=5 * a_BTE.nbytes, flops=FLOPS * a_BTE.numel())
    launch(forward_steps, x.B * x.T, x, lengths_B, a_BTE, b_BTE, after_B, cost=cost)
    return a_BTE, b_BTE, after_B


class RGLRUGates(torch.autograd.Function):
    """(u, r, i, decay, seen, resets, lengths) -> (a, b, seen afterwards), all float32 but for the flags."""

    @staticmethod
    def forward(
        ctx: Any,
        u_BTE: Tensor,
        r_BTE: Tensor,
        i_BTE: Tensor,
        decay_E: Tensor,
        seen_B: Tensor,
        reset_BT: Tensor | None,
        lengths_B: Tensor | None,
    ) -> tuple[Tensor, ...]:
        saved = u_BTE, r_BTE, i_BTE, decay_E, seen_B, reset_BT
        ctx.save_for_backward(*saved)
        a_BTE, b_BTE, after_B = run_forward(inputs_of(*saved), lengths_B)
        ctx.mark_non_differentiable(after_B)
        return a_BTE, b_BTE, after_B

    @staticmethod
    @once_differentiable("rglru_gates", "numba")
    def backward(ctx: Any, da_BTE: Tensor, db_BTE: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        x = inputs_of(*ctx.saved_tensors)
        N, steps = -(-x.B * x.T // TILE_STEPS), [torch.empty_like(x.u_BTE) for _ in range(3)]
        filled = *steps, x.decay_E.new_empty((N, x.E))
        gradients = Gradients(N, da_BTE.contiguous(), db_BTE.contiguous(), *filled)
        cost = microseconds(bytes=8 * da_BTE.nbytes, flops=2 * FLOPS * da_BTE.numel())
        launch(backward_tiles, N, x, gradients, cost=cost)
        return *steps, gradients.ddecay_NE.sum(0), None, None, None


def rglru_gates_numba(
    u_BTE: Tensor,
    r_BTE: Tensor,
    i_BTE: Tensor,
    decay_E: Tensor,
    seen_B: Tensor,
    reset_BT: Tensor | None,
    lengths_B: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The numbers of `rglru_gates_torch`, in float32, and the flags afterwards."""
    inputs = u_BTE, r_BTE, i_BTE, decay_E
    if has_gradients(inputs):
        found: Any = RGLRUGates.apply(*inputs, seen_B, reset_BT, lengths_B)  # type: ignore[no-untyped-call]
        a_BTE, b_BTE, after_B = found
        return a_BTE, b_BTE, after_B
    return run_forward(inputs_of(*inputs, seen_B, reset_BT), lengths_B)
