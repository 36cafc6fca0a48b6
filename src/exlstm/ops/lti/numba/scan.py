"""The diagonal state space on a CPU: one step after another, a block of states in registers at a time.

A channel's time is cut into spans, and these at resets; within such a part time runs inside of a block of states. Saved
for the backward are the inputs and the states before every span; it computes the states of a span again.
A channel costs about as many operations as the products of chunks would, without their matrices.

B batch  T time  E channels  Z states  N spans  I planes (re, im)  P channels that poles are given for (E or 1)
R the same of c  Q the larger one
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy import float32
from torch import Tensor

from exlstm.ops.derivatives import once_differentiable
from exlstm.ops.lti.numba.blocks import VECTOR, WIDTH, advance, advance_two, retreat, retreat_two, store_total
from exlstm.ops.lti.numba.system import System
from exlstm.ops.lti.reference import LTIState, LTISystem
from exlstm.runtime.cpu.jit import helper
from exlstm.runtime.cpu.kernel import F32, I64, Bools, F32Rows, kernel
from exlstm.runtime.cpu.launch import launch, microseconds
from exlstm.runtime.cpu.memory import SIZE, address_of, at, byte_at, clear, copy, hold, long_at, put
from exlstm.runtime.tracing import has_gradients

SPAN = 64  # steps


class Inputs(NamedTuple):
    """Inputs of forward and backward. u_row, u_step: strides in bytes. plane: bytes of Z numbers, in whole blocks."""

    B: int
    T: int
    E: int
    Z: int
    N: int
    I: int  # noqa: E741
    plane: int
    u_BTE: F32Rows
    u_row: int
    u_step: int
    re_BEZ: F32
    im_BEZ: F32
    reset_BT: Bools
    lengths_B: I64


class Work(NamedTuple):
    """Addresses in the memory of one thread: a, c, h and gradients in planes, then numbers and sums of a span."""

    a: int
    c: int
    h: int
    d: int
    u: int
    dy: int
    sums: int
    states: int


@helper()
def work_numbers(plane: int) -> int:
    """Numbers in the memory of `Work`."""
    return 12 * plane // SIZE + 2 * SPAN + SPAN * WIDTH + 4 * (SPAN + 1) * WIDTH


@helper()
def work_at(begin: int, plane: int) -> Work:
    """A `Work` in memory at an address."""
    u = begin + 12 * plane
    sums = u + 2 * SPAN * SIZE
    return Work(
        begin, begin + 2 * plane, begin + 4 * plane, begin + 6 * plane, u, u + SPAN * SIZE, sums, sums + SPAN * VECTOR
    )


@helper()
def get_planes(to: int, re: int, im: int, Z: int, plane: int) -> None:
    """Both planes of one channel's numbers into the memory of a thread."""
    copy(to, re, Z)
    copy(to + plane, im, Z)


@helper()
def gather(to: int, x: int, step: int, count: int) -> None:
    """Numbers `step` bytes after one another."""
    for t in range(count):
        put(to, t, at(x + t * step, 0))


@helper()
def is_reset(x: Inputs, row: int, t: int) -> bool:
    """Whether the row is reset before step t."""
    return bool(x.reset_BT != 0 and byte_at(x.reset_BT + row * x.T + t) != 0)


@helper()
def length_of(x: Inputs, row: int) -> int:
    """Steps of the row."""
    return long_at(x.lengths_B + 8 * row) if x.lengths_B != 0 else x.T


@helper()
def get_system(w: Work, system: System, e: int, plane: int) -> None:
    """a and c of a channel into the memory of a thread."""
    pole, weight, Z = (e if system.P > 1 else 0) * SIZE, (e if system.Q > 1 else 0) * SIZE, system.Z
    get_planes(w.a, system.a_re_PZ + pole * Z, system.a_im_PZ + pole * Z, Z, plane)
    get_planes(w.c, system.c_re_QZ + weight * Z, system.c_im_QZ + weight * Z, Z, plane)


