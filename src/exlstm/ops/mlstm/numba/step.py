"""One time step of the mLSTM on a CPU, for decoding: one pass over the memory, compiled by Numba.

The old C is read once and the new one written once; the read-out is summed on the way. The gates, of which there are
few, are worked out in float64, everything else in float32. A small model spends its time on the way into a kernel, not
inside: so tensors are handed over as addresses, which cost a tenth of arrays.

B batch  T time (one step)  H heads  M rows and heads merged  K key width  V value width
"""

from math import exp, log, log1p
from typing import Any

import numpy as np
import torch
from numpy import float32, float64
from torch import Tensor

from exlstm.ops.gates import INPUT_GATES, SMALL, ForgetGate, InputGate
from exlstm.ops.mlstm.reference import MLSTMState
from exlstm.runtime.addresses import address, addresses
from exlstm.runtime.capture import recording
from exlstm.runtime.cpu.bfloat16 import read_numbers, write_numbers
from exlstm.runtime.cpu.jit import compiled, helper
from exlstm.runtime.cpu.memory import address_of, clear, double_as_long, double_at, long_at, tensor_at
from exlstm.runtime.threads import share_out

TOGETHER = 16  # rows of C whose read-outs are summed before they join the others: two short sums round less than one
THREAD_BYTES = 8 << 20  # so much memory to step through takes a thread longer than waking another
SHARED_BYTES = 64 << 10  # and so much longer than telling one that is awake
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


