"""Both rules over whole chunks at once, in plain torch for any device, with memory linear in T.

Within a chunk that starts with S, let G_i be the sum of g up to step i, E_i = G_i - g_i, and

    [x, y]_ij = sum_k x_ik y_jk e^{X_ik - G_jk}    for j < i, or j <= i where y is read after it was written

of the delta rule, with X = G:

    (I + beta [k, k]) U = beta (V - (k e^G) S)                 U = U_0 - W S, two triangular systems (the WY form)
    O = (q e^G) S + [q, k] U                                   [q, k] with j <= i
    S' = e^{G_L} S + (k e^{G_L - G})^T U

of the general form, with X = E in [a, .] and X = G in [q, .]:

    (I - [a, b]) Z = [a, k] V + (a e^E) S
    O = (q e^G) S + [q, k] V + [q, b] Z                        both with j <= i
    S' = e^{G_L} S + (k e^{G_L - G})^T V + (b e^{G_L - G})^T Z

Put together, a chunk maps S to O = O_0 + Q S and S' = R + P S. All of O_0, Q, R and P are products of the chunk's own
inputs, of all chunks at once; from chunk to chunk there is one product. Every exponent is at most 0, and its terms are
summed in float64. With a decay per key channel the weights of a pair are K numbers, so chunks are short.

A reset cuts the pairs and ends S by selection. The backward is torch's, of a span of chunks at a time, which is
computed again from the state before it; these states and the inputs are what is saved.

B batch  T time  H heads  M merged batch and heads  N chunks of a span  L, S chunk length (target, source)
K key width  V value width  G 1 or K
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from exlstm.ops.common import exact_dtype, upcast, without_autocast, zero_padding
from exlstm.ops.delta_rule.reference import RuleInputs
from exlstm.ops.derivatives import once_differentiable
from exlstm.ops.mlstm.chunkwise import cut, cut_reset, paste

CHUNK, CHANNEL_CHUNK = 64, 16  # steps of a chunk, with one decay for a head and with one per channel
SPAN, CHANNEL_SPAN = 512, 64  # steps between two states that are saved


class Decays(NamedTuple):
    """Decays of a span's chunks, each at most 1; 0 across a reset."""

    pairs_MNLSG: Tensor  # e^{G_i - G_j}, j <= i
    strict_MNLSG: Tensor  # e^{E_i - G_j}, j < i
    read_MNLG: Tensor  # e^{G_i}
    early_MNLG: Tensor  # e^{E_i}
    late_MNLG: Tensor  # e^{G_L - G_i}


class ChunkMaps(NamedTuple):
    """O = first + read S, S' = written + kept S, for every chunk."""

    first_MNLV: Tensor
    read_MNLK: Tensor
    written_MNKV: Tensor
    kept_MNKK: Tensor


def decays_of(g_MNLG: Tensor, segment_MNL: Tensor | None) -> Decays:
    """The `Decays` of logarithms g. segment: the number of resets up to a step, or None without any."""
    L, dtype = g_MNLG.shape[2], g_MNLG.dtype
    # sums of strong decays cancel in float32; a decay to nothing, or a reset by hand with a huge number, must not
    # swallow the digits of its neighbors
    exact_MNLG = g_MNLG.to(exact_dtype(g_MNLG)).clamp(min=-1e5)
    sum_MNLG = exact_MNLG.cumsum(2)
    before_MNLG, total_MN1G = sum_MNLG - exact_MNLG, sum_MNLG[:, :, -1:]
    past_LS = torch.ones(L, L, dtype=torch.bool, device=g_MNLG.device).tril()
    inside, fresh, cut = past_LS, None, None
    if segment_MNL is not None:
        inside = past_LS & (segment_MNL[..., :, None] == segment_MNL[..., None, :])
        fresh, cut = segment_MNL > 0, segment_MNL != segment_MNL[..., -1:]

    def weights(exponent: Tensor, forgotten: Tensor | None) -> Tensor:
        # masked before the exponential, which could overflow there
        masked = exponent if forgotten is None else exponent.masked_fill(forgotten[..., None], -torch.inf)
        return torch.exp(masked.to(dtype))

    return Decays(
        weights(sum_MNLG[..., :, None, :] - sum_MNLG[..., None, :, :], ~inside),
        weights(before_MNLG[..., :, None, :] - sum_MNLG[..., None, :, :], ~inside.tril(-1)),
        weights(sum_MNLG, fresh),
        weights(before_MNLG, fresh),
        weights(total_MN1G - sum_MNLG, cut),
    )