@kernel()
def forward_items(
    first: int,
    last: int,
    x: Inputs,
    system: System,
    y_BTE: F32,
    re_after_BEZ: F32,
    im_after_BEZ: F32,
    borders_BENIZ: F32,
) -> None:
    """Channels of rows: y of all steps, the states after the last one and, where asked for, before every span."""
    Z, plane, step = x.Z, x.plane, x.E * SIZE
    memory = np.empty(work_numbers(plane), float32)
    w = work_at(address_of(memory), plane)
    clear(w.a, 12 * plane // SIZE)
    pairs = plane // (2 * VECTOR) * 2 * VECTOR
    for item in range(first, last):
        row, e = item // x.E, item % x.E
        get_system(w, system, e, plane)
        get_planes(w.h, x.re_BEZ + item * Z * SIZE, x.im_BEZ + item * Z * SIZE, Z, plane)
        skip, length = at(system.skip_R, e if system.R > 1 else 0), length_of(x, row)
        y, u = y_BTE + (row * x.T * x.E + e) * SIZE, x.u_BTE + row * x.u_row + e * SIZE
        for start in range(0, length, SPAN):
            if borders_BENIZ != 0:
                border = borders_BENIZ + (item * x.N + start // SPAN) * 2 * Z * SIZE
                copy(border, w.h, Z)
                copy(border + Z * SIZE, w.h + plane, Z)
            end = min(start + SPAN, length)
            gather(w.u, u + start * x.u_step, x.u_step, end - start)
            begin = start
            while begin < end:
                if is_reset(x, row, begin):
                    clear(w.h, 2 * plane // SIZE)
                stop = begin + 1
                while stop < end and not is_reset(x, row, stop):
                    stop += 1
                clear(w.sums, (stop - begin) * WIDTH)
                part = w.u + (begin - start) * SIZE
                for z in range(0, pairs, 2 * VECTOR):
                    advance_two(stop - begin, plane, part, w.sums, w.h + z, w.a + z, w.c + z)
                for z in range(pairs, plane, VECTOR):
                    advance(stop - begin, plane, part, w.sums, w.h + z, w.a + z, w.c + z)
                for t in range(begin, stop):
                    here = y + t * step
                    store_total(here, w.sums + (t - begin) * VECTOR)
                    put(here, 0, at(here, 0) + skip * at(w.u, t - start))
                begin = stop
        for t in range(length, x.T):
            put(y + t * step, 0, float32(0.0))
        copy(re_after_BEZ + item * Z * SIZE, w.h, Z)
        copy(im_after_BEZ + item * Z * SIZE, w.h + plane, Z)
    hold(memory)


class Gradients(NamedTuple):
    """Gradients that the backward reads and fills. Those of the system are of every channel."""

    dy_BTE: F32
    dre_after_BEZ: F32
    dim_after_BEZ: F32
    du_BTE: F32
    da_re_EZ: F32
    da_im_EZ: F32
    dc_re_EZ: F32
    dc_im_EZ: F32
    dskip_E: F32
    dre_BEZ: F32
    dim_BEZ: F32


@helper()
def span_backward(w: Work, x: Inputs, row: int, start: int, end: int, border: int, skip: float, du: int) -> None:
    """The gradients of a span's steps, from the last part between resets to the first. du: of the row's first step."""
    stop, plane, step = end, x.plane, x.E * SIZE
    pairs = plane // (2 * VECTOR) * 2 * VECTOR
    while stop > start:
        begin = stop - 1
        while begin > start and not is_reset(x, row, begin):
            begin -= 1
        begins_anew = is_reset(x, row, begin)
        if begins_anew:
            clear(w.h, 2 * plane // SIZE)
        else:
            get_planes(w.h, border, border + x.Z * SIZE, x.Z, plane)
        clear(w.sums, (stop - begin) * WIDTH)
        u, dy = w.u + (begin - start) * SIZE, w.dy + (begin - start) * SIZE
        for z in range(0, pairs, 2 * VECTOR):
            retreat_two(stop - begin, plane, u, dy, w.sums, w.h + z, w.a + z, w.c + z, w.d + z, w.states)
        for z in range(pairs, plane, VECTOR):
            retreat(stop - begin, plane, u, dy, w.sums, w.h + z, w.a + z, w.c + z, w.d + z, w.states)
        for t in range(begin, stop):
            here = du + t * step
            store_total(here, w.sums + (t - begin) * VECTOR)
            put(here, 0, at(here, 0) + skip * at(w.dy, t - start))
        if begins_anew:
            clear(w.d, 2 * plane // SIZE)
        stop = begin


@kernel()
def backward_items(first: int, last: int, x: Inputs, system: System, borders_BENIZ: F32, g: Gradients) -> None:
    """Channels of all rows, whose gradients of a, c and skip are summed here, in the same order always."""
    Z, plane, step = x.Z, x.plane, x.E * SIZE
    memory = np.empty(work_numbers(plane), float32)
    w = work_at(address_of(memory), plane)
    clear(w.a, 12 * plane // SIZE)
    for e in range(first, last):
        get_system(w, system, e, plane)
        clear(w.d, 6 * plane // SIZE)
        skip, dskip = at(system.skip_R, e if system.R > 1 else 0), 0.0
        for row in range(x.B):
            item, length = row * x.E + e, length_of(x, row)
            get_planes(w.d, g.dre_after_BEZ + item * Z * SIZE, g.dim_after_BEZ + item * Z * SIZE, Z, plane)
            own = (row * x.T * x.E + e) * SIZE
            u, dy, du = x.u_BTE + row * x.u_row + e * SIZE, g.dy_BTE + own, g.du_BTE + own
            for t in range(length, x.T):
                put(du + t * step, 0, float32(0.0))
            for span in range((length + SPAN - 1) // SPAN - 1, -1, -1):
                start, end = span * SPAN, min(span * SPAN + SPAN, length)
                gather(w.u, u + start * x.u_step, x.u_step, end - start)
                gather(w.dy, dy + start * step, step, end - start)
                for t in range(end - start):
                    dskip += at(w.u, t) * at(w.dy, t)
                span_backward(w, x, row, start, end, borders_BENIZ + (item * x.N + span) * 2 * Z * SIZE, skip, du)
            copy(g.dre_BEZ + item * Z * SIZE, w.d, Z)
            copy(g.dim_BEZ + item * Z * SIZE, w.d + plane, Z)
        copy(g.da_re_EZ + e * Z * SIZE, w.d + 2 * plane, Z)
        copy(g.da_im_EZ + e * Z * SIZE, w.d + 3 * plane, Z)
        copy(g.dc_re_EZ + e * Z * SIZE, w.d + 4 * plane, Z)
        copy(g.dc_im_EZ + e * Z * SIZE, w.d + 5 * plane, Z)
        put(g.dskip_E, e, float32(dskip))
    hold(memory)


def records(
    u_BTE: Tensor, system: LTISystem, state: LTIState, reset_BT: Tensor | None, lengths_B: Tensor | None
) -> tuple[Inputs, System]:
    """The inputs of both kernels; tensors that are not contiguous are copied."""
    (B, T, E), (P, Z) = u_BTE.shape, system.a_re_PZ.shape
    u_BTE = u_BTE if u_BTE.stride(2) == 1 else u_BTE.contiguous()
    strides = u_BTE.stride(0) * SIZE, u_BTE.stride(1) * SIZE
    rows = [x if x is None else x.contiguous() for x in (*state, reset_BT, lengths_B)]
    inputs = Inputs(B, T, E, Z, -(-T // SPAN), 2, -(-Z // WIDTH) * VECTOR, u_BTE, *strides, *rows)
    own = System(P, Z, len(system.c_re_QZ), len(system.skip_R), *(x.contiguous() for x in system))
    return inputs, own


def forward(
    u_BTE: Tensor,
    system: LTISystem,
    state: LTIState,
    reset_BT: Tensor | None,
    lengths_B: Tensor | None,
    *,
    keep: bool,
) -> tuple[Tensor, LTIState, Tensor | None]:
    """y, the states afterwards and, to keep for a backward, those before every span; without a graph."""
    x, own = records(u_BTE, system, state, reset_BT, lengths_B)
    new = u_BTE.new_empty
    y_BTE, after = new(x.B, x.T, x.E), LTIState(new(x.B, x.E, x.Z), new(x.B, x.E, x.Z))
    borders_BENIZ = new(x.B, x.E, x.N, 2, x.Z) if keep else None
    cost = microseconds(bytes=4 * after.re_BEZ.nbytes, flops=24 * x.B * x.T * x.E * x.Z)
    launch(forward_items, x.B * x.E, x, own, y_BTE, *after, borders_BENIZ, cost=cost)
    return y_BTE, after, borders_BENIZ


class LTISteps(torch.autograd.Function):
    """(u, the system, the state, reset, lengths) -> (y_BTE, re after, im after), all float32."""

    @staticmethod
    def forward(ctx: Any, u_BTE: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
        system, state, (reset_BT, lengths_B) = LTISystem(*rest[:5]), LTIState(*rest[5:7]), rest[7:]
        y_BTE, after, borders_BENIZ = forward(u_BTE, system, state, reset_BT, lengths_B, keep=True)
        ctx.save_for_backward(u_BTE, *system, *state, reset_BT, lengths_B, borders_BENIZ)
        return y_BTE, *after

    @staticmethod
    @once_differentiable("lti", "numba")
    def backward(ctx: Any, dy_BTE: Tensor, dre_BEZ: Tensor, dim_BEZ: Tensor) -> tuple[Tensor | None, ...]:
        u_BTE, *rest, reset_BT, lengths_B, borders_BENIZ = ctx.saved_tensors
        system, state = LTISystem(*rest[:5]), LTIState(*rest[5:])
        x, own = records(u_BTE, system, state, reset_BT, lengths_B)
        given, new = [d.contiguous() for d in (dy_BTE, dre_BEZ, dim_BEZ)], u_BTE.new_empty
        dsystem = [*(new(x.E, x.Z) for _ in range(4)), new(x.E)]
        du_BTE, dstate = new(x.B, x.T, x.E), [new(x.B, x.E, x.Z) for _ in range(2)]
        g = Gradients(*(*given, du_BTE, *dsystem, *dstate))
        cost = microseconds(flops=72 * x.B * x.T * x.E * x.Z)
        launch(backward_items, x.E, x, own, borders_BENIZ, g, cost=cost)
        shared = [d if len(d) == len(t) else d.sum(0, keepdim=True) for d, t in zip(dsystem, system, strict=True)]
        return du_BTE, *shared, *dstate, None, None


def lti_numba(
    u_BTE: Tensor, system: LTISystem, state: LTIState, /, *, reset_BT: Tensor | None, lengths_B: Tensor | None
) -> tuple[Tensor, LTIState]:
    """The numbers of `lti_recurrent`, in float32."""
    inputs = u_BTE, *system, *state
    if has_gradients(inputs):
        call: Any = LTISteps.apply
        y_BTE, *after = call(*inputs, reset_BT, lengths_B)
        return y_BTE, LTIState(*after)
    y_BTE, state, _ = forward(u_BTE, system, state, reset_BT, lengths_B, keep=False)
    return y_BTE, state
