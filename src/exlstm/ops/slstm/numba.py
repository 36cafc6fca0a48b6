"""sLSTM over a whole sequence on a CPU: forward and backward scans compiled by Numba, products outside as GEMMs.

Only what is truly sequential is in the scans: h_{t-1} R and the gates forward, d(gates) R^T and the gates backward.
The backward recomputes all pre-activations in one batched GEMM (x + h_prev R, parallel over time), and the gradient
of R is one batched GEMM after the scan. Every item, a row of the batch in one head, is a scan of its own. Items are
shared out among plain threads, one piece each: unlike Numba's own parallel loops this may be called from several
threads at once, and a core that is busy with something else does not stall the others.

B batch  T time  H heads  K, V head width  G gates: i, f, z, o  J all gates of a head (4 V)  Q state parts: h, c, n, m
"""

from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numba import njit
from numpy import float32
from torch import Tensor

from exlstm.ops.numba_math import FASTMATH, exp, log_sigmoid, sigmoid, tanh
from exlstm.ops.shared import exactly, wide
from exlstm.ops.slstm.reference import SLSTMState

Array = Any  # a float32 NumPy array inside Numba


@njit(inline="always", fastmath=FASTMATH)
def add_product(out_J: Array, x_K: Array, r_KJ: Array) -> None:
    """out += x R, eight rows of R at a time so that out is loaded and stored rarely."""
    K, J = r_KJ.shape
    whole = K - K % 8
    for k in range(0, whole, 8):
        x0, x1, x2, x3 = x_K[k], x_K[k + 1], x_K[k + 2], x_K[k + 3]
        x4, x5, x6, x7 = x_K[k + 4], x_K[k + 5], x_K[k + 6], x_K[k + 7]
        for j in range(J):
            left = x0 * r_KJ[k, j] + x1 * r_KJ[k + 1, j] + x2 * r_KJ[k + 2, j] + x3 * r_KJ[k + 3, j]
            right = x4 * r_KJ[k + 4, j] + x5 * r_KJ[k + 5, j] + x6 * r_KJ[k + 6, j] + x7 * r_KJ[k + 7, j]
            out_J[j] += left + right
    for k in range(whole, K):
        x0 = x_K[k]
        for j in range(J):
            out_J[j] += x0 * r_KJ[k, j]


def forward_scan(first: int, last: int, x_BTHJ: Array, r_HKJ: Array, reset_BT: Array, lengths_B: Array,
                 exp_forget: bool, states_BTHQV: Array, last_BHQV: Array) -> None:  # fmt: skip
    """Items first to last - 1. Fills states_BTHQV with (h, c, n, m) after every step.

    last_BHQV holds the state before the first step and becomes the one after the last.
    """
    B, T, H, J = x_BTHJ.shape
    V = J // 4
    mixing = r_HKJ.shape[1] > 0
    for item in range(first, last):
        b, head = item % B, item // B
        raw_J = np.empty(J, dtype=np.float32)
        now_QV = last_BHQV[b, head].copy()
        r_KJ = r_HKJ[head]
        for t in range(lengths_B[b]):
            if reset_BT[b, t]:
                now_QV[:] = float32(0.0)
            # the product is summed on its own and x added once: x may be large and would round every partial sum
            raw_J[:] = float32(0.0)
            if mixing:
                add_product(raw_J, now_QV[0], r_KJ)
            raw_J += x_BTHJ[b, t, head]
            for v in range(V):
                i, f, z, o = raw_J[v], raw_J[V + v], raw_J[2 * V + v], raw_J[3 * V + v]
                c, n, m = now_QV[1, v], now_QV[2, v], now_QV[3, v]
                kept = (f if exp_forget else log_sigmoid(f)) + m
                m = i if n == float32(0.0) else max(kept, i)
                decay, write = exp(min(kept - m, float32(0.0))), exp(i - m)
                c = decay * c + write * tanh(z)
                n = decay * n + write
                now_QV[0, v] = sigmoid(o) * c / n
                now_QV[1, v], now_QV[2, v], now_QV[3, v] = c, n, m
            states_BTHQV[b, t, head] = now_QV
        last_BHQV[b, head] = now_QV


