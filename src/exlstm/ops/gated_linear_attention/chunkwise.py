"""Linear attention with a decay per channel, in blocks of 16 steps, with its hand-written backward: for any device.

In a block that starts with S, for a decay over the key channels, with sums over exactly the steps in between:

    D_tsk = exp(sum of g_lk over s < l <= t)  for s <= t      c_tk = exp(sum of g_lk over l <= t)
    A_ts  = sum_k q_tk D_tsk k_sk                             O = A V + (q c) S
    S'    = diag(c_L) S + (k D_L)^T V                         D_L: D of the last step

and for one over the value channels D and c have these in place of k: A = Q K^T, O_tv = sum_s A_ts D_tsv v_sv + c (Q S).
No exponent is positive and none is a difference of sums, so gates may be as strong as they like. The textbook form of
a chunk, (q e^G) (k e^-G)^T, would overflow, and a longer block needs more of the three-fold products than it saves.

A step that is read before it is written, as with a bonus, is the query of the step before it.

The backward recomputes D and A. Saved are the inputs, and one S per span of blocks. Gradients of the decays are sums
over exactly the pairs that each acts on.

B batch  T time  H heads  M merged batch and heads  N blocks of a span  L, S steps of a block (target, source)
K key width  V value width  I either of them, where the decay is
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from exlstm.ops.common import upcast, without_autocast, zero_padding
from exlstm.ops.derivatives import once_differentiable
from exlstm.ops.gated_linear_attention.reference import Axis
from exlstm.ops.mlstm.chunkwise import cut, cut_reset, paste, spans

BLOCK = 16  # steps


class KeyDecays(NamedTuple):
    """Weights of a span by its gates alone."""

    d_MNLSI: Tensor  # from source to target within a block; 0 for a later source and across a reset
    carry_MNLI: Tensor  # of S before the block; 0 after a reset
    fresh_MNL1: Tensor | None  # True after a reset: what was before it may be infinite, and counts as zero


class BlockInputs(NamedTuple):
    """Inputs of a span of blocks."""

    q_MNLK: Tensor
    k_MNLK: Tensor
    v_MNLV: Tensor
    w: KeyDecays


def decays(g_MNLI: Tensor, reset_MNL: Tensor | None) -> KeyDecays:
    """The `KeyDecays` of a span."""
    L = g_MNLI.shape[2]
    step = torch.arange(L, device=g_MNLI.device)
    later_LS1 = (step[:, None] > step)[..., None]
    allowed = (step[:, None] >= step)[..., None]
    d_MNLSI = g_MNLI[:, :, :, None].expand(-1, -1, -1, L, -1).masked_fill(~later_LS1, 0).cumsum(2).exp_()
    carry_MNLI, fresh_MNL1 = g_MNLI.cumsum(2).exp_(), None
    if reset_MNL is not None:
        segment_MNL = reset_MNL.cumsum(-1)
        allowed = allowed & (segment_MNL[..., :, None] == segment_MNL[..., None, :])[..., None]
        fresh_MNL1 = (segment_MNL > 0)[..., None]
        carry_MNLI.masked_fill_(fresh_MNL1, 0)
    return KeyDecays(d_MNLSI.masked_fill_(~allowed, 0), carry_MNLI, fresh_MNL1)


def forgotten(x: Tensor, fresh: Tensor | None) -> Tensor:
    """x with zeros where nothing of what was before is left."""
    return x if fresh is None else x.masked_fill(fresh, 0)


def over_key(x_MNI: Tensor, axis: Axis) -> Tensor:
    """Factors of the channels, as they multiply [M, N, K, V]."""
    return x_MNI[..., None] if axis == "key" else x_MNI[..., None, :]


def written(x: BlockInputs, axis: Axis) -> tuple[Tensor, Tensor]:
    """k and v as they enter S after the block."""
    last_MNSI = x.w.d_MNLSI[:, :, -1]
    return (x.k_MNLK * last_MNSI, x.v_MNLV) if axis == "key" else (x.k_MNLK, x.v_MNLV * last_MNSI)


def states(x: BlockInputs, s_MKV: Tensor, axis: Axis) -> list[Tensor]:
    """S before every block and after the last one."""
    k_MNLK, v_MNLV = written(x, axis)
    added_MNKV, decay = k_MNLK.mT @ v_MNLV, over_key(x.w.carry_MNLI[:, :, -1], axis)
    found = [s_MKV]
    for n in range(added_MNKV.shape[1]):
        fresh = None if x.w.fresh_MNL1 is None else x.w.fresh_MNL1[:, n, -1:]
        found.append(torch.addcmul(added_MNKV[:, n], decay[:, n], forgotten(found[-1], fresh)))
    return found


def scores(x: BlockInputs, axis: Axis) -> tuple[Tensor, Tensor]:
    """A, and D times what it decays: k or v."""
    if axis == "key":
        dk_MNLSK = x.w.d_MNLSI * x.k_MNLK[:, :, None]
        return (dk_MNLSK @ x.q_MNLK[..., None])[..., 0], dk_MNLSK
    return x.q_MNLK @ x.k_MNLK.mT, x.w.d_MNLSI * x.v_MNLV[:, :, None]


def span_forward(x: BlockInputs, s_MNKV: Tensor, axis: Axis) -> Tensor:
    """o_MNLV of a span whose blocks start with the states s_MNKV."""
    a_MNLS, decayed_MNLSI = scores(x, axis)
    if axis == "key":
        return a_MNLS @ x.v_MNLV + forgotten((x.q_MNLK * x.w.carry_MNLI) @ s_MNKV, x.w.fresh_MNL1)
    own_MNLV = (a_MNLS[..., None, :] @ decayed_MNLSI)[..., 0, :]
    return own_MNLV + forgotten((x.q_MNLK @ s_MNKV) * x.w.carry_MNLI, x.w.fresh_MNL1)


class SpanGradients(NamedTuple):
    """Gradients of a span's inputs and of S before it."""

    q_MNLK: Tensor
    k_MNLK: Tensor
    v_MNLV: Tensor
    g_MNLI: Tensor
    s_MKV: Tensor


