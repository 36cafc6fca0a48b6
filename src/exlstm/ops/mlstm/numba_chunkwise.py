"""mLSTM over chunks on a CPU, compiled by Numba: the equations of `chunkwise`, chunk by chunk.

All that a chunk needs stays in the caches of one core. Its products go to BLAS from inside the kernels, which run
without the interpreter lock from the first step to the last; rows of the batch and heads are shared out among plain
threads, once a call. The backward keeps what `chunkwise` keeps: q, k, v, h, the gates, and one state per span.

B batch  T time  H heads  N chunks of a span  R spans  L, S chunk length (target, source)  K key width  V value width
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from numba import njit
from torch import Tensor

from exlstm.ops.mlstm.chunkwise import SPAN_CHUNKS, Options
from exlstm.ops.mlstm.numba_rows import (
    add_outer,
    add_rows,
    decay_and_add,
    dots,
    dots_with,
    inner,
    norms,
    scale_rows,
    weigh,
    weigh_backward,
    weights,
)
from exlstm.ops.mlstm.reference import InputGate, MLSTMState, log_gates
from exlstm.ops.numba_blas import product
from exlstm.ops.numba_jit import compiled, untraced
from exlstm.ops.numba_math import FASTMATH
from exlstm.ops.shared import wide
from exlstm.ops.threads import share_out

Array = Any  # a float32 NumPy array inside Numba


START_DTYPES = (torch.float32, torch.float32, torch.float64)  # of C, n and m before a span


class Chunk(NamedTuple):
    """What the forward and the backward of one chunk work with."""

    d_LS: Array  # decay from source to target
    p_LS: Array
    carry_L: Array  # what the state before the chunk is worth
    floor_L: Array  # exp(-m_t)
    mass_L: Array
    inverse_L: Array  # 1 / norm
    old_LK: Array  # queries as they read the state before the chunk
    worth_LK: Array  # keys as they enter the state after it
    ones_L: Array


@njit(fastmath=FASTMATH)
def new_chunk(L: int, K: int) -> Chunk:
    """Uninitialised, but for the ones."""
    row, square = (L,), (L, L)
    return Chunk(
        np.empty(square, np.float32), np.empty(square, np.float32), np.empty(row, np.float32),
        np.empty(row, np.float32), np.empty(row, np.float32), np.empty(row, np.float32),
        np.empty((L, K), np.float32), np.empty((L, K), np.float32), np.ones(row, np.float32),
    )  # fmt: skip


@njit(fastmath=FASTMATH)
def read_chunk(w: Chunk, log_i_L: Array, log_f_L: Array, reset_L: Array, q_LK: Array, k_LK: Array, n_K: Array, m: float,
               options: Options) -> float:  # fmt: skip
    """Everything but V: the weights, P, the mass and the norm; returns m after the chunk."""
    scale = q_LK.shape[1] ** -0.5
    m = weights(log_i_L, log_f_L, reset_L, m, options.stabilize, w.d_LS, w.carry_L, w.floor_L)
    scale_rows(q_LK, w.carry_L, scale, w.old_LK)
    dots_with(w.old_LK, n_K, w.mass_L)
    product(w.p_LS, q_LK, k_LK.T, scale, 0.0)
    weigh(w.p_LS, w.d_LS, w.mass_L)
    norms(w.mass_L, w.floor_L, options.normalize, options.eps, w.inverse_L)
    return m


@njit(fastmath=FASTMATH)
def advance(w: Chunk, k_LK: Array, v_LV: Array, c_KV: Array, n_K: Array) -> None:
    """The state before the chunk becomes the state after it; needs the weights only."""
    decay = w.carry_L[-1]
    scale_rows(k_LK, w.d_LS[-1], 1.0, w.worth_LK)
    product(c_KV, w.worth_LK.T, v_LV, 1.0, decay)
    decay_and_add(n_K, decay, w.worth_LK, w.ones_L)


@compiled
def forward_scan(first: int, last: int, log_i_BTH: Array, log_f_BTH: Array, reset_BT: Array, q_BTHK: Array,
                 k_BTHK: Array, v_BTHV: Array, chunk_len: int, options: Options, h_BTHV: Array, c_BHKV: Array,
                 n_BHK: Array, m_BH: Array, c_RBHKV: Array, n_RBHK: Array, m_RBH: Array) -> None:  # fmt: skip
    """Items first to last - 1, each a head of a row. Fills h; the state goes from the first to the last.

    The state before every span is kept in c_RBHKV, n_RBHK, m_RBH, if these have room.
    """
    T, H, K = q_BTHK.shape[1:]
    whole, rest = new_chunk(min(chunk_len, T), K), new_chunk(T % chunk_len, K)
    for item in range(first, last):
        b, h = item // H, item % H
        c_KV, n_K, m = c_BHKV[b, h], n_BHK[b, h], float(m_BH[b, h])
        for start in range(0, T, chunk_len):
            if start % (SPAN_CHUNKS * chunk_len) == 0 and len(m_RBH) > 0:
                span = start // (SPAN_CHUNKS * chunk_len)
                c_RBHKV[span, b, h], n_RBHK[span, b, h], m_RBH[span, b, h] = c_KV, n_K, m
            here = slice(start, min(start + chunk_len, T))
            w = whole if here.stop - start == chunk_len else rest
            k_LK, v_LV, h_LV = k_BTHK[b, here, h], v_BTHV[b, here, h], h_BTHV[b, here, h]
            gates = (log_i_BTH[b, here, h], log_f_BTH[b, here, h], reset_BT[b, here])
            m = read_chunk(w, *gates, q_BTHK[b, here, h], k_LK, n_K, m, options)
            product(h_LV, w.p_LS, v_LV, 1.0, 0.0)
            product(h_LV, w.old_LK, c_KV, 1.0, 1.0)
            scale_rows(h_LV, w.inverse_L, 1.0, h_LV)
            advance(w, k_LK, v_LV, c_KV, n_K)
        m_BH[b, h] = m


class Grads(NamedTuple):
    """Gradients inside one chunk."""

    dp_LS: Array
    dnum_LV: Array
    dmass_L: Array
    dold_LK: Array
    dworth_LK: Array
    dcarry_L: Array
    dlast_L: Array  # of the last row of D, which weighs the keys of the next state


@njit(fastmath=FASTMATH)
def new_grads(L: int, K: int, V: int) -> Grads:
    """Uninitialised."""
    return Grads(
        np.empty((L, L), np.float32), np.empty((L, V), np.float32), np.empty(L, np.float32),
        np.empty((L, K), np.float32), np.empty((L, K), np.float32), np.empty(L, np.float32), np.empty(L, np.float32),
    )  # fmt: skip


@njit(fastmath=FASTMATH)
def mass_backward(w: Chunk, g: Grads, h_LV: Array, dh_LV: Array, normalize: bool) -> None:
    """Gradients of the numerator and of the mass from that of h."""
    scale_rows(dh_LV, w.inverse_L, 1.0, g.dnum_LV)
    dots(g.dnum_LV, h_LV, g.dmass_L)
    for t in range(len(g.dmass_L)):
        wins = normalize and not abs(w.mass_L[t]) < w.floor_L[t]
        g.dmass_L[t] *= -np.sign(w.mass_L[t]) if wins else np.float32(0.0)


@njit(fastmath=FASTMATH)
def chunk_backward(w: Chunk, g: Grads, q_LK: Array, k_LK: Array, v_LV: Array, c_KV: Array, n_K: Array, dc_KV: Array,
                   dn_K: Array, dq_LK: Array, dk_LK: Array, dv_LV: Array, di_L: Array, df_L: Array
                   ) -> None:  # fmt: skip
    """Gradients of the inputs of a chunk; that of the state after it becomes that of the state before it."""
    scale, decay, worth_S = q_LK.shape[1] ** -0.5, w.carry_L[-1], w.d_LS[-1]
    product(g.dp_LS, g.dnum_LV, v_LV.T, 1.0, 0.0)
    weigh_backward(g.dp_LS, w.p_LS, w.d_LS, g.dmass_L, di_L, df_L)

    product(g.dold_LK, g.dnum_LV, c_KV.T, 1.0, 0.0)
    add_outer(g.dold_LK, g.dmass_L, n_K)
    dots(g.dold_LK, w.old_LK, g.dcarry_L)
    product(dq_LK, g.dp_LS, k_LK, scale, 0.0)
    add_rows(dq_LK, g.dold_LK, w.carry_L, scale)

    product(g.dworth_LK, v_LV, dc_KV.T, 1.0, 0.0)
    add_outer(g.dworth_LK, w.ones_L, dn_K)
    dots(g.dworth_LK, k_LK, g.dlast_L)
    product(dk_LK, g.dp_LS.T, q_LK, scale, 0.0)
    add_rows(dk_LK, g.dworth_LK, worth_S, 1.0)

    scale_rows(k_LK, worth_S, 1.0, w.worth_LK)
    product(dv_LV, w.p_LS.T, g.dnum_LV, 1.0, 0.0)
    product(dv_LV, w.worth_LK, dc_KV, 1.0, 1.0)

    kept = inner(dc_KV, c_KV)
    for i in range(len(n_K)):
        kept += dn_K[i] * n_K[i]
    product(dc_KV, w.old_LK.T, g.dnum_LV, 1.0, decay)
    decay_and_add(dn_K, decay, w.old_LK, g.dmass_L)

    # log f_j acts on the carry of every t >= j, and through the last row of D on every s < j
    g.dcarry_L[-1] += np.float32(kept) * decay
    earlier, later = np.float32(0.0), np.float32(0.0)
    for t in range(len(di_L)):
        last = g.dlast_L[t] * worth_S[t]
        di_L[t] += last
        df_L[t] += earlier
        earlier += last
    for t in range(len(di_L) - 1, -1, -1):
        later += g.dcarry_L[t]
        df_L[t] += later


@compiled
def backward_scan(first: int, last: int, log_i_BTH: Array, log_f_BTH: Array, reset_BT: Array, q_BTHK: Array,
                  k_BTHK: Array, v_BTHV: Array, chunk_len: int, options: Options, h_BTHV: Array, dh_BTHV: Array,
                  c_RBHKV: Array, n_RBHK: Array, m_RBH: Array, dc_BHKV: Array, dn_BHK: Array, dq_BTHK: Array,
                  dk_BTHK: Array, dv_BTHV: Array, di_BTH: Array, df_BTH: Array) -> None:  # fmt: skip
    """Items first to last - 1. Fills the gradients; dc_BHKV, dn_BHK go from the last state to the first."""
    (T, H, K), V = q_BTHK.shape[1:], v_BTHV.shape[3]
    length, remainder = min(chunk_len, T), T % chunk_len
    whole, rest = (new_chunk(length, K), new_grads(length, K, V)), (new_chunk(remainder, K), new_grads(remainder, K, V))
    N, span_len = min(SPAN_CHUNKS, -(-T // chunk_len)), SPAN_CHUNKS * chunk_len
    c_NKV, n_NK, m_N = np.empty((N, K, V), np.float32), np.empty((N, K), np.float32), np.empty(N, np.float64)
    for item in range(first, last):
        b, h = item // H, item % H
        for span in range(len(m_RBH) - 1, -1, -1):
            begin = span * span_len
            chunks = -(-(min(begin + span_len, T) - begin) // chunk_len)
            c_NKV[0], n_NK[0], m_N[0] = c_RBHKV[span, b, h], n_RBHK[span, b, h], m_RBH[span, b, h]
            for n in range(1, chunks):  # the states within the span once more
                here = slice(begin + (n - 1) * chunk_len, begin + n * chunk_len)
                gates = (log_i_BTH[b, here, h], log_f_BTH[b, here, h], reset_BT[b, here])
                w = whole[0]
                m_N[n] = weights(*gates, m_N[n - 1], options.stabilize, w.d_LS, w.carry_L, w.floor_L)
                c_NKV[n], n_NK[n] = c_NKV[n - 1], n_NK[n - 1]
                advance(w, k_BTHK[b, here, h], v_BTHV[b, here, h], c_NKV[n], n_NK[n])
            for n in range(chunks - 1, -1, -1):
                here = slice(begin + n * chunk_len, min(begin + (n + 1) * chunk_len, T))
                w, g = whole if here.stop - here.start == chunk_len else rest
                gates = (log_i_BTH[b, here, h], log_f_BTH[b, here, h], reset_BT[b, here])
                q_LK, k_LK, v_LV = q_BTHK[b, here, h], k_BTHK[b, here, h], v_BTHV[b, here, h]
                read_chunk(w, *gates, q_LK, k_LK, n_NK[n], m_N[n], options)
                mass_backward(w, g, h_BTHV[b, here, h], dh_BTHV[b, here, h], options.normalize)
                chunk_backward(
                    w, g, q_LK, k_LK, v_LV, c_NKV[n], n_NK[n], dc_BHKV[b, h], dn_BHK[b, h],
                    dq_BTHK[b, here, h], dk_BTHK[b, here, h], dv_BTHV[b, here, h], di_BTH[b, here, h],
                    df_BTH[b, here, h],
                )  # fmt: skip


def contiguous(*tensors: Tensor) -> list[Tensor]:
    """Without their graph, as the kernels want them."""
    return [x.detach().contiguous() for x in tensors]


def own(*tensors: Tensor) -> list[Tensor]:
    """Contiguous copies that may be written to.

    Copied by NumPy: after a copy with all its threads torch lets them spin for some milliseconds, in the way of ours.
    """
    return [torch.from_numpy(np.array(x.detach().numpy(), order="C")) for x in tensors]


class Chunkwise(torch.autograd.Function):
    """(log i, log f, q, k, v, C, n, m) -> (h, C, n, m); everything float32. `keep`: a backward will follow."""

    @staticmethod
    def forward(ctx: Any, log_i_BTH: Tensor, log_f_BTH: Tensor, q_BTHK: Tensor, k_BTHK: Tensor, v_BTHV: Tensor,
                c_BHKV: Tensor, n_BHK: Tensor, m_BH: Tensor, reset_BT: Tensor, chunk_len: int, options: Options,
                keep: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
        log_i_BTH, log_f_BTH, *qkv = contiguous(log_i_BTH, log_f_BTH, q_BTHK, k_BTHK, v_BTHV)
        inputs, state = [log_i_BTH, log_f_BTH, reset_BT, *qkv], own(c_BHKV, n_BHK, m_BH)
        B, T, H, _ = q_BTHK.shape
        R = -(-T // (SPAN_CHUNKS * chunk_len)) if keep else 0
        # m is rounded at the very end only: C is in its unit, and another unit would be another C
        starts = [x.new_empty(R, *x.shape, dtype=dtype) for x, dtype in zip(state, START_DTYPES, strict=True)]
        h_BTHV = torch.empty_like(qkv[2])
        outputs = (x.numpy() for x in (h_BTHV, *state, *starts))
        share_out(forward_scan, B * H, *(x.numpy() for x in inputs), chunk_len, options, *outputs)
        ctx.save_for_backward(*inputs, h_BTHV, *starts)
        ctx.chunk_len, ctx.options = chunk_len, options
        ctx.mark_non_differentiable(state[2])
        c_BHKV, n_BHK, m_BH = state
        return h_BTHV, c_BHKV, n_BHK, m_BH

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dh_BTHV: Tensor, dc_BHKV: Tensor, dn_BHK: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        log_i_BTH, log_f_BTH, reset_BT, *qkv, h_BTHV, c_RBHKV, n_RBHK, m_RBH = ctx.saved_tensors
        B, _, H, _ = qkv[0].shape
        dstate, grads = own(dc_BHKV, dn_BHK), [torch.empty_like(x) for x in (*qkv, log_i_BTH, log_f_BTH)]
        inputs = (x.numpy() for x in (log_i_BTH, log_f_BTH, reset_BT, *qkv))
        kept = (x.numpy() for x in (h_BTHV, *contiguous(dh_BTHV), c_RBHKV, n_RBHK, m_RBH))
        outputs = (x.numpy() for x in (*dstate, *grads))
        share_out(backward_scan, B * H, *inputs, ctx.chunk_len, ctx.options, *kept, *outputs)
        return *grads[3:], *grads[:3], *dstate, None, None, None, None, None


@untraced
def mlstm_numba(
    q_BTHK: Tensor, k_BTHK: Tensor, v_BTHV: Tensor, i_BTH: Tensor, f_BTH: Tensor, state: MLSTMState, /,
    *, reset_BT: Tensor | None = None, input_gate: InputGate = "exp", normalize: bool = True, eps: float = 1e-6,
    chunk_len: int = 64,
) -> tuple[Tensor, MLSTMState]:  # fmt: skip
    """The same numbers as `mlstm_chunkwise`, in float32 on a CPU."""
    inputs = (*log_gates(i_BTH, f_BTH, input_gate), wide(q_BTHK), wide(k_BTHK), wide(v_BTHV), *state)
    reset_BT = torch.zeros(q_BTHK.shape[:2], dtype=torch.bool) if reset_BT is None else reset_BT.contiguous()
    options = Options(stabilize=input_gate == "exp", normalize=normalize, eps=eps)
    keep = torch.is_grad_enabled() and any(x.requires_grad for x in inputs)
    h_BTHV, *after = Chunkwise.apply(*inputs, reset_BT, chunk_len, options, keep)  # type: ignore[no-untyped-call]
    return h_BTHV.to(q_BTHK.dtype), MLSTMState(*after)
