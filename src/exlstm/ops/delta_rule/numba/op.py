"""Both rules on a CPU: one step after another, with the memory in the first cache.

A step is 8 or 9 operations for every number of S, which chunks do not save; so there is no chunk here, and a decay may
be anything. An item of the forward is a tile, some columns of a head of a row of the batch; an item of the backward is
a head, whose tiles add to the same gradients. Saved are the inputs and S before every SPAN steps; the backward computes
the others again, a span at a time.

B batch  T time  H heads  K key width  V value width  J tiles of a head  N spans  L columns of a tile
"""

from typing import Any

import numpy as np
import torch
from numpy import float32
from torch import Tensor

from exlstm.ops.delta_rule.numba.steps import Gradients, Inputs, Room, Tile, advance, is_reset, retreat, tile_at
from exlstm.ops.delta_rule.numba.tiles import COLUMNS, PARTS, ROW, SIZE, move
from exlstm.ops.delta_rule.reference import RuleInputs
from exlstm.ops.derivatives import once_differentiable
from exlstm.runtime.cpu.jit import helper
from exlstm.runtime.cpu.kernel import F32, kernel
from exlstm.runtime.cpu.launch import launch, microseconds
from exlstm.runtime.cpu.memory import LINE_NUMBERS, clear, copy, hold, line_of
from exlstm.runtime.tracing import has_gradients

SPAN = 32  # steps between two memories that are saved


@helper()
def room_at(begin: int, K: int) -> Room:
    """The parts of ROOM_ROWS rows of a tile and of (PARTS + 2) K numbers."""
    others = begin + 5 * ROW
    w, a, parts = others, others + K * SIZE, others + 2 * K * SIZE
    return Room(w, a, parts, begin, begin + ROW, begin + 2 * ROW, begin + 3 * ROW, begin + 4 * ROW)


@helper()
def room_numbers(K: int) -> int:
    """How many numbers a `Room` takes."""
    return 5 * COLUMNS + (PARTS + 2) * K


@helper()
def gather(tile: Tile, matrix: int, K: int, V: int, slab: int) -> None:
    """The tile of a [K, V] matrix, from its first column on; columns beyond V become 0."""
    if tile.columns == COLUMNS:
        move(K, matrix, V * SIZE, slab, ROW)
        return
    clear(slab, K * COLUMNS)
    for k in range(K):
        copy(slab + k * ROW, matrix + k * V * SIZE, tile.columns)


@helper()
def store(tile: Tile, source: int, step: int, K: int, V: int, matrix: int) -> None:
    """The inverse of `gather`. step: bytes between rows of the source."""
    if tile.columns == COLUMNS:
        move(K, source, step, matrix, V * SIZE)
        return
    for k in range(K):
        copy(matrix + k * V * SIZE, source + k * step, tile.columns)


