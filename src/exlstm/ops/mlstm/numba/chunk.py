"""A chunk of the mLSTM, forward and backward, in Numba: products of matrices, with the loops of `rows` between them.

The arrays of a chunk lie in memory that all chunks share; the last chunk may be shorter.

B batch  T time  H heads  L, S chunk length (target, source)  K key width  V value width
"""

from typing import Any, NamedTuple

import numpy as np
from numpy import float32, float64

from exlstm.ops.mlstm.chunkwise import Options
from exlstm.ops.mlstm.numba.rows import (
    add_and_scale_rows,
    add_outer,
    apply_decay,
    apply_decay_backward,
    decay_and_add,
    dots,
    dots_with,
    gate_weights,
    inner,
    norms,
    scale_rows,
)
from exlstm.runtime.cpu.jit import helper
from exlstm.runtime.cpu.kernel import F32, Bools, F32Rows
from exlstm.runtime.cpu.matmul import lower_product, product, product_below, transpose, upper_product
from exlstm.runtime.cpu.memory import SIZE, address_of, clear, part, rows_at, tensor_at

Array = Any  # a float32 NumPy array inside Numba


class Sizes(NamedTuple):
    """Sizes of the sequences, and the length of the chunks that they are cut into."""

    B: int
    T: int
    H: int
    K: int
    V: int
    chunk_len: int


class Keys(NamedTuple):
    """Address of queries or keys, and the bytes from row to row, step to step, and head to head: 0 if heads share."""

    x_BTHK: F32Rows
    row: int
    step: int
    head: int


class Values(NamedTuple):
    """As `Keys`, of values."""

    x_BTHV: F32Rows
    row: int
    step: int
    head: int


class InputTensors(NamedTuple):
    """Addresses of the inputs, for whole sequences."""

    log_i_BTH: F32
    log_f_BTH: F32
    reset_BT: Bools
    q: Keys
    k: Keys
    v: Values


class OutputTensors(NamedTuple):
    """Addresses of the gradients of the inputs, for whole sequences."""

    dq_BTHK: F32
    dk_BTHK: F32
    dv_BTHV: F32
    di_BTH: F32
    df_BTH: F32


class Inputs(NamedTuple):
    """Arrays of a chunk's inputs."""

    log_i_L1: Array
    log_f_L1: Array
    reset_L: Array  # of bools
    q_LK: Array
    k_LK: Array
    v_LV: Array


