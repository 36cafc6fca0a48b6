"""The mLSTM on a GPU: Triton kernels over chunks, with the full gradient, any length and any widths.

    gates     one pass over the gates alone: the stabiliser and all sums of log f
    states    C and n before every chunk, one chunk after another
    outputs   all tiles of all chunks at once

The backward computes the same in the other direction: gradients of the states, then of q, k, v and the gates. Kept
per step are q, k, v, h, the gates and a few numbers; states are computed again.

B batch  T time, P with padding to whole chunks  H heads  M merged batch and heads  N chunks  L chunk length
I, J tiles of a chunk  X tiles of C  K key width  V value width
"""

from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from exlstm.ops.mlstm.reference import InputGate, MLSTMState, log_gates
from exlstm.ops.mlstm.triton_backward import (
    key_kernel,
    mass_kernel,
    query_kernel,
    state_gradient_kernel,
    value_kernel,
)
from exlstm.ops.mlstm.triton_forward import output_kernel, state_kernel
from exlstm.ops.mlstm.triton_gates import gate_scan
from exlstm.ops.shared import wide


class Options(NamedTuple):
    """What the kernels are compiled for."""

    stabilize: bool
    normalize: bool
    eps: float
    chunk_len: int  # a power of two, at least 16


class Sizes(NamedTuple):
    """How the work is cut."""

    T: int
    H: int
    N: int
    L: int
    tile: int
    K: int
    V: int
    block_k: int
    block_v: int
    scale: float
    precision: str


def block(width: int, most: int) -> int:
    """A power of two from 16 to `most` that holds `width` numbers, if it can."""
    return max(16, min(most, int(triton.next_power_of_2(width))))