def backward_scan(first: int, last: int, raw_BTHJ: Array, rt_HJK: Array, before_BTHQV: Array, reset_BT: Array,
                  lengths_B: Array, exp_forget: bool, dh_BTHV: Array, draw_BTHJ: Array,
                  dlast_BHQV: Array) -> None:  # fmt: skip
    """Items first to last - 1. Fills draw_BTHJ, the gradient of the pre-activations.

    before_BTHQV is the state before every step, cleared at resets. dlast_BHQV holds the gradient of the state after the
    last step and becomes that of the state before the first.
    """
    B, T, H, J = raw_BTHJ.shape
    V = J // 4
    mixing = rt_HJK.shape[2] > 0
    for item in range(first, last):
        b, head = item % B, item // B
        raw_J, draw_J, dh_V = np.empty(J, np.float32), np.empty(J, np.float32), np.empty(V, np.float32)
        now_QV, d_QV = np.empty((4, V), np.float32), dlast_BHQV[b, head].copy()
        rt_JK = rt_HJK[head]
        for t in range(lengths_B[b] - 1, -1, -1):
            raw_J[:] = raw_BTHJ[b, t, head]
            now_QV[:] = before_BTHQV[b, t, head]
            dh_V[:] = dh_BTHV[b, t, head]
            for v in range(V):
                i, f, z, o = raw_J[v], raw_J[V + v], raw_J[2 * V + v], raw_J[3 * V + v]
                c0, n0, m0 = now_QV[1, v], now_QV[2, v], now_QV[3, v]
                kept = (f if exp_forget else log_sigmoid(f)) + m0
                m = i if n0 == float32(0.0) else max(kept, i)
                decay, write = exp(min(kept - m, float32(0.0))), exp(i - m)
                cell, gate = tanh(z), sigmoid(o)
                c, n = decay * c0 + write * cell, decay * n0 + write
                dh = dh_V[v] + d_QV[0, v]
                dc = d_QV[1, v] + dh * gate / n
                dn = d_QV[2, v] - dh * gate * c / (n * n)
                draw_J[v] = (cell * dc + dn) * write
                dlog_f = (c0 * dc + n0 * dn) * decay
                draw_J[V + v] = dlog_f if exp_forget else dlog_f * sigmoid(-f)
                draw_J[2 * V + v] = write * dc * (float32(1.0) - cell * cell)
                draw_J[3 * V + v] = dh * c / n * gate * sigmoid(-o)
                d_QV[1, v], d_QV[2, v] = decay * dc, decay * dn
            draw_BTHJ[b, t, head] = draw_J
            d_QV[0] = float32(0.0)
            if mixing:
                add_product(d_QV[0], draw_J, rt_JK)
            if reset_BT[b, t]:
                d_QV[:] = float32(0.0)
        dlast_BHQV[b, head] = d_QV


def compiled(function: Any) -> Any:
    """The scan, compiled on first use; kept on disk for the next process where Numba finds a writable place."""
    try:
        return njit(cache=True, nogil=True, fastmath=FASTMATH, error_model="numpy")(function)
    except RuntimeError:  # no writable place: compile once per process
        return njit(nogil=True, fastmath=FASTMATH, error_model="numpy")(function)


compiled_forward, compiled_backward = compiled(forward_scan), compiled(backward_scan)


@cache
def pool(threads: int) -> ThreadPoolExecutor:
    """Threads that wait for pieces of work; made once for each number of them."""
    return ThreadPoolExecutor(threads, thread_name_prefix="exlstm-slstm")