def state_gradients(x: BlockInputs, do_MNLV: Tensor, ds_MKV: Tensor, axis: Axis) -> Tensor:
    """Gradients of S before every block, and after the last one: [M, N + 1, K, V]."""
    carry_MNLI = x.w.carry_MNLI
    q_MNLK, do_MNLV = (x.q_MNLK * carry_MNLI, do_MNLV) if axis == "key" else (x.q_MNLK, do_MNLV * carry_MNLI)
    read_MNKV, decay = q_MNLK.mT @ do_MNLV, over_key(carry_MNLI[:, :, -1], axis)
    found = [ds_MKV]
    for n in reversed(range(read_MNKV.shape[1])):
        found.append(torch.addcmul(read_MNKV[:, n], decay[:, n], found[-1]))
    return torch.stack(found[::-1], dim=1)


def gate_gradients(de_MNLSI: Tensor, dc_MNLI: Tensor) -> Tensor:
    """dg from the gradients of log D and log c: g_l acts on the pairs s < l <= t, and on the carry of t >= l."""
    step = torch.arange(de_MNLSI.shape[2], device=dc_MNLI.device)
    earlier_LS1 = (step[:, None] > step)[..., None]
    pairs_MNLI = de_MNLSI.flip(2).cumsum(2).flip(2).masked_fill_(~earlier_LS1, 0).sum(3)
    return pairs_MNLI + dc_MNLI.flip(2).cumsum(2).flip(2)