def scores(x_MNLK: Tensor, y_MNSK: Tensor, decay_MNLSG: Tensor) -> Tensor:
    """[x, y] of every chunk, [M, N, L, S]."""
    if decay_MNLSG.shape[-1] == 1:
        return (x_MNLK @ y_MNSK.mT) * decay_MNLSG[..., 0]
    return (x_MNLK[..., :, None, :] * decay_MNLSG * y_MNSK[..., None, :, :]).sum(-1)


def solved(lower_MNLS: Tensor, *right: Tensor) -> tuple[Tensor, ...]:
    """(I + lower)^{-1} of every right side [M, N, L, ...]; of lower only what is below the diagonal is read."""
    found = torch.linalg.solve_triangular(lower_MNLS, torch.cat(right, dim=-1), upper=False, unitriangular=True)
    return torch.split(found, [x.shape[-1] for x in right], dim=-1)


def delta_maps(x: RuleInputs, d: Decays) -> ChunkMaps:
    """The maps of the delta rule. x: chunks [M, N, L, ...]."""
    q_MNLK, k_MNLK, v_MNLV, beta_MNL, *_ = x
    assert beta_MNL is not None
    beta_MNL1 = beta_MNL[..., None]
    lower_MNLS = scores(beta_MNL1 * k_MNLK, k_MNLK, d.pairs_MNLSG)
    u_MNLV, w_MNLK = solved(lower_MNLS, beta_MNL1 * v_MNLV, beta_MNL1 * d.read_MNLG * k_MNLK)
    p_MNLS, late_MNLK = scores(q_MNLK, k_MNLK, d.pairs_MNLSG), k_MNLK * d.late_MNLG
    return ChunkMaps(
        p_MNLS @ u_MNLV,
        q_MNLK * d.read_MNLG - p_MNLS @ w_MNLK,
        late_MNLK.mT @ u_MNLV,
        diagonal(d, k_MNLK) - late_MNLK.mT @ w_MNLK,
    )


def dplr_maps(x: RuleInputs, d: Decays) -> ChunkMaps:
    """The maps of the general form. x: chunks [M, N, L, ...]."""
    q_MNLK, k_MNLK, v_MNLV, _, a_MNLK, b_MNLK, _ = x
    assert a_MNLK is not None
    assert b_MNLK is not None
    ab_MNLS, ak_MNLS = (scores(a_MNLK, y_MNLK, d.strict_MNLSG) for y_MNLK in (b_MNLK, k_MNLK))
    qb_MNLS, qk_MNLS = (scores(q_MNLK, y_MNLK, d.pairs_MNLSG) for y_MNLK in (b_MNLK, k_MNLK))
    z_MNLV, w_MNLK = solved(-ab_MNLS, ak_MNLS @ v_MNLV, a_MNLK * d.early_MNLG)
    late_k_MNLK, late_b_MNLK = k_MNLK * d.late_MNLG, b_MNLK * d.late_MNLG
    return ChunkMaps(
        qk_MNLS @ v_MNLV + qb_MNLS @ z_MNLV,
        q_MNLK * d.read_MNLG + qb_MNLS @ w_MNLK,
        late_k_MNLK.mT @ v_MNLV + late_b_MNLK.mT @ z_MNLV,
        diagonal(d, k_MNLK) + late_b_MNLK.mT @ w_MNLK,
    )


def diagonal(d: Decays, k_MNLK: Tensor) -> Tensor:
    """diag(e^{G_L}) of every chunk, [M, N, K, K]."""
    return torch.diag_embed(d.read_MNLG[:, :, -1].expand(*k_MNLK.shape[:2], k_MNLK.shape[3]))


def chunks_of(x: RuleInputs, start: int, end: int, L: int) -> RuleInputs:
    """A span of a rule as [M, N, L, ...], wide."""
    return x.rebuilt([cut(upcast(t), start, end, L) for t in x.tensors])


def span_forward(x: RuleInputs, s_MKV: Tensor, reset_MNL: Tensor | None) -> tuple[Tensor, Tensor]:
    """o [M, N, L, V] of a span, and S after it. x: chunks."""
    g_MNLG = x.k_BTHK.new_zeros(*x.k_BTHK.shape[:3], 1) if x.g_BTHG is None else x.g_BTHG
    segment_MNL = None if reset_MNL is None else reset_MNL.cumsum(-1)
    maps = (delta_maps if x.a_BTHK is None else dplr_maps)(x, decays_of(g_MNLG, segment_MNL))
    before = []
    for chunk in range(g_MNLG.shape[1]):
        before.append(s_MKV)
        kept_MKV = maps.kept_MNKK[:, chunk] @ s_MKV
        if segment_MNL is not None:  # what is forgotten may be infinite, so it is not multiplied by zero
            kept_MKV = kept_MKV.masked_fill((segment_MNL[:, chunk, -1] > 0)[:, None, None], 0)
        s_MKV = maps.written_MNKV[:, chunk] + kept_MKV
    old_MNLV = maps.read_MNLK @ torch.stack(before, dim=1)
    if segment_MNL is not None:
        old_MNLV = old_MNLV.masked_fill((segment_MNL > 0)[..., None], 0)
    return maps.first_MNLV + old_MNLV, s_MKV