def share_out(scan: Any, items: int, *arguments: Any) -> None:
    """Runs `scan` on all items, in as many threads as torch has been given; the caller works on the first piece."""
    threads = min(torch.get_num_threads(), items)
    edges = [items * piece // threads for piece in range(threads + 1)]
    if threads == 1:
        scan(0, items, *arguments)
        return
    others = [pool(threads - 1).submit(scan, *piece, *arguments) for piece in list(pairwise(edges))[1:]]
    scan(edges[0], edges[1], *arguments)
    for other in others:
        other.result()


def shifted(states_BTHQV: Tensor, first_BHQV: Tensor, reset_BT: Tensor) -> Tensor:
    """The state before every step."""
    before_BTHQV = torch.cat([first_BHQV[:, None], states_BTHQV[:, :-1]], dim=1)
    return before_BTHQV.masked_fill_(reset_BT[:, :, None, None, None], 0)


def heads_first(x_BTHV: Tensor) -> Tensor:
    """[H, B T, V], for one batched GEMM over all rows and steps."""
    return x_BTHV.permute(2, 0, 1, 3).flatten(1, 2)


class Scan(torch.autograd.Function):
    """(x, R, h, c, n, m) -> (h of every step, last h, c, n, m); all float32, R possibly of width 0: no mixing."""

    @staticmethod
    def forward(ctx: Any, x_BTHJ: Tensor, r_HKJ: Tensor, h_BHV: Tensor, c_BHV: Tensor, n_BHV: Tensor, m_BHV: Tensor,
                reset_BT: Tensor, lengths_B: Tensor, exp_forget: bool) -> tuple[Tensor, ...]:  # fmt: skip
        B, T, H, J = x_BTHJ.shape
        x_BTHJ, r_HKJ = x_BTHJ.contiguous(), r_HKJ.contiguous()
        first_BHQV = torch.stack([h_BHV, c_BHV, n_BHV, m_BHV], dim=2)
        last_BHQV, states_BTHQV = first_BHQV.clone(), x_BTHJ.new_zeros(B, T, H, 4, J // 4)
        arrays = (x.numpy() for x in (x_BTHJ.detach(), r_HKJ.detach(), reset_BT, lengths_B))
        share_out(compiled_forward, B * H, *arrays, exp_forget, states_BTHQV.numpy(), last_BHQV.numpy())
        ctx.save_for_backward(x_BTHJ, r_HKJ, first_BHQV, states_BTHQV, reset_BT, lengths_B)
        ctx.exp_forget = exp_forget
        last = last_BHQV.unbind(2)
        ctx.mark_non_differentiable(last[3])
        return states_BTHQV[:, :, :, 0].clone(), *(x.clone() for x in last[:3]), last[3]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dh_BTHV: Tensor, *dlast: Tensor) -> tuple[Tensor | None, ...]:
        x_BTHJ, r_HKJ, first_BHQV, states_BTHQV, reset_BT, lengths_B = ctx.saved_tensors
        B, T, H, J = x_BTHJ.shape
        before_BTHQV = shifted(states_BTHQV, first_BHQV, reset_BT)
        past_HMV = heads_first(before_BTHQV[:, :, :, 0])
        mixing = r_HKJ.shape[1] > 0
        draw_BTHJ = torch.zeros_like(x_BTHJ)
        dlast_BHQV = torch.stack([*dlast[:3], torch.zeros_like(dlast[0])], dim=2)
        with exactly(x_BTHJ):
            raw_BTHJ = x_BTHJ + (past_HMV @ r_HKJ).view(H, B, T, J).permute(1, 2, 0, 3) if mixing else x_BTHJ
            arrays = (x.contiguous().numpy() for x in (raw_BTHJ, r_HKJ.mT, before_BTHQV, reset_BT, lengths_B))
            outputs = (dh_BTHV.contiguous().numpy(), draw_BTHJ.numpy(), dlast_BHQV.numpy())
            share_out(compiled_backward, B * H, *arrays, ctx.exp_forget, *outputs)
            dr_HKJ = past_HMV.mT @ heads_first(draw_BTHJ) if mixing else torch.zeros_like(r_HKJ)
        dfirst = dlast_BHQV.unbind(2)
        return draw_BTHJ, dr_HKJ, *dfirst[:3], None, None, None, None


# torch.compile leaves the scan alone: it is compiled already
@torch.compiler.disable  # type: ignore[untyped-decorator]
def slstm_numba(
    x_BTHGV: Tensor, r_HKGV: Tensor | None, state: SLSTMState, /,
    *, reset_BT: Tensor | None, lengths_B: Tensor | None, exp_forget: bool,
) -> tuple[Tensor, SLSTMState]:  # fmt: skip
    """The same numbers as `slstm_recurrent`, in float32, tanh cell input."""
    B, T, H, _, V = x_BTHGV.shape
    reset_BT = torch.zeros(B, T, dtype=torch.bool) if reset_BT is None else reset_BT.contiguous()
    lengths_B = torch.full((B,), T) if lengths_B is None else lengths_B.clamp(0, T).long()
    r_HKJ = x_BTHGV.new_zeros(H, 0, 4 * V).float() if r_HKGV is None else wide(r_HKGV).flatten(2)
    h_BTHV, *last = Scan.apply(  # type: ignore[no-untyped-call]
        wide(x_BTHGV).flatten(3), r_HKJ, *state, reset_BT, lengths_B, exp_forget
    )
    return h_BTHV.to(x_BTHGV.dtype), SLSTMState(*last)
