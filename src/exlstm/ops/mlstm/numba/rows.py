"""Loops over the rows of a chunk, between the matrix products of the chunkwise mLSTM, compiled by Numba.

Inner loops touch two or three arrays, which is as many as LLVM can tell apart. Sums over gates are in float64,
everything else in float32.

T, L, S steps of the chunk (any, target, source)  K key width  V value width  I either of these
"""

from math import exp as exact_exp
from typing import Any

from numpy import float32, float64

from exlstm.runtime.cpu.jit import helper
from exlstm.runtime.cpu.loops import REORDER, Array, dot
from exlstm.runtime.cpu.matmul import STRIP
from exlstm.runtime.cpu.memory import SIZE, address_of, row
from exlstm.runtime.cpu.simd import SimdValue, where
from exlstm.runtime.cpu.simd import exp as simd_exp
from exlstm.runtime.cpu.vectors import LANES, LONG, Vectors, inlined, loop


@helper(REORDER)
def scale_rows(x_LI: Array, factor_L: Array, factor: float, out_LI: Array) -> None:
    """out_t = x_t factor_t factor"""
    for t in range(factor_L.size):
        x_I, out_I, f = row(x_LI, t), row(out_LI, t), factor_L[t] * float32(factor)
        for i in range(x_I.size):
            out_I[i] = x_I[i] * f


@helper(REORDER)
def add_and_scale_rows(out_LI: Array, x_LI: Array, factor_L: Array, factor: float) -> None:
    """out_t = (out_t + x_t factor_t) factor"""
    for t in range(factor_L.size):
        x_I, out_I, f = row(x_LI, t), row(out_LI, t), factor_L[t]
        for i in range(x_I.size):
            out_I[i] = (out_I[i] + x_I[i] * f) * float32(factor)


@helper(REORDER)
def add_outer(out_LI: Array, factor_L: Array, x_I: Array) -> None:
    """out_t += factor_t x, of as many rows as out has."""
    for t in range(out_LI.shape[0]):
        out_I, f = row(out_LI, t), factor_L[t]
        for i in range(x_I.size):
            out_I[i] += f * x_I[i]


@helper(REORDER)
def decay_and_add(out_I: Array, decay: float, x_LI: Array, factor_L: Array) -> None:
    """out = decay out + sum_t factor_t x_t"""
    for i in range(out_I.size):
        out_I[i] = float32(0.0) if decay == 0.0 else decay * out_I[i]
    for t in range(factor_L.size):
        x_I, f = row(x_LI, t), factor_L[t]
        for i in range(out_I.size):
            out_I[i] += x_I[i] * f


@helper(REORDER)
def dots(x_LI: Array, y_LI: Array, out_L: Array) -> None:
    """out_t = x_t . y_t"""
    for t in range(out_L.size):
        out_L[t] = dot(row(x_LI, t), row(y_LI, t))


@helper(REORDER)
def dots_with(x_LI: Array, y_I: Array, rows: int, out_L: Array) -> None:
    """out_t = x_t . y of the first rows, and 0 of the others."""
    for t in range(out_L.size):
        out_L[t] = dot(row(x_LI, t), y_I) if t < rows else float32(0.0)


@helper(REORDER)
def inner(x_KV: Array, y_KV: Array) -> Any:
    """The sum of x * y: rows in float32, their sum in float64."""
    result = float64(0.0)
    for i in range(x_KV.shape[0]):
        result += dot(row(x_KV, i), row(y_KV, i))
    return result


@inlined(5)
def decays(builder: Any, target: Any, source_S: Any, first: Any, count: Any, d_S: Any) -> None:
    """exp(target + source_s) from the first source on, before it zeros, `count` in all; exponents are float64."""
    v = Vectors(builder, LANES)
    with loop(builder, LONG(0), count, LONG(LANES)) as (s, _):
        left, cut = (v.first_places(builder.sub(end, s)) for end in (count, first))
        exponents = v.load_rounded(v.offset(source_S, builder.mul(s, LONG(2 * SIZE))), left, target)
        decay = where(SimdValue(builder, cut), 0.0, simd_exp(exponents))
        v.store(decay, v.offset(d_S, builder.mul(s, LONG(SIZE))), left)


