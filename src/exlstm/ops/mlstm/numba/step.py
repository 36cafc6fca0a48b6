"""One time step of the mLSTM on a CPU, for decoding: one pass over the memory.

The old C is read once and the new one written once; the read-out is summed on the way. The gates, of which there are
few, are computed in float64, everything else in float32.

B batch  T time (one step)  H heads  M rows and heads merged  K key width  V value width
"""

from math import exp, log, log1p
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy import float32, float64
from torch import Tensor

from exlstm.ops.gates import INPUT_GATES, SMALL, ForgetGate, InputGate
from exlstm.ops.mlstm.reference import MLSTMState
from exlstm.runtime.cpu.bfloat16 import read_numbers, write_numbers
from exlstm.runtime.cpu.jit import helper
from exlstm.runtime.cpu.kernel import F32, Bools, Floats, kernel
from exlstm.runtime.cpu.launch import launch, microseconds
from exlstm.runtime.cpu.memory import address_of, clear, tensor_at

PARTIAL_SUM_ROWS = 16  # rows of C whose read-outs are summed before they join the others: short sums round less
EXP, SIGMOID, SOFTPLUS, RELU = (INPUT_GATES.index(gate) for gate in ("exp", "sigmoid", "softplus", "relu"))


@helper()
def log_sigmoid(x: float) -> Any:
    """log(1 / (1 + e^-x))"""
    return min(x, 0.0) - log1p(exp(-abs(x)))


@helper()
def log_input(x: float, gate: int) -> Any:
    """log i, by the gate's place in INPUT_GATES."""
    if gate == EXP:
        return x
    if gate == SIGMOID:
        return log_sigmoid(x)
    if gate == SOFTPLUS:
        return x if x < -40.0 else log(-log_sigmoid(-x))
    return -np.inf if x <= 0.0 else log(SMALL if x < SMALL else x) * (1.0 if gate == RELU else 2.0)


class Sizes(NamedTuple):
    """Sizes of one step; T is 1."""

    B: int
    T: int
    H: int
    K: int
    V: int


class Inputs(NamedTuple):
    """Addresses of the inputs; reset_BT may be 0, for none."""

    q_BTHK: Floats
    k_BTHK: Floats
    v_BTHV: Floats
    i_BTH: F32
    f_BTH: F32
    reset_BT: Bools


class State(NamedTuple):
    """Addresses of the state before or after the step."""

    c_BHKV: F32
    n_BHK: F32
    m_BH: F32


class Options(NamedTuple):
    """Options of the cell. input_gate: its place in INPUT_GATES."""

    input_gate: int
    exp_forget: bool
    normalize: bool
    eps: float


