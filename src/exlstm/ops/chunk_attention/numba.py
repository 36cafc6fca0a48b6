"""A step of attention within chunks on a CPU, without gradients: the output and the new cache in one pass.

An item is some channels of the values of one row; every item of a row computes the row's weights. Only entries that the
row has seen are read.

B batch  T time (1)  S cached steps  K key width  V value width  R distances with a bias
"""

from math import erf, sqrt
from typing import NamedTuple

import numpy as np
from numpy import float32, int64
from torch import Tensor, empty_like

from exlstm.ops.chunk_attention.reference import DEVIATION, MEAN, AttentionFunction, ChunkState
from exlstm.runtime.cpu.jit import helper
from exlstm.runtime.cpu.kernel import F32, I64, Bools, kernel
from exlstm.runtime.cpu.launch import launch, microseconds
from exlstm.runtime.cpu.loops import Array, add_scaled, dot_at, to_softmax
from exlstm.runtime.cpu.memory import SIZE, at, byte_at, clear, copy, long_at, tensor_at

ITEM_CHANNELS = 256  # of an item, at most


class Inputs(NamedTuple):
    """Inputs of the step. cuts: items in a row."""

    B: int
    T: int
    S: int
    K: int
    V: int
    R: int
    cuts: int
    laplace: bool
    q_BTK: F32
    k_BTK: F32
    v_BTV: F32
    bias_R: F32
    past_k_BSK: F32
    past_v_BSV: F32
    seen_B: I64
    reset_BT: Bools
    lengths_B: I64


class Outputs(NamedTuple):
    """The output and the cache afterwards."""

    o_BTV: F32
    after_k_BSK: F32
    after_v_BSV: F32
    after_B: I64


@helper()
def to_laplace(w_A: Array) -> None:
    """The Laplace function of w, in place."""
    for j in range(w_A.size):
        w_A[j] = float32(0.5 * (1.0 + erf((float(w_A[j]) - MEAN) / (DEVIATION * sqrt(2.0)))))


@helper()
def weigh(w_A: Array, x: Inputs, row: int) -> None:
    """The weights of the newest entries of a row's cache, in the order of distances, its own step first."""
    q, past = x.q_BTK + row * x.K * SIZE, x.past_k_BSK + row * x.S * x.K * SIZE
    factor = float32(1.0 / w_A.size) if x.laplace else float32(1.0 / sqrt(float(x.K)))
    w_A[0] = dot_at(q, x.k_BTK + row * x.K * SIZE, x.K) * factor + at(x.bias_R, 0)
    for lag in range(1, w_A.size):
        key = past + (x.S - lag) * x.K * SIZE
        w_A[lag] = dot_at(q, key, x.K) * factor + at(x.bias_R, min(lag, x.R - 1))
    if x.laplace:
        to_laplace(w_A)
    else:
        to_softmax(w_A)


@helper()
def renewed(after: int, before: int, new: int, kept: int, S: int, width: int, apart: int) -> None:
    """A row's new cache: zeros, the newest `kept` entries of the old one, and the new one unless `new` is 0."""
    more = 1 if new != 0 else 0
    for s in range(S - more - kept):
        clear(after + s * apart, width)
    for n in range(kept):
        copy(after + (S - more - kept + n) * apart, before + (S - kept + n) * apart, width)
    if new != 0:
        copy(after + (S - 1) * apart, new, width)


@kernel()
def step_rows(first: int, last: int, x: Inputs, out: Outputs) -> None:
    """Channels of o, and of the cache with the new step as its last entry; at the end of a chunk it is empty."""
    S, K = x.S, x.K
    for item in range(first, last):
        row, cut = item // x.cuts, item % x.cuts
        begin = x.V * cut // x.cuts
        width = x.V * (cut + 1) // x.cuts - begin
        here, apart = (row * x.V + begin) * SIZE, x.V * SIZE
        o, v, k = out.o_BTV + here, x.v_BTV + here, x.k_BTK + row * K * SIZE
        past = (row * S * x.V + begin) * SIZE
        kept = min(long_at(x.seen_B + 8 * row), S)
        clear(o, width)
        if x.lengths_B != 0 and long_at(x.lengths_B + 8 * row) == 0:
            seen, k, v = kept, 0, 0
        else:
            if x.reset_BT != 0 and byte_at(x.reset_BT + row) != 0:
                kept = 0
            w_A = np.empty(kept + 1, float32)
            weigh(w_A, x, row)
            add_scaled(o, v, w_A[0], width)
            for lag in range(1, kept + 1):
                add_scaled(o, x.past_v_BSV + past + (S - lag) * apart, w_A[lag], width)
            seen = kept + 1
            if seen > S:
                seen, kept, k, v = 0, 0, 0, 0
        renewed(out.after_v_BSV + past, x.past_v_BSV + past, v, kept, S, width, apart)
        if cut == 0:
            keys = row * S * K * SIZE
            renewed(out.after_k_BSK + keys, x.past_k_BSK + keys, k, kept, S, K, K * SIZE)
            tensor_at(out.after_B + 8 * row, 1, int64)[0] = seen


def chunk_attention_numba(
    q_BTK: Tensor,
    k_BTK: Tensor,
    v_BTV: Tensor,
    bias_R: Tensor,
    state: ChunkState,
    /,
    *,
    function: AttentionFunction,
    reset_BT: Tensor | None,
    lengths_B: Tensor | None,
) -> tuple[Tensor, ChunkState]:
    """The numbers of `chunk_attention_recurrent` for one step, in float32 and without a graph."""
    (B, T, K), V, S = q_BTK.shape, v_BTV.shape[2], state.past_k_BSK.shape[1]
    given = (q_BTK, k_BTK, v_BTV, bias_R, *state, reset_BT, lengths_B)
    rows = [x if x is None else x.contiguous() for x in given]
    cuts = -(-V // ITEM_CHANNELS)
    inputs = Inputs(B, T, S, K, V, len(bias_R), cuts, function == "laplace", *rows)
    new, seen_B = q_BTK.new_empty, empty_like(state.seen_B)
    outputs = Outputs(new(B, T, V), new(B, S, K), new(B, S, V), seen_B)
    cost = microseconds(bytes=3 * B * S * (K + V) * SIZE, flops=2 * B * S * (K + V))
    launch(step_rows, B * cuts, inputs, outputs, cost=cost)
    o_BTV, *after = outputs
    return o_BTV, ChunkState(*after)
