"""One time step of linear attention on a CPU, for decoding: one pass over the memory.

The old S is read once and the new one written once; the read-out is summed on the way. Queries and keys of a group are
read where they are, by each of its heads.

B batch  T time (one step)  G groups  H heads  K key width  V value width
"""

from math import exp
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy import float32, float64
from torch import Tensor

from exlstm.runtime.cpu.bfloat16 import read_numbers, write_numbers
from exlstm.runtime.cpu.jit import helper
from exlstm.runtime.cpu.kernel import F32, I64, Bools, Floats, kernel
from exlstm.runtime.cpu.launch import launch, microseconds
from exlstm.runtime.cpu.loops import Array
from exlstm.runtime.cpu.memory import SIZE, address_of, at, byte_at, clear, copy, long_at, put, row, rows_at

PARTIAL_SUM_ROWS = 16  # rows of S whose read-outs are summed before they join the others: short sums round less


class Sizes(NamedTuple):
    """Sizes of one step; T is 1."""

    B: int
    T: int
    G: int
    H: int
    K: int
    V: int


class Inputs(NamedTuple):
    """Addresses of the inputs; those of decays, writes, resets and lengths may be 0, for none."""

    q_BTGK: Floats
    k_BTGK: Floats
    v_BTHV: Floats
    g_BTH: F32
    g_H: F32
    write_BTH: F32
    reset_BT: Bools
    lengths_B: I64


class State(NamedTuple):
    """Addresses of the state before or after the step. Those of n are 0 without a normalizer."""

    s_BHKV: F32
    n_BHK: F32


@helper()
def decay_of(x: Inputs, item: int, head: int) -> float:
    """e^g of a head of a row, of a g that is at most 0."""
    if x.g_BTH != 0:
        return exp(min(float64(at(x.g_BTH, item)), 0.0))
    return exp(min(float64(at(x.g_H, head)), 0.0)) if x.g_H != 0 else 1.0


@helper()
def read_and_update(
    q_K: Array, k_K: Array, v_V: Array, part_V: Array, decay: float, before_KV: Array, after_KV: Array, o_V: Array
) -> None:
    """S = decay S + k v^T, and o = S^T q."""
    keep = float32(decay)
    clear(address_of(o_V), o_V.size)
    for start in range(0, q_K.size, PARTIAL_SUM_ROWS):
        clear(address_of(part_V), part_V.size)
        for i in range(start, min(start + PARTIAL_SUM_ROWS, q_K.size)):
            old_V, new_V, read, written = row(before_KV, i), row(after_KV, i), q_K[i], k_K[i]
            for j in range(v_V.size):
                s = keep * old_V[j] + written * v_V[j]
                new_V[j] = s
                part_V[j] += read * s
        for j in range(o_V.size):
            o_V[j] += part_V[j]


@helper()
def normalize(q_K: Array, k_K: Array, n: int, after: int, eps: float, o_V: Array) -> None:
    """n = n + k, and o = o / (|n . q| + eps). n may be 0, for zeros."""
    mass = float64(0.0)
    for i in range(q_K.size):
        total = k_K[i] if n == 0 else at(n, i) + k_K[i]
        put(after, i, total)
        mass += float64(q_K[i]) * float64(total)
    norm = float32(abs(mass) + eps)
    for j in range(o_V.size):
        o_V[j] /= norm


