"""The scan with complex factors of constant angle on a CPU: one pass forward and one backward, as fast as memory.

An item is some channels of one row of the batch, as in `real`. A step turns h by cosine and sine of the angle, which
are computed once a call, in float64. Saved for the backward are the inputs and h.

B batch  T time  E channels
"""

from math import cos, sin
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy import float32, float64
from torch import Tensor

from exlstm.ops.derivatives import once_differentiable
from exlstm.ops.scan.numba.real import ITEM_CHANNELS, is_reset, place
from exlstm.ops.scan.reference import RotatingState
from exlstm.runtime.cpu.kernel import F32, I64, Bools, F32Rows, kernel
from exlstm.runtime.cpu.launch import launch, microseconds
from exlstm.runtime.cpu.loops import add_at
from exlstm.runtime.cpu.memory import SIZE, address_of, at, clear, copy, hold, put
from exlstm.runtime.cpu.vectors import Vectors, elementwise
from exlstm.runtime.tracing import has_gradients

ROW = SIZE * ITEM_CHANNELS  # bytes from the real parts of an item to the imaginary ones
TURNS = 64  # angles of an item
PARTIAL_SUM_STEPS = 16  # steps whose shares of an angle's gradient are summed before they join the total


@kernel()
def turn_items(first: int, last: int, E: int, theta_E: F32, cos_E: F32, sin_E: F32) -> None:
    """Items of the cosines and sines of angles."""
    for item in range(first, last):
        for e in range(item * TURNS, min((item + 1) * TURNS, E)):
            angle = float64(at(theta_E, e))
            put(cos_E, e, float32(cos(angle)))
            put(sin_E, e, float32(sin(angle)))


@elementwise
def forward_step(
    v: Vectors, r: Any, cosine: Any, sine: Any, re: Any, im: Any, h_re: Any, h_im: Any, y_re: Any, y_im: Any
) -> None:
    """h = r e^(i theta) h + b, and y = h."""
    c, s, x, y, factor = v.load(cosine), v.load(sine), v.load(h_re), v.load(h_im), v.load(r)
    new_re, new_im = factor * (c * x - s * y) + v.load(re), factor * (s * x + c * y) + v.load(im)
    for out_re, out_im in ((h_re, h_im), (y_re, y_im)):
        v.store(new_re, out_re)
        v.store(new_im, out_im)


@elementwise
def backward_step(
    v: Vectors,
    r: Any,
    turn: Any,
    before_re: Any,
    before_im: Any,
    dy_re: Any,
    dy_im: Any,
    dh: Any,
    db_re: Any,
    db_im: Any,
    dr: Any,
    dtheta: Any,
) -> None:
    """The gradients of a step. dh: of h after it without dy, then of h before. dtheta: the step's share is added."""
    c, s, factor = v.load(turn), v.load(v.offset(turn, ROW)), v.load(r)
    x, y = v.load(before_re), v.load(before_im)
    d_re, d_im = v.load(dh) + v.load(dy_re), v.load(v.offset(dh, ROW)) + v.load(dy_im)
    at_re, at_im = c * x - s * y, s * x + c * y
    v.store(d_re, db_re)
    v.store(d_im, db_im)
    v.store(d_re * at_re + d_im * at_im, dr)
    v.store(v.load(dtheta) + factor * (d_im * at_re - d_re * at_im), dtheta)
    v.store(factor * (c * d_re + s * d_im), dh)
    v.store(factor * (c * d_im - s * d_re), v.offset(dh, ROW))


@elementwise
def add_to(v: Vectors, x: Any, y: Any, out: Any) -> None:
    """out = x + y"""
    v.store(v.load(x) + v.load(y), out)


class Inputs(NamedTuple):
    """Inputs of forward and backward. cuts: items in a row. *_row, *_step: strides in bytes; im has those of re."""

    B: int
    T: int
    E: int
    cuts: int
    r_BTE: F32Rows
    r_row: int
    r_step: int
    re_BTE: F32Rows
    im_BTE: F32Rows
    b_row: int
    b_step: int
    cos_E: F32
    sin_E: F32
    re_BE: F32
    im_BE: F32
    reset_BT: Bools
    lengths_B: I64