@compiled
def step(first: int, last: int, H: int, K: int, V: int, q: int, k: int, v: int, i: int, f: int, reset: int,
         c0: int, n0: int, m0: int, c1: int, n1: int, m1: int, h: int, short: bool, input_gate: int, exp_forget: bool,
         normalize: bool, eps: float) -> None:  # fmt: skip
    """Heads first to last - 1 of all rows. Every other argument in small letters is the address of a tensor.

    float32, contiguous; q, k, v and h are bfloat16 if `short`; reset: of bools, one per row, or 0. Fills c1, n1, m1,
    the state afterwards, and h.
    """
    M, scale, size = last, float32(1.0 / np.sqrt(float64(K))), 2 if short else 4
    i_M, f_M, reset_B = tensor_at(i, M, float32), tensor_at(f, M, float32), tensor_at(reset, -(-M // H), np.bool_)
    c0_MKV, n0_MK = tensor_at(c0, (M, K, V), float32), tensor_at(n0, (M, K), float32)
    c_MKV, n_MK = tensor_at(c1, (M, K, V), float32), tensor_at(n1, (M, K), float32)
    m0_M, m_M = tensor_at(m0, M, float32), tensor_at(m1, M, float32)
    q_K, k_K, v_V = np.empty(K, float32), np.empty(K, float32), np.empty(V, float32)
    h_V, part_V = np.empty(V, float32), np.empty(V, float32)
    for item in range(first, last):
        fresh = reset != 0 and reset_B[item // H]
        c_KV, old_KV = c_MKV[item], c0_MKV[item]
        read_numbers(q + size * item * K, short, q_K)
        read_numbers(k + size * item * K, short, k_K)
        read_numbers(v + size * item * V, short, v_V)
        if fresh:
            # what is forgotten may be infinite, so it is not multiplied by zero
            clear(address_of(c_KV), K * V)
            old_KV = c_KV
        # m is the larger of these two and is kept as a float32; so they are rounded first, and one weight is exactly 1
        raw_i, raw_f, before = float64(i_M[item]), float64(f_M[item]), 0.0 if fresh else float64(m0_M[item])
        kept = float64(float32((raw_f if exp_forget else log_sigmoid(raw_f)) + before))
        log_i = float64(float32(log_input(raw_i, input_gate)))
        m = np.maximum(kept, log_i) if exp_forget or input_gate != SIGMOID else 0.0
        decay, write, mass = float32(exp(kept - m)), float32(exp(log_i - m)), 0.0
        clear(address_of(h_V), V)
        for start in range(0, K, TOGETHER):
            clear(address_of(part_V), V)
            for row in range(start, min(start + TOGETHER, K)):
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
        norm = float32(np.maximum(abs(mass), floor) + eps if normalize else floor)
        for j in range(V):
            h_V[j] /= norm
        write_numbers(h_V, h + size * item * V, short)
        m_M[item] = float32(m)


def step_piece(a: int, item: int) -> None:
    """For a `Tape`: one head of one row; the arguments of `step` from H on."""
    step(item, item + 1, long_at(a), long_at(a + 8), long_at(a + 16), long_at(a + 24), long_at(a + 32), long_at(a + 40),
         long_at(a + 48), long_at(a + 56), long_at(a + 64), long_at(a + 72), long_at(a + 80), long_at(a + 88),
         long_at(a + 96), long_at(a + 104), long_at(a + 112), long_at(a + 120), long_at(a + 128) != 0,
         long_at(a + 136), long_at(a + 144) != 0, long_at(a + 152) != 0, double_at(a + 160))  # fmt: skip


def plain(x: Tensor) -> Tensor:
    """`x` in float32, one number after another."""
    return x if x.dtype is torch.float32 and x.is_contiguous() else x.float().contiguous()


def all_short(tensors: tuple[Tensor, ...]) -> bool:
    """Whether the kernel can read these as the bfloat16 that they are."""
    return all(x.dtype is torch.bfloat16 and x.is_contiguous() for x in tensors)


def mlstm_numba_step(
    q_BTHK: Tensor, k_BTHK: Tensor, v_BTHV: Tensor, i_BTH: Tensor, f_BTH: Tensor, state: MLSTMState, /,
    *, reset_BT: Tensor | None = None, input_gate: InputGate = "exp", forget_gate: ForgetGate = "sigmoid",
    normalize: bool = True, eps: float = 1e-6,
) -> tuple[Tensor, MLSTMState]:  # fmt: skip
    """The numbers of `mlstm_recurrent` for T = 1, without gradients, in float32; h is returned in the dtype of q."""
    B, H, K, V = state.c_BHKV.shape
    short, dtype = all_short((q_BTHK, k_BTHK, v_BTHV)), q_BTHK.dtype
    if not short:
        q_BTHK, k_BTHK, v_BTHV = plain(q_BTHK), plain(k_BTHK), plain(v_BTHV)
    i_BTH, f_BTH = plain(i_BTH), plain(f_BTH)
    c0_BHKV, n0_BHK, m0_BH = map(plain, state)
    c_BHKV, n_BHK, m_BH, h_BTHV = map(torch.empty_like, (c0_BHKV, n0_BHK, m0_BH, v_BTHV))
    reset_BT = None if reset_BT is None else reset_BT.contiguous()
    M, number = B * H, torch.bfloat16 if short else torch.float32
    v, h = addresses(M * V, v_BTHV, h_BTHV, dtype=number)
    c0, c = addresses(M * K * V, c0_BHKV, c_BHKV)
    n0, n = addresses(M * K, n0_BHK, n_BHK)
    i, f, m0, m = addresses(M, i_BTH, f_BTH, m0_BH, m_BH)
    arguments = (
        H, K, V, *addresses(M * K, q_BTHK, k_BTHK, dtype=number), v, i, f, address(reset_BT, B, torch.bool), c0, n0, m0,
        c, n, m, h, short, INPUT_GATES.index(input_gate), forget_gate == "exp", normalize,
    )  # fmt: skip
    threads = 1 + 4 * M * K * V // THREAD_BYTES
    if (tape := recording()) is not None:
        tape.keep((q_BTHK, k_BTHK, v_BTHV, i_BTH, f_BTH, reset_BT, h_BTHV))
        tape.add(step_piece, *arguments, double_as_long(eps), pieces=M, shared=4 * M * K * V >= SHARED_BYTES)
    if threads == 1:
        step(0, M, *arguments, eps)
    else:
        share_out(step, M, *arguments, eps, threads=threads)
    return h_BTHV if h_BTHV.dtype is dtype else h_BTHV.to(dtype), MLSTMState(c_BHKV, n_BHK, m_BH)
