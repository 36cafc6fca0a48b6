"""The diagonal scan on a CPU: one pass forward and one backward, as fast as memory.

An item is some channels of one row of the batch. Its steps are taken one after another, and its h stays in the first
cache. Saved for the backward are the inputs and h; it reads h_{t-1} and computes nothing again.

B batch  T time  E channels
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from exlstm.ops.derivatives import once_differentiable
from exlstm.runtime.cpu.jit import helper
from exlstm.runtime.cpu.kernel import F32, I64, Bools, F32Rows, kernel
from exlstm.runtime.cpu.launch import launch, microseconds
from exlstm.runtime.cpu.loops import REORDER
from exlstm.runtime.cpu.memory import SIZE, at, byte_at, clear, copy, long_at, put
from exlstm.runtime.tracing import has_gradients

ITEM_CHANNELS = 256  # of an item, at most: its h, and a step's inputs, are 4 KB


class ScanInputs(NamedTuple):
    """Inputs of forward and backward. cuts: items in a row. *_row, *_step: strides in bytes."""

    B: int
    T: int
    E: int
    cuts: int
    a_BTE: F32Rows
    a_row: int
    a_step: int
    b_BTE: F32Rows
    b_row: int
    b_step: int
    h_BE: F32
    reset_BT: Bools
    lengths_B: I64


@helper()
def place(x: ScanInputs, item: int) -> tuple[int, int, int, int]:
    """Of an item: its row, its first channel, how many channels it has, and the steps of the row."""
    row, cut = item // x.cuts, item % x.cuts
    first, last = x.E * cut // x.cuts, x.E * (cut + 1) // x.cuts
    length = long_at(x.lengths_B + 8 * row) if x.lengths_B != 0 else x.T
    return row, first, last - first, length


@helper()
def is_reset(x: ScanInputs, row: int, t: int) -> bool:
    """Whether the row is reset before step t."""
    return bool(x.reset_BT != 0 and byte_at(x.reset_BT + row * x.T + t) != 0)


@helper(REORDER)
def advance(h: int, a: int, b: int, y: int, count: int) -> None:
    """h = a h + b, and y = h."""
    for e in range(count):
        new = at(a, e) * at(h, e) + at(b, e)
        put(h, e, new)
        put(y, e, new)


@kernel()
def forward_items(first: int, last: int, x: ScanInputs, y_BTE: F32, after_BE: F32) -> None:
    """Items of h and of its last step."""
    for item in range(first, last):
        row, channel, count, length = place(x, item)
        h = after_BE + (row * x.E + channel) * SIZE
        copy(h, x.h_BE + (row * x.E + channel) * SIZE, count)
        a, b = x.a_BTE + row * x.a_row + channel * SIZE, x.b_BTE + row * x.b_row + channel * SIZE
        y = y_BTE + (row * x.T * x.E + channel) * SIZE
        for t in range(x.T):
            here = y + t * x.E * SIZE
            if t >= length:
                clear(here, count)
            elif is_reset(x, row, t):  # what is forgotten may be infinite, so it is not multiplied by zero
                copy(h, b + t * x.b_step, count)
                copy(here, h, count)
            else:
                advance(h, a + t * x.a_step, b + t * x.b_step, here, count)


@helper(REORDER)
def retreat(dh: int, a: int, before: int, dy: int, da: int, db: int, count: int) -> None:
    """dh += dy; db = dh, da = dh h_{t-1}, dh = a dh."""
    for e in range(count):
        d = at(dh, e) + at(dy, e)
        put(db, e, d)
        put(da, e, d * at(before, e))
        put(dh, e, d * at(a, e))


@kernel()
def backward_items(
    first: int, last: int, x: ScanInputs, y_BTE: F32, dy_BTE: F32, dafter_BE: F32, da_BTE: F32, db_BTE: F32, dh_BE: F32
) -> None:
    """Items of the gradients."""
    for item in range(first, last):
        row, channel, count, length = place(x, item)
        state = (row * x.E + channel) * SIZE
        dh, step = dh_BE + state, x.E * SIZE
        copy(dh, dafter_BE + state, count)
        offset = (row * x.T * x.E + channel) * SIZE
        for t in range(x.T - 1, -1, -1):
            here = offset + t * step
            if t >= length:
                clear(da_BTE + here, count)
                clear(db_BTE + here, count)
                continue
            before = y_BTE + here - step if t > 0 else x.h_BE + state
            a = x.a_BTE + row * x.a_row + t * x.a_step + channel * SIZE
            retreat(dh, a, before, dy_BTE + here, da_BTE + here, db_BTE + here, count)
            if is_reset(x, row, t):
                clear(da_BTE + here, count)
                clear(dh, count)


def inputs_of(
    a_BTE: Tensor, b_BTE: Tensor, h_BE: Tensor, reset_BT: Tensor | None, lengths_B: Tensor | None
) -> ScanInputs:
    """The inputs of both kernels; tensors whose channels are apart are copied."""
    B, T, E = b_BTE.shape
    a, b = (x if x.stride(2) == 1 else x.contiguous() for x in (a_BTE, b_BTE))
    a_row, a_step, b_row, b_step = (x.stride(axis) * SIZE for x in (a, b) for axis in (0, 1))
    rows = h_BE.contiguous(), *(None if x is None else x.contiguous() for x in (reset_BT, lengths_B))
    return ScanInputs(B, T, E, -(-E // ITEM_CHANNELS), a, a_row, a_step, b, b_row, b_step, *rows)


def forward(
    a_BTE: Tensor, b_BTE: Tensor, h_BE: Tensor, reset_BT: Tensor | None, lengths_B: Tensor | None
) -> tuple[Tensor, Tensor]:
    """h of every step and of the last one, without a graph."""
    x = inputs_of(a_BTE, b_BTE, h_BE, reset_BT, lengths_B)
    y_BTE, after_BE = b_BTE.new_empty(b_BTE.shape), b_BTE.new_empty(h_BE.shape)
    launch(forward_items, x.B * x.cuts, x, y_BTE, after_BE, cost=microseconds(bytes=3 * y_BTE.nbytes))
    return y_BTE, after_BE


class Scan(torch.autograd.Function):
    """(a, b, h before) -> (h of every step, h after), all float32."""

    @staticmethod
    def forward(
        ctx: Any, a_BTE: Tensor, b_BTE: Tensor, h_BE: Tensor, reset_BT: Tensor | None, lengths_B: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        y_BTE, after_BE = forward(a_BTE, b_BTE, h_BE, reset_BT, lengths_B)
        ctx.save_for_backward(a_BTE, b_BTE, h_BE, reset_BT, lengths_B, y_BTE)
        return y_BTE, after_BE

    @staticmethod
    @once_differentiable("scan", "numba")
    def backward(ctx: Any, dy_BTE: Tensor, dafter_BE: Tensor) -> tuple[Tensor | None, ...]:
        *saved, y_BTE = ctx.saved_tensors
        x = inputs_of(*saved)
        da_BTE, db_BTE, dh_BE = torch.empty_like(y_BTE), torch.empty_like(y_BTE), y_BTE.new_empty(dafter_BE.shape)
        gradients = dy_BTE.contiguous(), dafter_BE.contiguous(), da_BTE, db_BTE, dh_BE
        launch(backward_items, x.B * x.cuts, x, y_BTE, *gradients, cost=microseconds(bytes=5 * y_BTE.nbytes))
        return da_BTE, db_BTE, dh_BE, None, None


def scan_numba(
    a_BTE: Tensor, b_BTE: Tensor, h_BE: Tensor, reset_BT: Tensor | None, lengths_B: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The numbers of `scan_recurrent`, in float32."""
    inputs = a_BTE, b_BTE, h_BE
    call: Any = Scan.apply if has_gradients(inputs) else forward
    y_BTE, after_BE = call(*inputs, reset_BT, lengths_B)
    return y_BTE, after_BE