@helper()
def gate_weights(log_i_T1: Array, log_f_T1: Array, reset_T: Array, m: float, stabilize: bool, d_LS: Array,
                 carry_L: Array, floor_L: Array, source_S: Array) -> float:  # fmt: skip
    """D on and below its diagonal, the carry and exp(-m_t) of a chunk; returns m after it.

    source_S: room for float64 numbers.
    """
    m_before, sum_f, first, cut = m, 0.0, 0, False
    for t in range(carry_L.size):
        log_i, log_f = float(log_i_T1[t, 0]), float(log_f_T1[t, 0])
        # a gate of -inf, or a reset by hand with a huge number, must not swallow the digits of its neighbours
        log_f = -1e5 if log_f < -1e5 else log_f
        if reset_T[t]:
            cut, first, m = True, t, 0.0
        sum_f += log_f
        decayed = log_f + m
        m = (decayed if decayed >= log_i else log_i) if stabilize else 0.0
        source_S[t] = log_i - sum_f
        carry_L[t] = float32(0.0) if cut else float32(exact_exp(sum_f + m_before - m))
        floor_L[t] = float32(exact_exp(-m))
        decays(sum_f - m, address_of(source_S), first, t + 1, address_of(row(d_LS, t)))
    return m


@helper()
def end_of_strip(t: int, L: int) -> int:
    """The end of row t of a triangle as `matmul` reads it."""
    return min(t // STRIP * STRIP + STRIP, L)


@helper(REORDER)
def apply_decay(p_LS: Array, d_LS: Array, mass_L: Array) -> None:
    """Q K^T / sqrt K becomes P, as `lower_product` takes it; the mass, so far that of the old state, gains its sums."""
    for t in range(mass_L.size):
        p_S, d_S, total = row(p_LS, t), row(d_LS, t), float32(0.0)
        for s in range(t + 1):
            p = p_S[s] * d_S[s]
            p_S[s] = p
            total += p
        for s in range(t + 1, end_of_strip(t, p_S.size)):
            p_S[s] = float32(0.0)
        mass_L[t] += total


@helper()
def norms(mass_L: Array, floor_L: Array, normalize: bool, eps: float, inverse_L: Array) -> None:
    """1 / (max(|mass|, floor) + eps), or 1 / floor."""
    for t in range(mass_L.size):
        mass, floor = abs(mass_L[t]), floor_L[t]
        inverse_L[t] = float32(1.0) / (((floor if mass < floor else mass) + float32(eps)) if normalize else floor)


@helper(REORDER)
def apply_decay_backward(dp_LS: Array, p_LS: Array, d_LS: Array, dmass_L: Array, di_S: Array, df_L: Array) -> None:
    """dnum V^T becomes the gradient of Q K^T / sqrt K. Gradients of the gates from the pairs that each acts on."""
    for s in range(di_S.size):  # while t descends: the sum over targets from t on
        di_S[s] = float32(0.0)
    for t in range(dmass_L.size - 1, -1, -1):
        dp_S, p_S, d_S, dmass = row(dp_LS, t), row(p_LS, t), row(d_LS, t), dmass_L[t]
        for s in range(t + 1):
            dp_S[s] += dmass
        for s in range(t + 1):
            di_S[s] += dp_S[s] * p_S[s]
        for s in range(t + 1):
            dp_S[s] *= d_S[s]
        for s in range(t + 1, end_of_strip(t, dp_S.size)):
            dp_S[s] = float32(0.0)
        total = float32(0.0)
        for s in range(t):
            total += di_S[s]
        df_L[t] = total