@kernel()
def step(first: int, last: int, sizes: Sizes, x: Inputs, before: State, after: State, h_BTHV: Floats, options: Options,
         bf16: bool) -> None:  # fmt: skip
    """Some heads of all rows: fills h and the state after the step."""
    B, _, H, K, V = sizes
    M, scale, size = B * H, float32(1.0 / np.sqrt(float64(K))), 2 if bf16 else 4
    i_M, f_M, reset_B = (
        tensor_at(x.i_BTH, M, float32),
        tensor_at(x.f_BTH, M, float32),
        tensor_at(x.reset_BT, B, np.bool_),
    )
    c0_MKV, n0_MK = tensor_at(before.c_BHKV, (M, K, V), float32), tensor_at(before.n_BHK, (M, K), float32)
    c_MKV, n_MK = tensor_at(after.c_BHKV, (M, K, V), float32), tensor_at(after.n_BHK, (M, K), float32)
    m0_M, m_M = tensor_at(before.m_BH, M, float32), tensor_at(after.m_BH, M, float32)
    q_K, k_K, v_V = np.empty(K, float32), np.empty(K, float32), np.empty(V, float32)
    h_V, part_V = np.empty(V, float32), np.empty(V, float32)
    for item in range(first, last):
        fresh = x.reset_BT != 0 and reset_B[item // H]
        c_KV, old_KV = c_MKV[item], c0_MKV[item]
        read_numbers(x.q_BTHK + size * item * K, bf16, q_K)
        read_numbers(x.k_BTHK + size * item * K, bf16, k_K)
        read_numbers(x.v_BTHV + size * item * V, bf16, v_V)
        if fresh:
            # what is forgotten may be infinite, so it is not multiplied by zero
            clear(address_of(c_KV), K * V)
            old_KV = c_KV
        # m is the larger of these two and is saved as a float32; so they are rounded first, and one weight is exactly 1
        raw_i, raw_f, m0 = float64(i_M[item]), float64(f_M[item]), 0.0 if fresh else float64(m0_M[item])
        decayed = float64(float32((raw_f if options.exp_forget else log_sigmoid(raw_f)) + m0))
        log_i = float64(float32(log_input(raw_i, options.input_gate)))
        m = np.maximum(decayed, log_i) if options.exp_forget or options.input_gate != SIGMOID else 0.0
        decay, write, mass = float32(exp(decayed - m)), float32(exp(log_i - m)), 0.0
        clear(address_of(h_V), V)
        for start in range(0, K, PARTIAL_SUM_ROWS):
            clear(address_of(part_V), V)
            for row in range(start, min(start + PARTIAL_SUM_ROWS, K)):
                written, read = write * k_K[row], scale * q_K[row]
                n = (float32(0.0) if fresh else decay * n0_MK[item, row]) + written
                n_MK[item, row] = n
                mass += float64(read) * float64(n)
                for j in range(V):
                    c = decay * old_KV[row, j] + written * v_V[j]
                    c_KV[row, j] = c
                    part_V[j] += read * c
            for j in range(V):
                h_V[j] += part_V[j]
        floor = exp(-m)
        norm = float32(np.maximum(abs(mass), floor) + options.eps if options.normalize else floor)
        for j in range(V):
            h_V[j] /= norm
        write_numbers(h_V, h_BTHV + size * item * V, bf16)
        m_M[item] = float32(m)


def contiguous_float32(x: Tensor) -> Tensor:
    """`x` in float32 and contiguous."""
    return x if x.dtype is torch.float32 and x.is_contiguous() else x.float().contiguous()


def all_bf16(tensors: tuple[Tensor, ...]) -> bool:
    """Whether the kernel can read all of these as bfloat16."""
    return all(x.dtype is torch.bfloat16 and x.is_contiguous() for x in tensors)


def mlstm_numba_step(
    q_BTHK: Tensor, k_BTHK: Tensor, v_BTHV: Tensor, i_BTH: Tensor, f_BTH: Tensor, state: MLSTMState, /,
    *, reset_BT: Tensor | None = None, input_gate: InputGate = "exp", forget_gate: ForgetGate = "sigmoid",
    normalize: bool = True, eps: float = 1e-6,
) -> tuple[Tensor, MLSTMState]:  # fmt: skip
    """The numbers of `mlstm_recurrent` for T = 1, without gradients, in float32; h is returned in the dtype of q."""
    B, H, K, V = state.c_BHKV.shape
    qkv, dtype = (q_BTHK, k_BTHK, v_BTHV), q_BTHK.dtype
    bf16 = all_bf16(qkv)
    if not bf16:
        qkv = contiguous_float32(q_BTHK), contiguous_float32(k_BTHK), contiguous_float32(v_BTHV)
    before = MLSTMState(*map(contiguous_float32, state))
    after, h_BTHV = MLSTMState(*map(torch.empty_like, before)), torch.empty_like(qkv[2])
    inputs = Inputs(
        *qkv, contiguous_float32(i_BTH), contiguous_float32(f_BTH), None if reset_BT is None else reset_BT.contiguous()
    )
    options = Options(INPUT_GATES.index(input_gate), forget_gate == "exp", normalize, eps)
    launch(
        step, B * H, Sizes(B, 1, H, K, V), inputs, before, after, h_BTHV, options, bf16,
        cost=microseconds(bytes=8 * B * H * K * V),
    )  # fmt: skip
    return h_BTHV if h_BTHV.dtype is dtype else h_BTHV.to(dtype), after