def spans(T: int, G: int) -> list[tuple[int, int, int]]:
    """(start, end, chunk length) covering T steps: spans of whole chunks, then the remainder as one shorter chunk."""
    L, span = (CHUNK, SPAN) if G == 1 else (CHANNEL_CHUNK, CHANNEL_SPAN)
    whole = T - T % L
    parts = [(start, min(start + span, whole), L) for start in range(0, whole, span)]
    return parts + ([(whole, T, T - whole)] if whole < T else [])


def all_spans(x: RuleInputs, s_BHKV: Tensor, reset_BT: Tensor | None) -> tuple[Tensor, Tensor, list[Tensor]]:
    """o, S after the last step, and S before every span, [M, K, V]."""
    s_MKV, o, starts = s_BHKV.flatten(0, 1), [], []
    (_, T, H, _), G = x.q_BTHK.shape, 1 if x.g_BTHG is None else x.g_BTHG.shape[3]
    for start, end, L in spans(T, G):
        starts.append(s_MKV)
        o_MNLV, s_MKV = span_forward(chunks_of(x, start, end, L), s_MKV, cut_reset(reset_BT, H, start, end, L))
        o.append(paste(o_MNLV, H))
    return torch.cat(o, dim=1), s_MKV.reshape(s_BHKV.shape), starts


class RuleInChunks(torch.autograd.Function):
    """(S, reset, those of a `RuleInputs`) -> (o, S after), wide."""

    @staticmethod
    def forward(ctx: Any, s_BHKV: Tensor, reset_BT: Tensor | None, *given: Tensor | None) -> tuple[Tensor, Tensor]:
        o_BTHV, after_BHKV, starts = all_spans(RuleInputs(*given), s_BHKV.detach(), reset_BT)  # type: ignore[arg-type]
        ctx.save_for_backward(reset_BT, *given, *starts)
        return o_BTHV, after_BHKV

    @staticmethod
    @once_differentiable("delta_rule", "chunkwise")
    def backward(ctx: Any, do_BTHV: Tensor, ds_BHKV: Tensor) -> tuple[Tensor | None, ...]:
        reset_BT, *saved = ctx.saved_tensors
        x, starts, do_BTHV, ds_MKV = RuleInputs(*saved[:7]), saved[7:], do_BTHV.contiguous(), ds_BHKV.flatten(0, 1)
        (_, T, H, _), G = x.q_BTHK.shape, 1 if x.g_BTHG is None else x.g_BTHG.shape[3]
        parts: list[tuple[Tensor, ...]] = []
        for s_MKV, (start, end, L) in zip(reversed(starts), reversed(spans(T, G)), strict=True):
            with without_autocast(do_BTHV), torch.enable_grad():
                leaves = [t[:, start:end].detach().requires_grad_() for t in (*x.tensors,)]
                first_MKV = s_MKV.detach().requires_grad_()
                span = chunks_of(x.rebuilt(leaves), 0, end - start, L)
                o_MNLV, after_MKV = span_forward(span, first_MKV, cut_reset(reset_BT, H, start, end, L))
                results, gradients = (paste(o_MNLV, H), after_MKV), (do_BTHV[:, start:end], ds_MKV)
            *found, ds_MKV = torch.autograd.grad(results, [*leaves, first_MKV], gradients)
            parts.append(tuple(found))
        each = (torch.cat(xs[::-1], dim=1) for xs in zip(*parts, strict=True))
        return ds_MKV.view(ds_BHKV.shape), None, *(None if t is None else next(each) for t in x)


def rule_chunkwise(
    x: RuleInputs, s_BHKV: Tensor, /, *, reset_BT: Tensor | None, valid_BT: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The numbers of `rule_recurrent`."""
    if valid_BT is not None:  # steps that write nothing and forget nothing
        x = x.rebuilt([zero_padding(t, valid_BT) for t in x.tensors])
    # BLAS may sum in another order where a matrix has gaps
    x = x.rebuilt([t.contiguous() for t in x.tensors])
    if torch.compiler.is_compiling():  # a compiler cannot trace the backward, and decides itself what it saves
        o_BTHV, after_BHKV, _ = all_spans(x, s_BHKV, reset_BT)
    else:
        o_BTHV, after_BHKV = RuleInChunks.apply(s_BHKV, reset_BT, *x)  # type: ignore[no-untyped-call]
    return o_BTHV if valid_BT is None else zero_padding(o_BTHV, valid_BT), after_BHKV
