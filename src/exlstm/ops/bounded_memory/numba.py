"""One time step of a memory of bounded size on a CPU, for decoding: one pass over keys and values of the slots.

An item is a head of a row. Scores are summed while the keys are written, softmax is in between, and what is read is
summed while the values are written.

B batch  T time (one step)  H heads  K key width  V value width  Q slots
"""

from typing import NamedTuple

import numpy as np
import torch
from numpy import float32
from torch import Tensor

from exlstm.ops.bounded_memory.reference import LIMIT, AveragedMemoryState, BoundedMemoryState
from exlstm.runtime.cpu.bfloat16 import read_numbers, write_numbers
from exlstm.runtime.cpu.jit import helper
from exlstm.runtime.cpu.kernel import F32, I64, Bools, Floats, kernel
from exlstm.runtime.cpu.launch import launch, microseconds
from exlstm.runtime.cpu.loops import Array
from exlstm.runtime.cpu.math import exp, tanh, where
from exlstm.runtime.cpu.memory import SIZE, address_of, at, byte_at, clear, copy, long_at, put, row, rows_at

PARTIAL_SUM_ROWS = 16  # rows of a matrix whose products are summed before they join the others: short sums round less


class Sizes(NamedTuple):
    """Sizes of one step; T is 1."""

    B: int
    T: int
    H: int
    K: int
    V: int
    Q: int


class Inputs(NamedTuple):
    """Addresses of the inputs; those behind v may be 0, for none. s: logarithms of weights, in place of all gates."""

    q_BTHK: Floats
    k_BTHK: Floats
    v_BTHV: Floats
    g_BTHQ: F32
    write_BTHQ: F32
    value_write_BTHQ: F32
    s_BTHQ: F32
    reset_BT: Bools
    lengths_B: I64


class Memory(NamedTuple):
    """Addresses of the state before or after the step; that of den is 0 for slots that hold no averages."""

    k_BHKQ: F32
    v_BHQV: F32
    den_BHQ: F32


class Gates(NamedTuple):
    """Numbers of every slot: its decay, what is written to its key and its value, and 1 over its sum of weights."""

    decay_Q: Array
    write_Q: Array
    value_write_Q: Array
    unit_Q: Array


@helper()
def read_or_fill(x: int, place: int, value: float, out_Q: Array) -> None:
    """The numbers of an item, or a value in all places where there are none."""
    if x != 0:
        copy(address_of(out_Q), x + SIZE * place, out_Q.size)
    else:
        out_Q[:] = float32(value)


@helper()
def read_decays(x: Inputs, place: int, gates: Gates) -> None:
    """The gates of slots with decays."""
    g_Q, write_Q = gates.decay_Q, gates.write_Q
    read_or_fill(x.g_BTHQ, place, 0.0, g_Q)
    read_or_fill(x.write_BTHQ, place, 0.0, write_Q)
    for j in range(g_Q.size):
        # 1 - e^g is 2 t / (1 + t) of t = tanh(-g / 2), which keeps its digits near g = 0
        t = tanh(float32(-0.5) * g_Q[j])
        if x.write_BTHQ == 0:
            write_Q[j] = float32(2.0) * t / (float32(1.0) + t)
        g_Q[j] = exp(g_Q[j])
    copy(address_of(gates.value_write_Q), address_of(write_Q), write_Q.size)
    if x.value_write_BTHQ != 0:
        copy(address_of(gates.value_write_Q), x.value_write_BTHQ + SIZE * place, write_Q.size)
    gates.unit_Q[:] = float32(1.0)


@helper()
def read_weights(s: int, den: int, is_fresh: bool, after: int, gates: Gates) -> None:
    """The gates of slots that hold averages, from s; sums of weights become those after the step."""
    low, high = float32(-LIMIT), float32(LIMIT)
    for j in range(gates.write_Q.size):
        x = at(s, j)
        x = where(x < low, low, where(x > high, high, x))
        weight = exp(x)
        total = weight if is_fresh else at(den, j) + weight
        put(after, j, total)
        gates.decay_Q[j], gates.unit_Q[j] = float32(1.0), float32(1.0) / total
        gates.write_Q[j] = gates.value_write_Q[j] = weight


