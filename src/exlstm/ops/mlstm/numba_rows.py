"""What happens between the matrix products of the chunkwise mLSTM, over the rows of one chunk, compiled by Numba.

Inner loops touch two or three arrays, which is as many as LLVM can tell apart. Sums over gates are in float64,
everything else in float32.

T, L, S steps of the chunk (any, target, source)  K key width  V value width  I either of these
"""

from math import exp as exact_exp
from typing import Any

import numpy as np
from numba import njit
from numpy import float32, float64

from exlstm.ops.numba_math import FASTMATH, exp

Array = Any  # a float32 NumPy array inside Numba
REORDER = FASTMATH | {"reassoc"}  # sums in any order, so that they vectorise; never where there is an `exp`


@njit(fastmath=REORDER)
def scale_rows(x_LI: Array, factor_L: Array, factor: float, out_LI: Array) -> None:
    """out_t = x_t factor_t factor"""
    for t in range(x_LI.shape[0]):
        f = factor_L[t] * float32(factor)
        for i in range(x_LI.shape[1]):
            out_LI[t, i] = x_LI[t, i] * f


@njit(fastmath=REORDER)
def add_rows(out_LI: Array, x_LI: Array, factor_L: Array, factor: float) -> None:
    """out_t += x_t factor_t factor"""
    for t in range(x_LI.shape[0]):
        f = factor_L[t] * float32(factor)
        for i in range(x_LI.shape[1]):
            out_LI[t, i] += x_LI[t, i] * f


@njit(fastmath=REORDER)
def add_outer(out_LI: Array, factor_L: Array, x_I: Array) -> None:
    """out_t += factor_t x"""
    for t in range(out_LI.shape[0]):
        f = factor_L[t]
        for i in range(out_LI.shape[1]):
            out_LI[t, i] += f * x_I[i]


@njit(fastmath=REORDER)
def decay_and_add(out_I: Array, decay: float, x_LI: Array, factor_L: Array) -> None:
    """out = decay out + sum_t factor_t x_t"""
    for i in range(out_I.size):
        out_I[i] *= decay
    for t in range(x_LI.shape[0]):
        f = factor_L[t]
        for i in range(out_I.size):
            out_I[i] += x_LI[t, i] * f


@njit(fastmath=REORDER)
def dots(x_LI: Array, y_LI: Array, out_L: Array) -> None:
    """out_t = x_t . y_t"""
    for t in range(x_LI.shape[0]):
        total = float32(0.0)
        for i in range(x_LI.shape[1]):
            total += x_LI[t, i] * y_LI[t, i]
        out_L[t] = total


@njit(fastmath=REORDER)
def dots_with(x_LI: Array, y_I: Array, out_L: Array) -> None:
    """out_t = x_t . y"""
    for t in range(x_LI.shape[0]):
        total = float32(0.0)
        for i in range(x_LI.shape[1]):
            total += x_LI[t, i] * y_I[i]
        out_L[t] = total


@njit(fastmath=REORDER)
def inner(x_KV: Array, y_KV: Array) -> Any:
    """The sum of x * y: rows in float32, their sum in float64."""
    result = float64(0.0)
    for i in range(x_KV.shape[0]):
        total = float32(0.0)
        for j in range(x_KV.shape[1]):
            total += x_KV[i, j] * y_KV[i, j]
        result += total
    return result


@njit(fastmath=FASTMATH)
def decays(target: float, source_S: Array, d_S: Array) -> None:
    """exp(target + source_s)"""
    for s in range(d_S.size):
        d_S[s] = exp(float32(target + source_S[s]))


@njit(fastmath=FASTMATH)
def weights(log_i_T: Array, log_f_T: Array, reset_T: Array, m: float, stabilize: bool, d_LS: Array, carry_L: Array,
            floor_L: Array) -> float:  # fmt: skip
    """D, the carry and exp(-m_t) of a chunk; returns m after it."""
    L = carry_L.size
    source_S = np.empty(L, float64)
    m_before, sum_f, first, cut = m, 0.0, 0, False
    for t in range(L):
        log_i, log_f = float(log_i_T[t]), float(log_f_T[t])
        # a gate of -inf, or a reset by hand with a huge number, must not swallow the digits of its neighbours
        log_f = -1e5 if log_f < -1e5 else log_f
        if reset_T[t]:
            cut, first, m = True, t, 0.0
        sum_f += log_f
        kept = log_f + m
        m = (kept if kept >= log_i else log_i) if stabilize else 0.0
        source_S[t] = log_i - sum_f
        carry_L[t] = float32(0.0) if cut else float32(exact_exp(sum_f + m_before - m))
        floor_L[t] = float32(exact_exp(-m))
        d_LS[t, :first] = float32(0.0)
        decays(sum_f - m, source_S[first : t + 1], d_LS[t, first : t + 1])
        d_LS[t, t + 1 :] = float32(0.0)
    return m


@njit(fastmath=REORDER)
def weigh(p_LS: Array, d_LS: Array, mass_L: Array) -> None:
    """Q K^T / sqrt K becomes P; the mass, so far that of the old state, gains the sums of its rows."""
    for t in range(p_LS.shape[0]):
        total = float32(0.0)
        for s in range(t + 1):
            p = p_LS[t, s] * d_LS[t, s]
            p_LS[t, s] = p
            total += p
        p_LS[t, t + 1 :] = float32(0.0)
        mass_L[t] += total


@njit(fastmath=FASTMATH)
def norms(mass_L: Array, floor_L: Array, normalize: bool, eps: float, inverse_L: Array) -> None:
    """1 / (max(|mass|, floor) + eps), or 1 / floor."""
    for t in range(mass_L.size):
        mass, floor = abs(mass_L[t]), floor_L[t]
        inverse_L[t] = float32(1.0) / (((floor if mass < floor else mass) + float32(eps)) if normalize else floor)


@njit(fastmath=REORDER)
def weigh_backward(dp_LS: Array, p_LS: Array, d_LS: Array, dmass_L: Array, di_S: Array, df_L: Array) -> None:
    """dnum V^T becomes the gradient of Q K^T / sqrt K. Gradients of the gates from the pairs that each acts on."""
    later_S = np.zeros(dmass_L.size, float32)  # of each source, what the targets from t on say
    for t in range(dmass_L.size - 1, -1, -1):
        dmass = dmass_L[t]
        for s in range(t + 1):
            dp_LS[t, s] += dmass
        for s in range(t + 1):
            later_S[s] += dp_LS[t, s] * p_LS[t, s]
        for s in range(t + 1):
            dp_LS[t, s] *= d_LS[t, s]
        dp_LS[t, t + 1 :] = float32(0.0)
        total = float32(0.0)
        for s in range(t):
            total += later_S[s]
        df_L[t] = total
    di_S[:] = later_S
