"""A decoding step of attention with a window on a CPU, without gradients: the output and the new cache in one pass.

An item is a query head of a row. It rotates its query, and its group's key as the other heads of the group do; each
writes some entries of the group's new cache. Only entries that the row has seen are read.

B batch  T time (1)  S cached steps  H query heads  G key and value heads  K head width  R channels that are rotated
"""

from math import cos, sin, sqrt
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy import float32, int64
from torch import Tensor

from exlstm.ops.attention.reference import WindowState
from exlstm.ops.rope import rotated_width
from exlstm.runtime.cpu.bfloat16 import read_numbers, write_numbers
from exlstm.runtime.cpu.jit import helper
from exlstm.runtime.cpu.kernel import F32, I64, Bools, Floats, kernel
from exlstm.runtime.cpu.launch import launch, microseconds
from exlstm.runtime.cpu.loops import add_scaled, dot_at, to_softmax
from exlstm.runtime.cpu.memory import SIZE, address_of, at, byte_at, clear, copy, hold, long_at, tensor_at


class Inputs(NamedTuple):
    """Inputs of the step. entry: bytes of a head's key or value."""

    B: int
    T: int
    S: int
    H: int
    G: int
    K: int
    R: int
    entry: int
    base: float
    q_BTHK: F32
    k_BTGK: F32
    v_BTGK: F32
    past_k_BSGK: Floats
    past_v_BSGK: Floats
    next_B: I64
    reset_BT: Bools
    lengths_B: I64


class Outputs(NamedTuple):
    """The output and the cache afterwards."""

    h_BTHK: F32
    after_k_BSGK: Floats
    after_v_BSGK: Floats
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
def numbers_at(entry: int, bf16: bool, spare_K: Any) -> Any:
    """The address of the numbers of a cached entry in float32: its own, or that of a copy."""
    if not bf16:
        return entry
    read_numbers(entry, True, spare_K)
    return address_of(spare_K)


@helper()
def renewed(x: Inputs, after: int, before: int, new_K: Any, is_new: bool, kept: int, part: int, bf16: bool) -> None:
    """A part of a head's new cache: zeros, the newest `kept` entries of the old one, and a new one."""
    share, apart, numbers = x.H // x.G, x.G * x.entry, x.entry // SIZE
    more = 1 if is_new else 0
    for s in range(x.S * part // share, x.S * (part + 1) // share):
        entry = after + s * apart
        if s < x.S - more - kept:
            clear(entry, numbers)
        elif is_new and s == x.S - 1:
            write_numbers(new_K, entry, bf16)
        else:
            copy(entry, before + (s + more) * apart, numbers)


@helper()
def attended(x: Inputs, h: int, q: int, k: int, v: int, past: int, w_A: Any, spare_K: Any, bf16: bool) -> None:
    """h = the values of the step itself and of the newest entries, by the softmax of their products with q."""
    apart, end, factor = x.G * x.entry, past + x.S * x.G * x.entry, float32(1.0 / sqrt(float(x.K)))
    w_A[0] = dot_at(q, k, x.K) * factor
    for lag in range(1, w_A.size):
        w_A[lag] = dot_at(q, numbers_at(x.past_k_BSGK + end - lag * apart, bf16, spare_K), x.K) * factor
    to_softmax(w_A)
    add_scaled(h, v, w_A[0], x.K)
    for lag in range(1, w_A.size):
        add_scaled(h, numbers_at(x.past_v_BSGK + end - lag * apart, bf16, spare_K), w_A[lag], x.K)


@kernel()
def step_heads(first: int, last: int, x: Inputs, out: Outputs, bf16: bool) -> None:
    """Heads of h, and of the cache with the new step as its last entry."""
    S, K, share = x.S, x.K, x.H // x.G
    q_K, k_K, v_K, spare_K = np.empty(K, float32), np.empty(K, float32), np.empty(K, float32), np.empty(K, float32)
    for item in range(first, last):
        b, head = item // x.H, item % x.H
        own, past = (b * x.G + head // share) * K * SIZE, (b * S * x.G + head // share) * x.entry
        position, h = long_at(x.next_B + 8 * b), out.h_BTHK + item * K * SIZE
        is_new = x.lengths_B == 0 or long_at(x.lengths_B + 8 * b) > 0
        clear(h, K)
        kept, after = min(position, S), position
        if is_new:
            if x.reset_BT != 0 and byte_at(x.reset_BT + b) != 0:
                position = 0
            rotated(x.q_BTHK + item * K * SIZE, position, x.base, x.R, q_K)
            rotated(x.k_BTGK + own, position, x.base, x.R, k_K)
            copy(address_of(v_K), x.v_BTGK + own, K)
            w_A = np.empty(min(position, S) + 1, float32)
            attended(x, h, address_of(q_K), address_of(k_K), address_of(v_K), past, w_A, spare_K, bf16)
            kept, after = min(position, S - 1), position + 1
        renewed(x, out.after_k_BSGK + past, x.past_k_BSGK + past, k_K, is_new, kept, head % share, bf16)
        renewed(x, out.after_v_BSGK + past, x.past_v_BSGK + past, v_K, is_new, kept, head % share, bf16)
        if head == 0:
            tensor_at(out.after_B + 8 * b, 1, int64)[0] = after
    hold(q_K)
    hold(k_K)
    hold(v_K)
    hold(spare_K)


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
    """The numbers of `attention_torch` for one step, in float32 and without a graph; a cache may hold bfloat16."""
    (B, T, H, K), (S, G) = q_BTHK.shape, state.k_BSGK.shape[1:3]
    R, base = (0, 1.0) if rope_base is None else (rotated_width(K, rope_share), float(rope_base))
    dtype = torch.bfloat16 if k_BTGK.dtype is torch.bfloat16 else torch.float32
    past = [x.to(dtype).contiguous() for x in state[:2]]
    rows = [x if x is None else x.contiguous() for x in (state.next_B, reset_BT, lengths_B)]
    new = [x.float().contiguous() for x in (q_BTHK, k_BTGK, v_BTGK)]
    inputs = Inputs(B, T, S, H, G, K, R, K * dtype.itemsize, base, *new, *past, *rows)
    outputs = Outputs(*(torch.empty_like(x) for x in (new[0], *past, inputs.next_B)))
    cost = microseconds(bytes=4 * (past[0].nbytes + past[1].nbytes), flops=4 * B * S * H * K)
    launch(step_heads, B * H, inputs, outputs, dtype is torch.bfloat16, cost=cost)
    h_BTHK, *after = outputs
    return h_BTHK.to(q_BTHK.dtype), WindowState(*after)