@helper()
def inputs_at(inputs: InputTensors, sizes: Sizes, b: int, h: int, start: int, L: int) -> Inputs:
    """The inputs of L steps of a head of a row."""
    log_i, log_f, reset, q, k, v = inputs
    T, H, K, V = sizes.T, sizes.H, sizes.K, sizes.V
    here = SIZE * ((b * T + start) * H + h)
    return Inputs(
        rows_at(log_i + here, L, 1, H), rows_at(log_f + here, L, 1, H), tensor_at(reset + b * T + start, L, np.bool_),
        rows_at(q.x_BTHK + b * q.row + start * q.step + h * q.head, L, K, q.step // SIZE),
        rows_at(k.x_BTHK + b * k.row + start * k.step + h * k.head, L, K, k.step // SIZE),
        rows_at(v.x_BTHV + b * v.row + start * v.step + h * v.head, L, V, v.step // SIZE),
    )  # fmt: skip


class Chunk(NamedTuple):
    """Arrays of a chunk that forward and backward compute."""

    source_S: Array  # float64
    carry_L: Array  # factor of the state before the chunk
    floor_L: Array  # exp(-m_t)
    mass_L: Array
    inverse_L: Array  # 1 / norm
    ones_L: Array
    d_LS: Array  # decay from source to target
    last_S: Array  # its last row
    p_LS: Array
    scaled_LK: Array  # queries / sqrt K
    old_LK: Array  # queries as they read the state before the chunk
    worth_LK: Array  # keys as they enter the state after it
    k_KS: Array  # keys, turned


@helper()
def chunk_numbers(L: int, K: int) -> int:
    """Numbers in the memory of a `Chunk`."""
    return 7 * L + 2 * L * L + 4 * L * K


@helper()
def chunk_at(work: int, L: int, K: int) -> Chunk:
    """A `Chunk` in memory at an address, uninitialized except for the ones."""
    row, square, wide = SIZE * L, SIZE * L * L, SIZE * L * K
    d, scaled = work + 7 * row, work + 7 * row + 2 * square
    ones_L = tensor_at(work + 6 * row, L, float32)
    for t in range(L):
        ones_L[t] = float32(1.0)
    return Chunk(
        tensor_at(work, L, float64), tensor_at(work + 2 * row, L, float32), tensor_at(work + 3 * row, L, float32),
        tensor_at(work + 4 * row, L, float32), tensor_at(work + 5 * row, L, float32), ones_L,
        rows_at(d, L, L, L), tensor_at(d + square - row, L, float32), rows_at(d + square, L, L, L),
        rows_at(scaled, L, K, K), rows_at(scaled + wide, L, K, K), rows_at(scaled + 2 * wide, L, K, K),
        rows_at(scaled + 3 * wide, K, L, L),
    )  # fmt: skip


@helper()
def steps_before_reset(x: Inputs) -> int:
    """The number of steps that read the state before the chunk: what a reset forgets may be infinite."""
    steps: int = 0
    while steps < x.reset_L.size and not x.reset_L[steps]:
        steps += 1
    return steps


@helper()
def read_state(w: Chunk, x: Inputs, c_KV: Array, h_LV: Array) -> None:
    """Adds to the numerators what queries read of the state before the chunk."""
    R = steps_before_reset(x)
    if R > 0:
        K, V = c_KV.shape
        product(part(h_LV, 0, 0, R, V), part(w.old_LK, 0, 0, R, K), c_KV, 1.0)


@helper()
def read_chunk(w: Chunk, x: Inputs, n_K: Array, m: float, options: Options) -> float:
    """Fills the gates' weights, P, the mass and the norm, all that needs no V; returns m after the chunk."""
    m = fill_gate_weights(w, x, m, options)
    scale_rows(x.q_LK, w.ones_L, x.q_LK.shape[1] ** -0.5, w.scaled_LK)
    scale_rows(w.scaled_LK, w.carry_L, 1.0, w.old_LK)
    dots_with(w.old_LK, n_K, steps_before_reset(x), w.mass_L)
    transpose(w.k_KS, x.k_LK)
    product_below(w.p_LS, w.scaled_LK, w.k_KS)
    apply_decay(w.p_LS, w.d_LS, w.mass_L)
    norms(w.mass_L, w.floor_L, options.normalize, options.eps, w.inverse_L)
    return m


@helper()
def fill_gate_weights(w: Chunk, x: Inputs, m: float, options: Options) -> float:
    """Fills the decay D, the carry and exp(-m_t); returns m after the chunk."""
    stabilize = options.stabilize
    after: float = gate_weights(
        x.log_i_L1, x.log_f_L1, x.reset_L, m, stabilize, w.d_LS, w.carry_L, w.floor_L, w.source_S
    )
    return after


@helper()
def update_state(w: Chunk, x: Inputs, c_KV: Array, n_K: Array) -> None:
    """Updates the state from before the chunk to after it, by the gates' weights alone."""
    decay = w.carry_L[w.carry_L.size - 1]
    scale_rows(x.k_LK, w.last_S, 1.0, w.worth_LK)
    product(c_KV, w.worth_LK.T, x.v_LV, float64(decay))
    decay_and_add(n_K, decay, w.worth_LK, w.ones_L)


class Grads(NamedTuple):
    """Arrays of gradients inside one chunk."""

    dmass_L: Array
    dcarry_L: Array
    dlast_L: Array  # of the last row of D, which weighs the keys of the next state
    di_L: Array
    df_L: Array
    dp_LS: Array
    dnum_LV: Array
    dold_LK: Array
    dworth_LK: Array
    v_VL: Array  # values, turned
    c_VK: Array  # the state or its gradient, turned


@helper()
def grads_numbers(L: int, K: int, V: int) -> int:
    """Numbers in the memory of `Grads`."""
    return 5 * L + L * L + 2 * L * V + 2 * L * K + K * V


@helper()
def grads_at(work: int, L: int, K: int, V: int) -> Grads:
    """`Grads` in memory at an address, uninitialized."""
    row = SIZE * L
    dp, dnum, dold = work + 5 * row, work + (5 + L) * row, work + (5 + L + V) * row
    turned = dold + 2 * row * K
    return Grads(
        tensor_at(work, L, float32), tensor_at(work + row, L, float32), tensor_at(work + 2 * row, L, float32),
        tensor_at(work + 3 * row, L, float32), tensor_at(work + 4 * row, L, float32), rows_at(dp, L, L, L),
        rows_at(dnum, L, V, V), rows_at(dold, L, K, K), rows_at(dold + row * K, L, K, K),
        rows_at(turned, V, L, L), rows_at(turned + row * V, V, K, K),
    )  # fmt: skip


class Outputs(NamedTuple):
    """Arrays of the gradients of a chunk's inputs."""

    dq_LK: Array
    dk_LK: Array
    dv_LV: Array
    di_L1: Array
    df_L1: Array


@helper()
def outputs_at(outputs: OutputTensors, sizes: Sizes, b: int, h: int, start: int, L: int) -> Outputs:
    """The gradients of L steps of a head of a row."""
    dq, dk, dv, di, df = outputs
    H, K, V = sizes.H, sizes.K, sizes.V
    here = SIZE * ((b * sizes.T + start) * H + h)
    return Outputs(
        rows_at(dq + here * K, L, K, H * K), rows_at(dk + here * K, L, K, H * K), rows_at(dv + here * V, L, V, H * V),
        rows_at(di + here, L, 1, H), rows_at(df + here, L, 1, H),
    )  # fmt: skip


@helper()
def mass_backward(w: Chunk, g: Grads, h_LV: Array, dh_LV: Array, normalize: bool) -> None:
    """Gradients of the numerator and of the mass from that of h."""
    scale_rows(dh_LV, w.inverse_L, 1.0, g.dnum_LV)
    dots(g.dnum_LV, h_LV, g.dmass_L)
    for t in range(g.dmass_L.size):
        wins = normalize and not abs(w.mass_L[t]) < w.floor_L[t]
        g.dmass_L[t] *= -np.sign(w.mass_L[t]) if wins else float32(0.0)


@helper()
def chunk_backward(
    w: Chunk, g: Grads, x: Inputs, c_KV: Array, n_K: Array, dc_KV: Array, dn_K: Array, out: Outputs
) -> None:
    """Gradients of the inputs of a chunk; that of the state after it becomes that of the state before it."""
    decay = w.carry_L[w.carry_L.size - 1]
    transpose(g.v_VL, x.v_LV)
    product_below(g.dp_LS, g.dnum_LV, g.v_VL)
    apply_decay_backward(g.dp_LS, w.p_LS, w.d_LS, g.dmass_L, g.di_L, g.df_L)

    R = steps_before_reset(x)
    clear(address_of(g.dold_LK), g.dold_LK.size)
    if R > 0:
        dold_RK, V = part(g.dold_LK, 0, 0, R, n_K.size), c_KV.shape[1]
        transpose(g.c_VK, c_KV)
        product(dold_RK, part(g.dnum_LV, 0, 0, R, V), g.c_VK, 0.0)
        add_outer(dold_RK, g.dmass_L, n_K)
    dots(g.dold_LK, w.old_LK, g.dcarry_L)
    lower_product(out.dq_LK, g.dp_LS, x.k_LK)
    add_and_scale_rows(out.dq_LK, g.dold_LK, w.carry_L, x.q_LK.shape[1] ** -0.5)

    transpose(g.c_VK, dc_KV)
    product(g.dworth_LK, x.v_LV, g.c_VK, 0.0)
    add_outer(g.dworth_LK, w.ones_L, dn_K)
    dots(g.dworth_LK, x.k_LK, g.dlast_L)
    upper_product(out.dk_LK, g.dp_LS.T, w.scaled_LK)
    add_and_scale_rows(out.dk_LK, g.dworth_LK, w.last_S, 1.0)

    scale_rows(x.k_LK, w.last_S, 1.0, w.worth_LK)
    upper_product(out.dv_LV, w.p_LS.T, g.dnum_LV)
    product(out.dv_LV, w.worth_LK, dc_KV, 1.0)

    ddecay = float64(0.0)
    if x.reset_L.size == R:
        ddecay = inner(dc_KV, c_KV)
        for i in range(n_K.size):
            ddecay += dn_K[i] * n_K[i]
    product(dc_KV, w.old_LK.T, g.dnum_LV, float64(decay))
    decay_and_add(dn_K, decay, w.old_LK, g.dmass_L)
    gates_backward(w, g, float32(ddecay) * decay, out)


@helper()
def gates_backward(w: Chunk, g: Grads, dlog_decay: float, out: Outputs) -> None:
    """Gradients of the gates: log f_j acts on the carry of every t >= j, and through the last row of D on every s < j.

    dlog_decay: the gradient of the exponent of the state's decay.
    """
    L, earlier, later = g.di_L.size, float32(0.0), float32(0.0)
    g.dcarry_L[L - 1] += dlog_decay
    for t in range(L):
        last = g.dlast_L[t] * w.last_S[t]
        out.di_L1[t, 0] = g.di_L[t] + last
        g.df_L[t] += earlier
        earlier += last
    for t in range(L - 1, -1, -1):
        later += g.dcarry_L[t]
        out.df_L1[t, 0] = g.df_L[t] + later