def span_backward(x: BlockInputs, s_MNKV: Tensor, do_MNLV: Tensor, ds_MKV: Tensor, axis: Axis) -> SpanGradients:
    """Gradients of `span_forward` and `states`; s_MNKV: S before every block."""
    w, (k_MNLK, v_MNLV) = x.w, written(x, axis)
    ds_MJKV = state_gradients(x, do_MNLV, ds_MKV, axis)
    after_MNKV, fresh = ds_MJKV[:, 1:], w.fresh_MNL1
    a_MNLS, decayed_MNLSI = scores(x, axis)
    # what S after the block says of k and v, and what the read of S before it says of q and the carry
    dk_MNLK, dv_MNLV = v_MNLV @ after_MNKV.mT, k_MNLK @ after_MNKV
    if axis == "key":
        da_MNLS = do_MNLV @ x.v_MNLV.mT
        m_MNLSI = da_MNLS[..., None] * w.d_MNLSI
        old_MNLK = forgotten(do_MNLV @ s_MNKV.mT, fresh)
        dc_MNLI, dlast_MNLI = old_MNLK * x.q_MNLK * w.carry_MNLI, dk_MNLK * k_MNLK
        dq_MNLK = (da_MNLS[..., None, :] @ decayed_MNLSI)[..., 0, :] + old_MNLK * w.carry_MNLI
        dk_MNLK = (m_MNLSI * x.q_MNLK[..., None, :]).sum(2) + dk_MNLK * w.d_MNLSI[:, :, -1]
        dv_MNLV = a_MNLS.mT @ do_MNLV + dv_MNLV
        de_MNLSI = m_MNLSI.mul_(x.k_MNLK[:, :, None]).mul_(x.q_MNLK[..., None, :])
    else:
        m_MNLSI = do_MNLV[..., None, :] * w.d_MNLSI
        da_MNLS = (decayed_MNLSI @ do_MNLV[..., None])[..., 0]
        read_MNLV = forgotten(x.q_MNLK @ s_MNKV, fresh)
        dc_MNLI, dlast_MNLI = do_MNLV * w.carry_MNLI * read_MNLV, dv_MNLV * v_MNLV
        old_MNLK = forgotten((do_MNLV * w.carry_MNLI) @ s_MNKV.mT, fresh)
        dq_MNLK = da_MNLS @ x.k_MNLK + old_MNLK
        dk_MNLK = da_MNLS.mT @ x.q_MNLK + dk_MNLK
        dv_MNLV = (m_MNLSI * a_MNLS[..., None]).sum(2) + dv_MNLV * w.d_MNLSI[:, :, -1]
        de_MNLSI = m_MNLSI.mul_(x.v_MNLV[:, :, None]).mul_(a_MNLS[..., None])
    fresh_MN11 = None if fresh is None else fresh[:, :, -1:]
    kept_MNKV = forgotten(after_MNKV * s_MNKV, fresh_MN11) * over_key(w.carry_MNLI[:, :, -1], axis)
    dc_MNLI[:, :, -1] += kept_MNKV.sum(-1 if axis == "key" else -2)
    de_MNLSI[:, :, -1] += dlast_MNLI
    return SpanGradients(dq_MNLK, dk_MNLK, dv_MNLV, gate_gradients(de_MNLSI, dc_MNLI), ds_MJKV[:, 0])


class LinearAttentionInBlocks(torch.autograd.Function):
    """(q, k, v, g, S) -> (o, S), all wide: every step is read after it is written."""

    @staticmethod
    def forward(
        ctx: Any,
        q_BTHK: Tensor,
        k_BTHK: Tensor,
        v_BTHV: Tensor,
        g_BTHI: Tensor,
        s_BHKV: Tensor,
        reset_BT: Tensor | None,
        axis: Axis,
    ) -> tuple[Tensor, Tensor]:
        B, T, H, _ = q_BTHK.shape
        o, starts, s_MKV = [], [], s_BHKV.detach().flatten(0, 1)
        for part in spans(T, BLOCK):
            x = block_of((q_BTHK, k_BTHK, v_BTHV, g_BTHI), reset_BT, part)
            starts.append(s_MKV)
            *before, after = states(x, s_MKV, axis)
            o.append(paste(span_forward(x, torch.stack(before, dim=1), axis), H))
            s_MKV = after
        ctx.save_for_backward(q_BTHK, k_BTHK, v_BTHV, g_BTHI, reset_BT, *starts)
        ctx.axis = axis
        return torch.cat(o, dim=1), s_MKV.view(s_BHKV.shape)

    @staticmethod
    @once_differentiable("gated_linear_attention", "chunkwise")
    def backward(ctx: Any, do_BTHV: Tensor, ds_BHKV: Tensor) -> tuple[Tensor | None, ...]:
        q_BTHK, k_BTHK, v_BTHV, g_BTHI, reset_BT, *starts = ctx.saved_tensors
        axis, (_, T, H, _), ds_MKV = ctx.axis, q_BTHK.shape, ds_BHKV.flatten(0, 1)
        do_BTHV = do_BTHV.contiguous()  # BLAS may sum in another order where a gradient is expanded
        parts: list[tuple[Tensor, ...]] = []
        with without_autocast(do_BTHV):
            for part, s_MKV in reversed(list(zip(spans(T, BLOCK), starts, strict=True))):
                x = block_of((q_BTHK, k_BTHK, v_BTHV, g_BTHI), reset_BT, part)
                s_MNKV = torch.stack(states(x, s_MKV, axis)[:-1], dim=1)
                *found, ds_MKV = span_backward(x, s_MNKV, cut(do_BTHV, *part), ds_MKV, axis)
                parts.append(tuple(paste(each, H) for each in found))
        inputs = (torch.cat(xs[::-1], dim=1) for xs in zip(*parts, strict=True))
        return *inputs, ds_MKV.view(ds_BHKV.shape), None, None