@helper()
def advance_keys(
    q_K: Array, k_K: Array, gates: Gates, before_KQ: Array, after_KQ: Array, part_Q: Array, z_Q: Array
) -> None:
    """K = K diag(decay) + k w^T, and z = K^T q."""
    decay_Q, write_Q = gates.decay_Q, gates.write_Q
    clear(address_of(z_Q), z_Q.size)
    for start in range(0, q_K.size, PARTIAL_SUM_ROWS):
        clear(address_of(part_Q), part_Q.size)
        for i in range(start, min(start + PARTIAL_SUM_ROWS, q_K.size)):
            old_Q, new_Q, q, k = row(before_KQ, i), row(after_KQ, i), q_K[i], k_K[i]
            for j in range(z_Q.size):
                x = decay_Q[j] * old_Q[j] + k * write_Q[j]
                new_Q[j] = x
                part_Q[j] += q * x
        for j in range(z_Q.size):
            z_Q[j] += part_Q[j]


@helper()
def softmax(z_Q: Array, unit_Q: Array) -> None:
    """z becomes softmax(z unit) unit."""
    largest, total = float32(-np.inf), 0.0
    for j in range(z_Q.size):
        z_Q[j] *= unit_Q[j]
        largest = max(largest, z_Q[j])
    for j in range(z_Q.size):
        z_Q[j] = exp(z_Q[j] - largest)
    for j in range(z_Q.size):
        total += float(z_Q[j])
    for j in range(z_Q.size):
        z_Q[j] = z_Q[j] / float32(total) * unit_Q[j]


@helper()
def advance_values(
    p_Q: Array, v_V: Array, gates: Gates, before_QV: Array, after_QV: Array, part_V: Array, o_V: Array
) -> None:
    """V = diag(decay) V + u v^T, and o = V^T p."""
    clear(address_of(o_V), o_V.size)
    for start in range(0, p_Q.size, PARTIAL_SUM_ROWS):
        clear(address_of(part_V), part_V.size)
        for i in range(start, min(start + PARTIAL_SUM_ROWS, p_Q.size)):
            old_V, new_V, p = row(before_QV, i), row(after_QV, i), p_Q[i]
            decay, write = gates.decay_Q[i], gates.value_write_Q[i]
            for j in range(o_V.size):
                x = decay * old_V[j] + write * v_V[j]
                new_V[j] = x
                part_V[j] += p * x
        for j in range(o_V.size):
            o_V[j] += part_V[j]


