"""A decoding step of attention with a window on a CPU, without gradients: the output and the new cache in one pass.

An item is a query head of a row. It rotates its query, and its group's key as the other heads of the group do; each
writes some entries of the group's new cache. Only entries that the row has seen are read.

B batch  T time (1)  S cached steps  H query heads  G key and value heads  K head width  R channels that are rotated
"""

from math import cos, sin, sqrt
from typing import Any, NamedTuple

import numpy as np
from numpy import float32, int64
from torch import Tensor, empty_like

from exlstm.ops.attention.reference import WindowState
from exlstm.ops.rope import rotated_width
from exlstm.runtime.cpu.jit import helper
from exlstm.runtime.cpu.kernel import F32, I64, Bools, kernel
from exlstm.runtime.cpu.launch import launch, microseconds
from exlstm.runtime.cpu.loops import add_scaled, dot_at, to_softmax
from exlstm.runtime.cpu.memory import SIZE, address_of, at, byte_at, clear, copy, hold, long_at, tensor_at


class Inputs(NamedTuple):
    """Inputs of the step."""

    B: int
    T: int
    S: int
    H: int
    G: int
    K: int
    R: int
    base: float
    q_BTHK: F32
    k_BTGK: F32
    v_BTGK: F32
    past_k_BSGK: F32
    past_v_BSGK: F32
    next_B: I64
    reset_BT: Bools
    lengths_B: I64


class Outputs(NamedTuple):
    """The output and the cache afterwards."""

    h_BTHK: F32
    after_k_BSGK: F32
    after_v_BSGK: F32
    after_B: I64


@helper()
def rotated(x: int, position: int, base: float, R: int, out_K: Any) -> None:
    """The head at an address, with its first R channels rotated."""
    for j in range(out_K.size):
        out_K[j] = at(x, j)
    for f in range(R // 2):
        angle = float(position) * base ** (-2.0 * f / R)
        c, s, far = float32(cos(angle)), float32(sin(angle)), f + R // 2
        left, right = out_K[f], out_K[far]
        out_K[f] = left * c - right * s
        out_K[far] = right * c + left * s


@helper()
def renewed(x: Inputs, after: int, before: int, new: int, kept: int, part: int) -> None:
    """A part of a head's new cache: zeros, the newest `kept` entries of the old one, and the new one unless it is 0."""
    share, apart = x.H // x.G, x.G * x.K * SIZE
    more = 1 if new != 0 else 0
    for s in range(x.S * part // share, x.S * (part + 1) // share):
        entry = after + s * apart
        if s < x.S - more - kept:
            clear(entry, x.K)
        elif s == x.S - 1 and new != 0:
            copy(entry, new, x.K)
        else:
            copy(entry, before + (s + more) * apart, x.K)


@kernel()
def step_heads(first: int, last: int, x: Inputs, out: Outputs) -> None:
    """Heads of h, and of the cache with the new step as its last entry."""
    S, K, share, apart = x.S, x.K, x.H // x.G, x.G * x.K * SIZE
    for item in range(first, last):
        b, head = item // x.H, item % x.H
        own = (b * x.G + head // share) * K * SIZE
        past = (b * S * x.G + head // share) * K * SIZE
        position = long_at(x.next_B + 8 * b)
        q_K, k_K = np.empty(K, float32), np.empty(K, float32)
        k, v, h = address_of(k_K), x.v_BTGK + own, out.h_BTHK + item * K * SIZE
        clear(h, K)
        if x.lengths_B != 0 and long_at(x.lengths_B + 8 * b) == 0:
            kept, after, k, v = min(position, S), position, 0, 0
        else:
            if x.reset_BT != 0 and byte_at(x.reset_BT + b) != 0:
                position = 0
            kept, after = min(position, S), position + 1
            rotated(x.q_BTHK + item * K * SIZE, position, x.base, x.R, q_K)
            rotated(x.k_BTGK + own, position, x.base, x.R, k_K)
            q, factor, w_A = address_of(q_K), float32(1.0 / sqrt(float(K))), np.empty(kept + 1, float32)
            w_A[0] = dot_at(q, k, K) * factor
            for lag in range(1, kept + 1):
                w_A[lag] = dot_at(q, x.past_k_BSGK + past + (S - lag) * apart, K) * factor
            to_softmax(w_A)
            add_scaled(h, v, w_A[0], K)
            for lag in range(1, kept + 1):
                add_scaled(h, x.past_v_BSGK + past + (S - lag) * apart, w_A[lag], K)
            kept = min(kept, S - 1)
        renewed(x, out.after_k_BSGK + past, x.past_k_BSGK + past, k, kept, head % share)
        renewed(x, out.after_v_BSGK + past, x.past_v_BSGK + past, v, kept, head % share)
        if head == 0:
            tensor_at(out.after_B + 8 * b, 1, int64)[0] = after
        hold(q_K)
        hold(k_K)


def attention_numba(
    q_BTHK: Tensor,
    k_BTGK: Tensor,
    v_BTGK: Tensor,
    state: WindowState,
    /,
    *,
    reset_BT: Tensor | None,
    lengths_B: Tensor | None,
    rope_base: float | None,
    rope_share: float,
) -> tuple[Tensor, WindowState]:
    """The numbers of `attention_torch` for one step, in float32 and without a graph."""
    (B, T, H, K), (S, G) = q_BTHK.shape, state.k_BSGK.shape[1:3]
    R, base = (0, 1.0) if rope_base is None else (rotated_width(K, rope_share), float(rope_base))
    past_k_BSGK, past_v_BSGK, next_B = state
    given = (q_BTHK, k_BTGK, v_BTGK, past_k_BSGK.float(), past_v_BSGK.float(), next_B, reset_BT, lengths_B)
    inputs = Inputs(B, T, S, H, G, K, R, base, *(x if x is None else x.contiguous() for x in given))
    outputs = Outputs(*(empty_like(x) for x in (inputs.q_BTHK, inputs.past_k_BSGK, inputs.past_v_BSGK, inputs.next_B)))
    cost = microseconds(bytes=16 * B * S * G * K * SIZE, flops=4 * B * S * H * K)
    launch(step_heads, B * H, inputs, outputs, cost=cost)
    h_BTHK, *after = outputs
    return h_BTHK, WindowState(*after)
