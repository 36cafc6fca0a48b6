"""A step of the long convolution on a CPU without gradients: the output and the new cache in one pass.

An item is some channels of one row. Only what the row has seen is read.

B batch  T time (1)  S cached steps before  V cached steps after  E channels  R taps
"""

from typing import NamedTuple

import torch
from numpy import int64
from torch import Tensor

from exlstm.ops.long_conv.reference import LongConvState, cache_size
from exlstm.runtime.cpu.jit import helper
from exlstm.runtime.cpu.kernel import F32, I64, Bools, kernel
from exlstm.runtime.cpu.launch import launch, microseconds
from exlstm.runtime.cpu.loops import add_product_at
from exlstm.runtime.cpu.memory import SIZE, byte_at, clear, copy, long_at, tensor_at

ITEM_CHANNELS = 256  # of an item, at most


class Inputs(NamedTuple):
    """Inputs of the step. cuts: items in a row."""

    B: int
    T: int
    S: int
    V: int
    E: int
    R: int
    cuts: int
    x_BTE: F32
    taps_RE: F32
    u_BSE: F32
    seen_B: I64
    reset_BT: Bools
    lengths_B: I64


@helper()
def shifted(after: int, before: int, x: Inputs, by: int, count: int, channels: int) -> None:
    """The newest `count` entries of a row's old cache, `by` places earlier in the new one; zeros before them."""
    step = x.E * SIZE
    kept = min(count, x.V - by)
    for v in range(x.V - by - kept):
        clear(after + v * step, channels)
    for n in range(kept):
        copy(after + (x.V - by - kept + n) * step, before + (x.S - kept + n) * step, channels)


@kernel()
def step_channels(first: int, last: int, x: Inputs, y_BTE: F32, after_BVE: F32, counts_B: I64) -> None:
    """Channels of y, and of the cache with the new input as its last entry."""
    step = x.E * SIZE
    for item in range(first, last):
        row, cut = item // x.cuts, item % x.cuts
        begin = x.E * cut // x.cuts
        channels = x.E * (cut + 1) // x.cuts - begin
        here = begin * SIZE
        y, u, taps = y_BTE + row * step + here, x.x_BTE + row * step + here, x.taps_RE + here
        before, after = x.u_BSE + row * x.S * step + here, after_BVE + row * x.V * step + here
        count = min(long_at(x.seen_B + 8 * row), x.S)
        if x.reset_BT != 0 and byte_at(x.reset_BT + row) != 0:
            count = 0
        clear(y, channels)
        if x.lengths_B != 0 and long_at(x.lengths_B + 8 * row) == 0:
            count = min(long_at(x.seen_B + 8 * row), x.S)
            shifted(after, before, x, 0, count, channels)
        else:
            add_product_at(y, u, taps, channels)
            for lag in range(1, min(count, x.R - 1) + 1):
                add_product_at(y, before + (x.S - lag) * step, taps + lag * step, channels)
            if x.V > 0:
                shifted(after, before, x, 1, count, channels)
                copy(after + (x.V - 1) * step, u, channels)
            count += 1
        if cut == 0:
            tensor_at(counts_B + 8 * row, 1, int64)[0] = min(count, x.V)


def long_conv_numba(
    u_BTE: Tensor,
    taps_RE: Tensor,
    state: LongConvState,
    filter_len: int,
    /,
    *,
    reset_BT: Tensor | None,
    lengths_B: Tensor | None,
) -> tuple[Tensor, LongConvState]:
    """The numbers of `long_conv_recurrent` for one step, in float32 and without a graph."""
    (B, T, E), S, R = u_BTE.shape, state.u_BSE.shape[1], len(taps_RE)
    V, cuts = cache_size(S, T, filter_len), -(-E // ITEM_CHANNELS)
    given = (u_BTE, taps_RE, *state, reset_BT, lengths_B)
    inputs = Inputs(B, T, S, V, E, R, cuts, *(x if x is None else x.contiguous() for x in given))
    y_BTE, after = u_BTE.new_empty(B, T, E), LongConvState(u_BTE.new_empty(B, V, E), torch.empty_like(state.seen_B))
    cost = microseconds(bytes=B * E * SIZE * (2 * S + V), flops=2 * B * E * S)
    launch(step_channels, B * cuts, inputs, y_BTE, *after, cost=cost)
    return y_BTE, after