@kernel()
def forward_items(
    first: int, last: int, x: Inputs, h_re_BTE: F32, h_im_BTE: F32, after_re_BE: F32, after_im_BE: F32
) -> None:
    """Items of h and of its last step."""
    for item in range(first, last):
        row, channel, count, length = place(x, item)
        state, offset = (row * x.E + channel) * SIZE, (row * x.T * x.E + channel) * SIZE
        h_re, h_im = after_re_BE + state, after_im_BE + state
        copy(h_re, x.re_BE + state, count)
        copy(h_im, x.im_BE + state, count)
        cosine, sine = x.cos_E + channel * SIZE, x.sin_E + channel * SIZE
        for t in range(x.T):
            here = offset + t * x.E * SIZE
            y_re, y_im = h_re_BTE + here, h_im_BTE + here
            if t >= length:
                clear(y_re, count)
                clear(y_im, count)
                continue
            b = row * x.b_row + t * x.b_step + channel * SIZE
            if is_reset(x, row, t):
                clear(h_re, count)
                clear(h_im, count)
            r = x.r_BTE + row * x.r_row + t * x.r_step + channel * SIZE
            forward_step(count, r, cosine, sine, x.re_BTE + b, x.im_BTE + b, h_re, h_im, y_re, y_im)


class Gradients(NamedTuple):
    """Gradients: of the outputs, and those that the backward fills. dtheta: the share of every row."""

    dy_re_BTE: F32
    dy_im_BTE: F32
    dafter_re_BE: F32
    dafter_im_BE: F32
    dr_BTE: F32
    dre_BTE: F32
    dim_BTE: F32
    dtheta_BE: F32
    dre_BE: F32
    dim_BE: F32


@kernel()
def backward_items(first: int, last: int, x: Inputs, h_re_BTE: F32, h_im_BTE: F32, g: Gradients) -> None:
    """Items of the gradients."""
    work, step = np.empty(5 * ITEM_CHANNELS, float32), x.E * SIZE
    dh = address_of(work)
    turn, share = dh + 2 * ROW, dh + 4 * ROW
    for item in range(first, last):
        row, channel, count, length = place(x, item)
        state, offset = (row * x.E + channel) * SIZE, (row * x.T * x.E + channel) * SIZE
        copy(dh, g.dafter_re_BE + state, count)
        copy(dh + ROW, g.dafter_im_BE + state, count)
        copy(turn, x.cos_E + channel * SIZE, count)
        copy(turn + ROW, x.sin_E + channel * SIZE, count)
        clear(share, count)
        clear(g.dtheta_BE + state, count)
        for t in range(x.T - 1, -1, -1):
            here = offset + t * step
            dr, db_re, db_im = g.dr_BTE + here, g.dre_BTE + here, g.dim_BTE + here
            if t >= length:
                clear(dr, count)
                clear(db_re, count)
                clear(db_im, count)
                continue
            re, im = (h_re_BTE + here - step, h_im_BTE + here - step) if t > 0 else (x.re_BE + state, x.im_BE + state)
            r, dy_re, dy_im = x.r_BTE + row * x.r_row + t * x.r_step + channel * SIZE, g.dy_re_BTE, g.dy_im_BTE
            if is_reset(x, row, t):
                add_to(count, dh, dy_re + here, db_re)
                add_to(count, dh + ROW, dy_im + here, db_im)
                clear(dr, count)
                clear(dh, 2 * ITEM_CHANNELS)
            else:
                backward_step(count, r, turn, re, im, dy_re + here, dy_im + here, dh, db_re, db_im, dr, share)
            if t % PARTIAL_SUM_STEPS == 0:
                add_at(g.dtheta_BE + state, share, count)
                clear(share, count)
        copy(g.dre_BE + state, dh, count)
        copy(g.dim_BE + state, dh + ROW, count)
    hold(work)