def sizes_of(q_BTHK: Tensor, v_BTHV: Tensor, chunk_len: int) -> Sizes:
    """For these inputs."""
    (_, T, H, K), V = q_BTHK.shape, v_BTHV.shape[3]
    L = min(chunk_len, block(T, chunk_len))
    precision = "ieee" if q_BTHK.dtype == torch.float32 else "tf32"
    # whole rows of q and k, of gradients and of states have to fit into shared memory side by side
    tile = min(L, 64 if block(K, 1024) * q_BTHK.itemsize <= 256 else 32)
    return Sizes(T, H, -(-T // L), L, tile, K, V, block(K, 64), block(V, 64), K**-0.5, precision)


def strides(x: Tensor) -> tuple[int, int, int]:
    """Numbers from one row, one step, one head to the next."""
    return x.stride(0), x.stride(1), x.stride(2)


def without_gaps(x: Tensor) -> Tensor:
    """`x` without its graph, its last axis in order."""
    x = x.detach()
    return x if x.stride(-1) == 1 else x.contiguous()


class Gates(NamedTuple):
    """What `gate_scan` says."""

    planes: Tensor  # [5, M, T padded]
    starts: Tensor  # [M, N]


def scan_gates(log_i_BTH: Tensor, log_f_BTH: Tensor, reset_BT: Tensor | None, m_BH: Tensor, s: Sizes, stabilize: bool
               ) -> tuple[Gates, Tensor]:  # fmt: skip
    """The gates, and m after the last step."""
    B = log_i_BTH.shape[0]
    new, M = log_i_BTH.new_empty, B * s.H
    gates, last_BH = Gates(new(5, M, s.N * s.L), new(M, s.N)), new(B, s.H)
    gate_scan[M,](
        log_i_BTH.contiguous(), log_f_BTH.contiguous(), m_BH if reset_BT is None else reset_BT.contiguous(),
        m_BH.contiguous(), *gates, last_BH, s.T, s.H, s.N,
        L=s.L, STABILIZE=stabilize, RESETS=reset_BT is not None,
    )  # fmt: skip
    return gates, last_BH


def states(k_BTHK: Tensor, v_BTHV: Tensor, gates: Gates, c_BHKV: Tensor, n_BHK: Tensor, s: Sizes
           ) -> tuple[Tensor, ...]:  # fmt: skip
    """C and n before every chunk, merged, and after the last."""
    M, new = gates.starts.shape[0], c_BHKV.new_empty
    out = new(M, s.N, s.K, s.V), new(M, s.N, s.K), torch.empty_like(c_BHKV), torch.empty_like(n_BHK)
    grid = M, triton.cdiv(s.K, s.block_k), triton.cdiv(s.V, s.block_v)
    state_kernel[grid](
        k_BTHK, v_BTHV, *gates, c_BHKV, n_BHK, *out, s.T, s.H, s.N, *strides(k_BTHK), *strides(v_BTHV),
        L=s.L, TILE=s.tile, K=s.K, V=s.V, BK=s.block_k, BV=s.block_v, PRECISION=s.precision,
    )  # fmt: skip
    return out


class Chunks(torch.autograd.Function):
    """(q, k, v, log i, log f, C, n, m) -> (h, C, n, m); the gates and the state float32."""

    @staticmethod
    def forward(ctx: Any, q_BTHK: Tensor, k_BTHK: Tensor, v_BTHV: Tensor, log_i_BTH: Tensor, log_f_BTH: Tensor,
                c_BHKV: Tensor, n_BHK: Tensor, m_BH: Tensor, reset_BT: Tensor | None, options: Options
                ) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
        q_BTHK, k_BTHK, v_BTHV = (without_gaps(x) for x in (q_BTHK, k_BTHK, v_BTHV))
        c_BHKV, n_BHK = c_BHKV.detach().contiguous(), n_BHK.detach().contiguous()
        s = sizes_of(q_BTHK, v_BTHV, options.chunk_len)
        gates, last_m_BH = scan_gates(log_i_BTH, log_f_BTH, reset_BT, m_BH, s, options.stabilize)
        cs, ns, last_c_BHKV, last_n_BHK = states(k_BTHK, v_BTHV, gates, c_BHKV, n_BHK, s)
        h_BTHV, M = torch.empty(v_BTHV.shape, dtype=q_BTHK.dtype, device=q_BTHK.device), gates.starts.shape[0]
        mass_MP = torch.empty_like(gates.planes[0])
        output_kernel[s.N * s.L // s.tile, triton.cdiv(s.V, s.block_v), M](
            q_BTHK, k_BTHK, v_BTHV, *gates, cs, ns, h_BTHV, mass_MP, s.T, s.H, s.N, *strides(q_BTHK),
            *strides(k_BTHK), *strides(v_BTHV), *strides(h_BTHV), s.scale, options.eps,
            L=s.L, TILE=s.tile, K=s.K, V=s.V, BK=s.block_k, BV=s.block_v, NORMALIZE=options.normalize,
            PRECISION=s.precision,
        )  # fmt: skip
        ctx.save_for_backward(q_BTHK, k_BTHK, v_BTHV, *gates, c_BHKV, n_BHK, h_BTHV, mass_MP)
        ctx.options, ctx.sizes = options, s
        ctx.mark_non_differentiable(last_m_BH)
        return h_BTHV, last_c_BHKV, last_n_BHK, last_m_BH

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dh_BTHV: Tensor, dc_BHKV: Tensor, dn_BHK: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        q_BTHK, k_BTHK, v_BTHV, planes, starts, c_BHKV, n_BHK, h_BTHV, mass_MP = ctx.saved_tensors
        s, options, gates, M = ctx.sizes, ctx.options, Gates(planes, starts), starts.shape[0]
        dh_BTHV, tiles, parts = without_gaps(dh_BTHV), s.N * s.L // s.tile, s.L // s.tile
        cs, ns, _, _ = states(k_BTHK, v_BTHV, gates, c_BHKV, n_BHK, s)
        inverse_MP, dmass_MP, forget_MP, carry_MP, input_MP = (torch.empty_like(mass_MP) for _ in range(5))
        shared: dict[str, Any] = {
            "L": s.L, "TILE": s.tile, "K": s.K, "V": s.V, "BK": s.block_k, "BV": s.block_v, "PRECISION": s.precision,
        }  # fmt: skip
        mass_kernel[tiles, M](
            h_BTHV, dh_BTHV, planes, mass_MP, inverse_MP, dmass_MP, s.T, s.H, s.N, *strides(h_BTHV), *strides(dh_BTHV),
            options.eps, L=s.L, TILE=s.tile, V=s.V, BV=s.block_v, NORMALIZE=options.normalize,
        )  # fmt: skip
        grid = M, triton.cdiv(s.K, s.block_k), triton.cdiv(s.V, s.block_v)
        dcs, dns, kept_MNX = torch.empty_like(cs), torch.empty_like(ns), starts.new_empty(M, s.N, grid[1] * grid[2])
        first_dc, first_dn = torch.empty_like(c_BHKV), torch.empty_like(n_BHK)
        state_gradient_kernel[grid](
            q_BTHK, dh_BTHV, *gates, inverse_MP, dmass_MP, cs, ns, dc_BHKV.contiguous(), dn_BHK.contiguous(), dcs, dns,
            first_dc, first_dn, kept_MNX, s.T, s.H, s.N, *strides(q_BTHK), *strides(dh_BTHV), s.scale, **shared,
        )  # fmt: skip
        dq_BTHK, dk_BTHK, dv_BTHV = (torch.empty(x.shape, dtype=x.dtype, device=x.device)
                                     for x in (q_BTHK, k_BTHK, v_BTHV))  # fmt: skip
        between, after = starts.new_zeros(M, s.N, parts, parts), starts.new_empty(M, s.N, parts)
        inputs = [x for y in (q_BTHK, k_BTHK, v_BTHV, dh_BTHV) for x in strides(y)]
        query_kernel[tiles, M](
            q_BTHK, k_BTHK, v_BTHV, dh_BTHV, *gates, inverse_MP, dmass_MP, cs, ns, dq_BTHK, forget_MP, carry_MP,
            between, s.T, s.H, s.N, *inputs, *strides(dq_BTHK), s.scale, WIDE=block(s.K, 1024), **shared,
        )  # fmt: skip
        key_kernel[tiles, M](
            q_BTHK, k_BTHK, v_BTHV, dh_BTHV, planes, inverse_MP, dmass_MP, dcs, dns, dk_BTHK, input_MP, forget_MP,
            after, s.T, s.H, s.N, *inputs, *strides(dk_BTHK), s.scale, WIDE=block(s.K, 1024), **shared,
        )  # fmt: skip
        value_kernel[tiles, grid[2], M](
            q_BTHK, k_BTHK, dh_BTHV, planes, inverse_MP, dcs, dv_BTHV, s.T, s.H, s.N, *strides(q_BTHK),
            *strides(k_BTHK), *strides(dh_BTHV), *strides(dv_BTHV), s.scale, **shared,
        )  # fmt: skip
        dlog_f_MP = gradient_of_forget(forget_MP, carry_MP, kept_MNX, between, after, s)
        dlog_i_BTH, dlog_f_BTH = (x.view(-1, s.H, s.N * s.L)[..., : s.T].mT for x in (input_MP, dlog_f_MP))
        return dq_BTHK, dk_BTHK, dv_BTHV, dlog_i_BTH, dlog_f_BTH, first_dc, first_dn, None, None, None


def gradient_of_forget(forget_MP: Tensor, carry_MP: Tensor, kept_MNX: Tensor, between_MNIJ: Tensor, after_MNJ: Tensor,
                       s: Sizes) -> Tensor:  # fmt: skip
    """What the kernels found for log f, summed: of pairs in one tile or with one end in it, and these here.

    between: pairs of two whole tiles, which every tile in the middle hides or shows. after: of a whole tile with the
    state after the chunk, for all later tiles. carry and kept: the state before the chunk at every later step.
    """
    carry_MNL = carry_MP.view(-1, s.N, s.L)
    carry_MNL[..., -1] += kept_MNX.sum(-1)
    middle_MNJ = torch.zeros_like(after_MNJ)
    for part in range(1, after_MNJ.shape[2]):
        middle_MNJ[..., part] = after_MNJ[..., :part].sum(-1) + between_MNIJ[..., part + 1 :, :part].sum((-1, -2))
    later_MNL = carry_MNL.flip(-1).cumsum(-1).flip(-1)
    return (forget_MP.view_as(later_MNL) + later_MNL + middle_MNJ.repeat_interleave(s.tile, -1)).view_as(forget_MP)


def mlstm_triton(
    q_BTHK: Tensor, k_BTHK: Tensor, v_BTHV: Tensor, i_BTH: Tensor, f_BTH: Tensor, state: MLSTMState, /,
    *, reset_BT: Tensor | None = None, input_gate: InputGate = "exp", normalize: bool = True, eps: float = 1e-6,
    chunk_len: int = 64,
) -> tuple[Tensor, MLSTMState]:  # fmt: skip
    """The same numbers as `mlstm_chunkwise`. chunk_len: rounded to a power of two from 16 to 256."""
    log_i_BTH, log_f_BTH = log_gates(i_BTH, f_BTH, input_gate)
    options = Options(input_gate == "exp", normalize, eps, block(chunk_len, 256))
    k_BTHK, v_BTHV = k_BTHK.to(q_BTHK.dtype), v_BTHV.to(q_BTHK.dtype)
    h_BTHV, *after = Chunks.apply(  # type: ignore[no-untyped-call]
        q_BTHK, k_BTHK, v_BTHV, log_i_BTH, log_f_BTH, *(wide(x) for x in state), reset_BT, options
    )
    return h_BTHV, MLSTMState(*after)