@kernel()
def step(
    first: int,
    last: int,
    sizes: Sizes,
    x: Inputs,
    before: State,
    after: State,
    o_BTHV: Floats,
    eps: float,
    bf16: bool,
) -> None:
    """Some heads of all rows: fills o and the state after the step."""
    _, _, G, H, K, V = sizes
    size = 2 if bf16 else SIZE
    q_K, k_K = np.empty(K, float32), np.empty(K, float32)
    v_V, o_V, part_V = np.empty(V, float32), np.empty(V, float32), np.empty(V, float32)
    for item in range(first, last):
        b, head = item // H, item % H
        group = b * G + head * G // H
        s, old_s, n = after.s_BHKV + SIZE * item * K * V, before.s_BHKV + SIZE * item * K * V, after.n_BHK
        old_n = before.n_BHK + SIZE * item * K if n != 0 else 0
        n = n + SIZE * item * K if n != 0 else 0
        if x.lengths_B != 0 and long_at(x.lengths_B + 8 * b) == 0:
            copy(s, old_s, K * V)
            if n != 0:
                copy(n, old_n, K)
            clear(address_of(o_V), V)
            write_numbers(o_V, o_BTHV + size * item * V, bf16)
            continue
        if x.reset_BT != 0 and byte_at(x.reset_BT + b) != 0:
            # what is forgotten may be infinite, so it is not multiplied by zero
            clear(s, K * V)
            old_s, old_n = s, 0
        read_numbers(x.q_BTGK + size * group * K, bf16, q_K)
        read_numbers(x.k_BTGK + size * group * K, bf16, k_K)
        read_numbers(x.v_BTHV + size * item * V, bf16, v_V)
        if x.write_BTH != 0:
            for j in range(V):
                v_V[j] *= at(x.write_BTH, item)
        decay = decay_of(x, item, head)
        read_and_update(q_K, k_K, v_V, part_V, decay, rows_at(old_s, K, V, V), rows_at(s, K, V, V), o_V)
        if n != 0:
            normalize(q_K, k_K, old_n, n, eps, o_V)
        write_numbers(o_V, o_BTHV + size * item * V, bf16)


def linear_attention_step_numba(
    q_BTGK: Tensor,
    k_BTGK: Tensor,
    v_BTHV: Tensor,
    g: Tensor | None,
    write_BTH: Tensor | None,
    s_BHKV: Tensor,
    reset_BT: Tensor | None,
    lengths_B: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The numbers of `linear_attention_recurrent` for T = 1, without gradients, in float32: o in v's dtype, and S."""
    gates = *((g, None) if g is not None and g.ndim == 3 else (None, g)), write_BTH
    o_BTHV, s_BHKV, _ = run((q_BTGK, k_BTGK, v_BTHV), gates, (s_BHKV, None), (reset_BT, lengths_B), 0.0)
    return o_BTHV, s_BHKV


def normalized_step_numba(
    q_BTHK: Tensor,
    k_BTHK: Tensor,
    v_BTHV: Tensor,
    s_BHKV: Tensor,
    n_BHK: Tensor,
    reset_BT: Tensor | None,
    lengths_B: Tensor | None,
    *,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """The numbers of `normalized_recurrent` for T = 1, without gradients, in float32: o in v's dtype, S and n."""
    return run((q_BTHK, k_BTHK, v_BTHV), (None, None, None), (s_BHKV, n_BHK), (reset_BT, lengths_B), eps)


def run(
    qkv: tuple[Tensor, ...],
    gates: tuple[Tensor | None, ...],
    state: tuple[Tensor | None, ...],
    rows: tuple[Tensor | None, ...],
    eps: float,
) -> tuple[Any, ...]:
    """o, S and n. gates: the fields g_BTH, g_H and write_BTH of `Inputs`; rows: its last two."""
    (B, T, G, K), (_, _, H, V), dtype = qkv[0].shape, qkv[2].shape, qkv[2].dtype
    bf16 = all(x.dtype is torch.bfloat16 for x in qkv)
    if not bf16:
        qkv = tuple(x.float() for x in qkv)
    wide = (None if x is None else x.float() for x in gates)
    inputs = Inputs(*(None if x is None else x.contiguous() for x in (*qkv, *wide, *rows)))
    before = State(*(None if x is None else x.contiguous() for x in state))
    after = State(*(None if x is None else torch.empty_like(x) for x in before))
    o_BTHV = torch.empty_like(inputs.v_BTHV)
    cost = microseconds(bytes=8 * B * H * K * V)
    launch(step, B * H, Sizes(B, T, G, H, K, V), inputs, before, after, o_BTHV, eps, bf16, cost=cost)
    return o_BTHV.to(dtype), *after