def turns(theta_E: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and sines of angles."""
    E, cos_E, sin_E = theta_E.shape[0], theta_E.new_empty(theta_E.shape), theta_E.new_empty(theta_E.shape)
    launch(turn_items, -(-E // TURNS), E, theta_E.contiguous(), cos_E, sin_E, cost=microseconds(flops=1000 * E))
    return cos_E, sin_E


def inputs_of(
    r_BTE: Tensor,
    re_BTE: Tensor,
    im_BTE: Tensor,
    turn: tuple[Tensor, Tensor],
    state: RotatingState,
    reset_BT: Tensor | None,
    lengths_B: Tensor | None,
) -> Inputs:
    """The inputs of both kernels; tensors whose channels are apart are copied."""
    B, T, E = re_BTE.shape
    r = r_BTE if r_BTE.stride(2) == 1 else r_BTE.contiguous()
    same = re_BTE.stride() == im_BTE.stride() and re_BTE.stride(2) == 1
    re, im = (x if same else x.contiguous() for x in (re_BTE, im_BTE))
    r_row, r_step, b_row, b_step = (x.stride(axis) * SIZE for x in (r, re) for axis in (0, 1))
    rest = (None if x is None else x.contiguous() for x in (*state, reset_BT, lengths_B))
    return Inputs(B, T, E, -(-E // ITEM_CHANNELS), r, r_row, r_step, re, im, b_row, b_step, *turn, *rest)


def run_forward(x: Inputs) -> list[Tensor]:
    """Parts of h of every step and of the last one, without a graph."""
    h = [x.re_BE.new_empty((x.B, x.T, x.E)) for _ in range(2)]
    after = [x.re_BE.new_empty((x.B, x.E)) for _ in range(2)]
    launch(forward_items, x.B * x.cuts, x, *h, *after, cost=microseconds(bytes=5 * h[0].nbytes))
    return [*h, *after]


class RotatingScan(torch.autograd.Function):
    """(r, theta, parts of b, parts of h before) -> (parts of h of every step, and after), all float32."""

    @staticmethod
    def forward(
        ctx: Any,
        r_BTE: Tensor,
        theta_E: Tensor,
        re_BTE: Tensor,
        im_BTE: Tensor,
        re_BE: Tensor,
        im_BE: Tensor,
        reset_BT: Tensor | None,
        lengths_B: Tensor | None,
    ) -> tuple[Tensor, ...]:
        turn = turns(theta_E)
        found = run_forward(inputs_of(r_BTE, re_BTE, im_BTE, turn, RotatingState(re_BE, im_BE), reset_BT, lengths_B))
        ctx.save_for_backward(r_BTE, *turn, re_BE, im_BE, reset_BT, lengths_B, *found[:2])
        return tuple(found)

    @staticmethod
    @once_differentiable("rotating_scan", "numba")
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor | None, ...]:
        r_BTE, cos_E, sin_E, re_BE, im_BE, reset_BT, lengths_B, *h = ctx.saved_tensors
        # the parts of b have no gradient of their own to be read for
        x = inputs_of(r_BTE, h[0], h[1], (cos_E, sin_E), RotatingState(re_BE, im_BE), reset_BT, lengths_B)
        every = [h[0].new_empty(h[0].shape) for _ in range(3)]
        rows = [re_BE.new_empty(re_BE.shape) for _ in range(3)]
        gradients = Gradients(*(dy.contiguous() for dy in outputs), *every, *rows)
        launch(backward_items, x.B * x.cuts, x, *h, gradients, cost=microseconds(bytes=9 * h[0].nbytes))
        dr_BTE, dre_BTE, dim_BTE = every
        dtheta_BE, *before = rows
        return dr_BTE, dtheta_BE.sum(0), dre_BTE, dim_BTE, *before, None, None


def rotating_numba(
    r_BTE: Tensor,
    theta_E: Tensor,
    re_BTE: Tensor,
    im_BTE: Tensor,
    state: RotatingState,
    reset_BT: Tensor | None,
    lengths_B: Tensor | None,
) -> tuple[Tensor, Tensor, RotatingState]:
    """The numbers of `rotating_recurrent`, in float32."""
    inputs = r_BTE, theta_E, re_BTE, im_BTE
    found: Any
    if has_gradients((*inputs, *state)):
        found = RotatingScan.apply(*inputs, *state, reset_BT, lengths_B)  # type: ignore[no-untyped-call]
    else:
        found = run_forward(inputs_of(r_BTE, re_BTE, im_BTE, turns(theta_E), state, reset_BT, lengths_B))
    h_re_BTE, h_im_BTE, *after = found
    return h_re_BTE, h_im_BTE, RotatingState(*after)