def block_of(inputs: tuple[Tensor, ...], reset_BT: Tensor | None, part: tuple[int, int, int]) -> BlockInputs:
    """The `BlockInputs` of a span: from its first step to its end, in blocks of a length."""
    q_MNLK, k_MNLK, v_MNLV, g_MNLI = (cut(x, *part) for x in inputs)
    reset_MNL = cut_reset(reset_BT, inputs[0].shape[2], *part)
    return BlockInputs(q_MNLK, k_MNLK, v_MNLV, decays(g_MNLI, reset_MNL))


def read_before_writing(
    run: Any,
    q_BTHK: Tensor,
    k_BTHK: Tensor,
    v_BTHV: Tensor,
    g_BTHI: Tensor,
    s_BHKV: Tensor,
    bonus_HK: Tensor,
    reset_BT: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The read with a bonus by a form that reads after writing: with the query of the step that follows.

    run: (q, k, v, g, S, reset) -> (o, S).
    """
    own_BTHV = (upcast(q_BTHK) * upcast(bonus_HK) * k_BTHK).sum(-1, keepdim=True) * v_BTHV
    first_B1HV = (upcast(q_BTHK[:, 0, :, None]) @ s_BHKV).transpose(1, 2)
    following_BTHK = torch.cat([q_BTHK[:, 1:], torch.zeros_like(q_BTHK[:, :1])], dim=1)
    o_BTHV, s_BHKV = run(following_BTHK, k_BTHK, v_BTHV, g_BTHI, s_BHKV, reset_BT)
    old_BTHV = torch.cat([first_B1HV, upcast(o_BTHV[:, :-1])], dim=1)
    # a step that is reset reads nothing of what was before, which may be infinite
    return (old_BTHV if reset_BT is None else zero_padding(old_BTHV, ~reset_BT)) + own_BTHV, s_BHKV


def gated_linear_attention_chunkwise(
    q_BTHK: Tensor,
    k_BTHK: Tensor,
    v_BTHV: Tensor,
    g_BTHI: Tensor,
    s_BHKV: Tensor,
    /,
    *,
    bonus_HK: Tensor | None,
    axis: Axis,
    reset_BT: Tensor | None,
    valid_BT: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The numbers of `gated_linear_attention_recurrent`."""
    q_BTHK, k_BTHK, v_BTHV, g_BTHI = map(upcast, (q_BTHK, k_BTHK, v_BTHV, g_BTHI))
    if valid_BT is not None:
        q_BTHK, k_BTHK, v_BTHV, g_BTHI = (zero_padding(x, valid_BT) for x in (q_BTHK, k_BTHK, v_BTHV, g_BTHI))

    def run(*x: Tensor | None) -> tuple[Tensor, Tensor]:
        found: tuple[Tensor, Tensor] = LinearAttentionInBlocks.apply(*x, axis)  # type: ignore[no-untyped-call]
        return found

    if bonus_HK is None:
        o_BTHV, s_BHKV = run(q_BTHK, k_BTHK, v_BTHV, g_BTHI, s_BHKV, reset_BT)
    else:
        o_BTHV, s_BHKV = read_before_writing(run, q_BTHK, k_BTHK, v_BTHV, g_BTHI, s_BHKV, bonus_HK, reset_BT)
    return o_BTHV if valid_BT is None else zero_padding(o_BTHV, valid_BT), s_BHKV