@kernel()
def step(
    first: int, last: int, sizes: Sizes, x: Inputs, before: Memory, after: Memory, o_BTHV: Floats, bf16: bool
) -> None:
    """Some heads of all rows: fills o and the state after the step."""
    _, _, H, K, V, Q = sizes
    size = 2 if bf16 else SIZE
    q_K, k_K, z_Q, part_Q = np.empty(K, float32), np.empty(K, float32), np.empty(Q, float32), np.empty(Q, float32)
    v_V, o_V, part_V = np.empty(V, float32), np.empty(V, float32), np.empty(V, float32)
    gates = Gates(np.empty(Q, float32), np.empty(Q, float32), np.empty(Q, float32), np.empty(Q, float32))
    for item in range(first, last):
        b, place = item // H, item * Q
        keys, values, den = item * SIZE * K * Q, item * SIZE * Q * V, SIZE * place
        if x.lengths_B != 0 and long_at(x.lengths_B + 8 * b) == 0:
            copy(after.k_BHKQ + keys, before.k_BHKQ + keys, K * Q)
            copy(after.v_BHQV + values, before.v_BHQV + values, Q * V)
            if after.den_BHQ != 0:
                copy(after.den_BHQ + den, before.den_BHQ + den, Q)
            clear(address_of(o_V), V)
            write_numbers(o_V, o_BTHV + size * item * V, bf16)
            continue
        old_keys, old_values = before.k_BHKQ + keys, before.v_BHQV + values
        is_fresh = bool(x.reset_BT != 0 and byte_at(x.reset_BT + b) != 0)
        if is_fresh:
            # what is forgotten may be infinite, so it is not multiplied by zero
            old_keys, old_values = after.k_BHKQ + keys, after.v_BHQV + values
            clear(old_keys, K * Q)
            clear(old_values, Q * V)
        read_numbers(x.q_BTHK + size * item * K, bf16, q_K)
        read_numbers(x.k_BTHK + size * item * K, bf16, k_K)
        read_numbers(x.v_BTHV + size * item * V, bf16, v_V)
        if x.s_BTHQ != 0:
            read_weights(x.s_BTHQ + SIZE * place, before.den_BHQ + den, is_fresh, after.den_BHQ + den, gates)
        else:
            read_decays(x, place, gates)
        matrices = rows_at(old_keys, K, Q, Q), rows_at(after.k_BHKQ + keys, K, Q, Q)
        advance_keys(q_K, k_K, gates, *matrices, part_Q, z_Q)
        softmax(z_Q, gates.unit_Q)
        matrices = rows_at(old_values, Q, V, V), rows_at(after.v_BHQV + values, Q, V, V)
        advance_values(z_Q, v_V, gates, *matrices, part_V, o_V)
        write_numbers(o_V, o_BTHV + size * item * V, bf16)


def run(
    qkv: tuple[Tensor, ...], gates: tuple[Tensor | None, ...], state: Memory, rows: tuple[Tensor | None, ...]
) -> tuple[Tensor, Memory]:
    """o in q's dtype, and the state after. gates: g, write, value_write and s of `Inputs`; rows: its last two."""
    (B, T, H, K), V, Q, dtype = qkv[0].shape, qkv[2].shape[3], state.v_BHQV.shape[2], qkv[0].dtype
    bf16 = all(x.dtype is torch.bfloat16 for x in qkv)
    if not bf16:
        qkv = tuple(x.float() for x in qkv)
    wide = (None if x is None else x.float() for x in gates)
    inputs = Inputs(*(None if x is None else x.contiguous() for x in (*qkv, *wide, *rows)))
    before = Memory(*(None if x is None else x.contiguous() for x in state))
    after = Memory(*(None if x is None else torch.empty_like(x) for x in before))
    o_BTHV = torch.empty_like(inputs.v_BTHV)
    cost = microseconds(bytes=8 * B * H * Q * (K + V))
    launch(step, B * H, Sizes(B, T, H, K, V, Q), inputs, before, after, o_BTHV, bf16, cost=cost)
    return o_BTHV.to(dtype), after


def bounded_memory_step_numba(
    qkv: tuple[Tensor, ...],
    gates: tuple[Tensor | None, ...],
    state: BoundedMemoryState,
    rows: tuple[Tensor | None, ...],
) -> tuple[Tensor, BoundedMemoryState]:
    """The numbers of `bounded_memory_recurrent` for T = 1, without gradients, in float32; gates: g and both writes."""
    o_BTHV, after = run(qkv, (*gates, None), Memory(*state, None), rows)
    return o_BTHV, BoundedMemoryState(after.k_BHKQ, after.v_BHQV)


def averaged_memory_step_numba(
    qkv: tuple[Tensor, ...], s_BTHQ: Tensor, state: AveragedMemoryState, rows: tuple[Tensor | None, ...]
) -> tuple[Tensor, AveragedMemoryState]:
    """The numbers of `averaged_memory_recurrent` for T = 1, without gradients, in float32."""
    o_BTHV, after = run(qkv, (None, None, None, s_BTHQ), Memory(*state), rows)
    return o_BTHV, AveragedMemoryState(*after)