@kernel(L=COLUMNS)
def forward_items(first: int, last: int, x: Inputs, N: int, o_BTHV: F32, after_BHKV: F32, starts_BHJNKL: F32) -> None:
    """Tiles of o, of the memory after the last step and, where there is room for it, of that before every span."""
    K, V = x.K, x.V
    work = np.empty(K * COLUMNS + COLUMNS + room_numbers(K) + LINE_NUMBERS, float32)
    slab = line_of(work)
    found, room = slab + K * ROW, room_at(slab + K * ROW + ROW, K)
    clear(room.v, COLUMNS)
    for item in range(first, last):
        tile = tile_at(x, item)
        matrix = ((tile.row * x.H + tile.head) * K * V + tile.column) * SIZE
        source, step = x.s_BHKV + matrix, V * SIZE
        if tile.columns < COLUMNS:
            gather(tile, source, K, V, slab)
            source, step = slab, ROW
        for t in range(x.T):
            if starts_BHJNKL != 0 and t % SPAN == 0:
                move(K, source, step, starts_BHJNKL + (item * N + t // SPAN) * K * ROW, ROW)
            o = o_BTHV + (((tile.row * x.T + t) * x.H + tile.head) * V + tile.column) * SIZE
            if t >= tile.length:
                clear(o, tile.columns)
                continue
            if is_reset(x, tile, t):  # what is forgotten may be infinite, so it is not multiplied by zero
                clear(slab, K * COLUMNS)
                source, step = slab, ROW
            advance(x, tile, t, source, step, slab, found, room, o if tile.columns == COLUMNS else room.o)
            if tile.columns < COLUMNS:
                copy(o, room.o, tile.columns)
            source, step = slab, ROW
        store(tile, source, step, K, V, after_BHKV + matrix)
    hold(work)


@kernel(L=COLUMNS)
def backward_items(first: int, last: int, x: Inputs, N: int, g: Gradients, starts_BHJNKL: F32) -> None:
    """Heads of the gradients."""
    K, V = x.K, x.V
    slab_size = K * COLUMNS
    work = np.empty((SPAN + 2) * slab_size + SPAN * COLUMNS + room_numbers(K) + LINE_NUMBERS, float32)
    ds = line_of(work)
    zeros, later, found = ds + K * ROW, ds + 2 * K * ROW, ds + (SPAN + 2) * K * ROW
    room = room_at(found + SPAN * ROW, K)
    clear(zeros, slab_size)
    clear(room.v, 2 * COLUMNS)
    for item in range(first * x.J, last * x.J):
        tile = tile_at(x, item)
        matrix = ((tile.row * x.H + tile.head) * K * V + tile.column) * SIZE
        gather(tile, g.dlast_BHKV + matrix, K, V, ds)
        for span in range(N - 1, -1, -1):
            begin, start = span * SPAN, starts_BHJNKL + (item * N + span) * K * ROW
            end = min(begin + SPAN, tile.length)
            for t in range(begin, end):
                here = later + (t - begin) * K * ROW
                before = zeros if is_reset(x, tile, t) else start if t == begin else here - K * ROW
                advance(x, tile, t, before, ROW, here, found + (t - begin) * ROW, room, 0)
            for t in range(end - 1, begin - 1, -1):
                here, fresh = later + (t - begin) * K * ROW, is_reset(x, tile, t)
                before = zeros if fresh else start if t == begin else here - K * ROW
                retreat(x, g, tile, t, before, here, ds, found + (t - begin) * ROW, room)
                if fresh:
                    clear(ds, slab_size)
        store(tile, ds, ROW, K, V, g.dfirst_BHKV + matrix)
    hold(work)


def inputs_of(x: RuleInputs, s_BHKV: Tensor, reset_BT: Tensor | None, lengths_B: Tensor | None) -> Inputs:
    """The `Inputs` of both kernels, of float32. Rows of v may be anywhere; others with gaps are copied."""
    (B, T, H, K), V = x.q_BTHK.shape, x.v_BTHV.shape[3]
    q, k, v, *others = x
    v = v if v.stride(3) == 1 else v.contiguous()
    G = 1 if x.g_BTHG is None else x.g_BTHG.shape[3]
    rest = (None if t is None else t.contiguous() for t in (*others, s_BHKV, reset_BT, lengths_B))
    strides = (v.stride(axis) * SIZE for axis in range(3))
    return Inputs(B, T, H, K, V, G, -(-V // COLUMNS), q.contiguous(), k.contiguous(), v, *strides, *rest)


def cost_of(x: Inputs, flops: int) -> float:
    """The cost of so many operations for every number of the memory and every step."""
    return microseconds(flops=flops * x.B * x.T * x.H * x.K * x.J * COLUMNS)


def forward(inputs: Inputs, starts: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """o and S after the last step, without a graph. starts: becomes S before every span."""
    s_BHKV: Tensor = inputs.s_BHKV
    o_BTHV = s_BHKV.new_empty(inputs.B, inputs.T, inputs.H, inputs.V)
    after_BHKV = s_BHKV.new_empty(s_BHKV.shape)
    launch(
        forward_items,
        inputs.B * inputs.H * inputs.J,
        inputs,
        -(-inputs.T // SPAN),
        o_BTHV,
        after_BHKV,
        starts,
        cost=cost_of(inputs, 10),
    )
    return o_BTHV, after_BHKV


class RuleScan(torch.autograd.Function):
    """(S, reset, lengths, those of a `RuleInputs`) -> (o, S after), all float32."""

    @staticmethod
    def forward(
        ctx: Any, s_BHKV: Tensor, reset_BT: Tensor | None, lengths_B: Tensor | None, *given: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        inputs = inputs_of(RuleInputs(*given), s_BHKV, reset_BT, lengths_B)  # type: ignore[arg-type]
        B, T, H, K, *_ = inputs
        starts_BHJNKL = s_BHKV.new_empty(B, H, inputs.J, -(-T // SPAN), K, COLUMNS)
        o_BTHV, after_BHKV = forward(inputs, starts_BHJNKL)
        ctx.save_for_backward(s_BHKV, reset_BT, lengths_B, *given, starts_BHJNKL)
        return o_BTHV, after_BHKV

    @staticmethod
    @once_differentiable("delta_rule", "numba")
    def backward(ctx: Any, do_BTHV: Tensor, dlast_BHKV: Tensor) -> tuple[Tensor | None, ...]:
        s_BHKV, reset_BT, lengths_B, *given, starts_BHJNKL = ctx.saved_tensors
        x = RuleInputs(*given)
        inputs = inputs_of(x, s_BHKV, reset_BT, lengths_B)
        found = [None if t is None else t.new_zeros(t.shape) for t in x]
        dfirst_BHKV = s_BHKV.new_empty(s_BHKV.shape)
        every: list[Any] = [do_BTHV.contiguous(), dlast_BHKV.contiguous(), *found, dfirst_BHKV]
        gradients = Gradients(*every)
        launch(
            backward_items,
            inputs.B * inputs.H,
            inputs,
            starts_BHJNKL.shape[3],
            gradients,
            starts_BHJNKL,
            cost=cost_of(inputs, 50),
        )
        return dfirst_BHKV, None, None, *found


def rule_numba(
    x: RuleInputs, s_BHKV: Tensor, reset_BT: Tensor | None, lengths_B: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The numbers of `rule_recurrent`, in float32."""
    x = x.rebuilt([t.float() for t in x.tensors])
    if has_gradients((*x.tensors, s_BHKV)):
        o_BTHV, after_BHKV = RuleScan.apply(s_BHKV, reset_BT, lengths_B, *x)  # type: ignore[no-untyped-call]
        return o_BTHV, after_BHKV
    return forward(inputs_of(x, s_BHKV, reset_BT, lengths_B))
