"""mLSTM over whole chunks at once, with its hand-written backward: the form for training and prefill.

Inside a chunk that starts with (C, n, m) and whose log forget gates sum to F_t = sum_{j<=t} log f_j:

    D_ts = exp(F_t - F_s + log i_s - m_t)  for s <= t        weight of step s at step t
    a_t  = exp(F_t + m - m_t)                                weight of the chunk's first state
    P    = (Q K^T / sqrt K) * D ,  b = P 1 + a (Q n / sqrt K)
    H    = (P V + a (Q C / sqrt K)) / (max(|b|, exp(-m_t)) + eps)

and the state after the chunk weighs the keys with the last row of D. m_t comes first and in closed form: it
is a max-plus scan of the gates alone. With it every weight is at most one, and no running maximum is needed.

The backward recomputes D and P from the inputs. Saved per step are q, k, v, h and the gates, and one state
for every `SPAN_CHUNKS` chunks; so memory is linear in T and there is no L x L matrix between forward and backward.
Gate gradients are summed over exactly the pairs (t, s) that a gate acts on: the shorter formula, a difference of
two long sums (q.dq - k.dk), loses digits when gates are extreme.

B batch  T time  H heads  M merged batch and heads  N chunks of a span  J borders of chunks (N + 1)
L, S chunk length (target, source)  K key width  V value width
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from exlstm.ops.common import broadcast_mask, exact_dtype, upcast, without_autocast
from exlstm.ops.derivatives import once_differentiable
from exlstm.ops.gates import ForgetGate, InputGate
from exlstm.ops.mlstm.reference import MLSTMState, log_gates, needs_unit

SPAN_CHUNKS = 16  # chunks in one batched product: enough for large matmuls, few enough to stay in cache


class GateWeights(NamedTuple):
    """GateWeights of a span by its gates alone, independent of q, k and v."""

    d_MNLS: Tensor  # decay from source s to target t within a chunk, 0 for s > t and across a reset
    carry_MNL: Tensor  # weight at t of the state before the chunk, 0 after a reset
    floor_MNL: Tensor  # exp(-m_t)
    m_M: Tensor  # stabiliser after the span
    cut_MNL1: Tensor | None  # True after a reset within the chunk, None without resets

    def kept(self, x_MNLI: Tensor) -> Tensor:
        """What steps get of the state before their chunk: selected, for what a reset forgets may be infinite."""
        return x_MNLI if self.cut_MNL1 is None else x_MNLI.masked_fill(self.cut_MNL1, 0)

    def left(self, x: Tensor, chunk: int | slice = slice(None)) -> Tensor:
        """What a chunk leaves of the state before it, [M, ...]; or all chunks of their states, [M, N, ...]."""
        return x if self.cut_MNL1 is None else x.masked_fill(broadcast_mask(self.cut_MNL1[:, chunk, -1, 0], x), 0)


class Options(NamedTuple):
    """Options of the cell, the same for all spans."""

    stabilize: bool
    normalize: bool
    eps: float


def max_plus_scan(a_MT: Tensor, b_MT: Tensor) -> Tensor:
    """x_t = max(a_t + x_{t-1}, b_t) for all t, from x_{-1} = -inf, in log2(T) doublings."""
    distance = 1
    while distance < b_MT.shape[1]:
        later = torch.maximum(a_MT[:, distance:] + b_MT[:, :-distance], b_MT[:, distance:])
        b_MT = torch.cat([b_MT[:, :distance], later], dim=1)
        a_MT = torch.cat([a_MT[:, :distance], a_MT[:, distance:] + a_MT[:, :-distance]], dim=1)
        distance *= 2
    return b_MT


def stabilizer(log_i_MT: Tensor, log_f_MT: Tensor, reset_MT: Tensor | None, m_M: Tensor) -> Tensor:
    """m_MT, the recurrence m_t = max(log f_t + m_{t-1}, log i_t) with m_{t-1} = 0 at resets."""
    decay_MT, enter_MT = log_f_MT, log_i_MT.clone()
    if reset_MT is not None:
        enter_MT = torch.where(reset_MT, torch.maximum(log_f_MT, log_i_MT), log_i_MT)
        decay_MT = log_f_MT.masked_fill(reset_MT, -torch.inf)
    enter_MT[:, 0] = torch.maximum(decay_MT[:, 0] + m_M, enter_MT[:, 0])
    return max_plus_scan(decay_MT, enter_MT)


def gate_weights(
    log_i_MNL: Tensor, log_f_MNL: Tensor, reset_MNL: Tensor | None, m_M: Tensor, options: Options
) -> GateWeights:
    """The `GateWeights` of a span, in closed form."""
    M, N, L = log_i_MNL.shape
    dtype, exact = log_i_MNL.dtype, exact_dtype(log_i_MNL)
    # F_t - F_s of strong gates cancels in float32; a gate of -inf, or a reset by hand with a huge number, must not
    # swallow the digits of its neighbours
    f_MNL = log_f_MNL.to(exact).clamp(min=-1e5)
    i_MNL, m_M = log_i_MNL.to(exact), m_M.to(exact)
    if options.stabilize:
        flat_reset_MT = None if reset_MNL is None else reset_MNL.reshape(M, N * L)
        m_MNL = stabilizer(i_MNL.flatten(1), f_MNL.flatten(1), flat_reset_MT, m_M).view(M, N, L)
    else:
        m_MNL = torch.zeros_like(i_MNL)
    m_before_MN = torch.cat([m_M[:, None], m_MNL[:, :-1, -1]], dim=1)
    sum_MNL = f_MNL.cumsum(-1)
    past_LS = torch.ones(L, L, dtype=torch.bool, device=i_MNL.device).tril()
    log_d_MNLS = ((sum_MNL - m_MNL)[..., :, None] + (i_MNL - sum_MNL)[..., None, :]).to(dtype)
    carry_MNL = torch.exp(sum_MNL + m_before_MN[..., None] - m_MNL).to(dtype)
    cut_MNL1 = None
    if reset_MNL is None:
        log_d_MNLS.masked_fill_(~past_LS, -torch.inf)
    else:
        segment_MNL = reset_MNL.cumsum(-1)
        same_segment_MNLS = (segment_MNL[..., :, None] == segment_MNL[..., None, :]) & past_LS
        log_d_MNLS.masked_fill_(~same_segment_MNLS, -torch.inf)
        cut_MNL1 = segment_MNL[..., None] > 0
        carry_MNL = carry_MNL.masked_fill(cut_MNL1[..., 0], 0)
    floor_MNL, m_M = torch.exp(-m_MNL).to(dtype), m_MNL[:, -1, -1].to(dtype)
    return GateWeights(log_d_MNLS.exp_(), carry_MNL, floor_MNL, m_M, cut_MNL1)


def states(k_MNLK: Tensor, v_MNLV: Tensor, w: GateWeights, c_MKV: Tensor, n_MK: Tensor) -> tuple[Tensor, Tensor]:
    """(C, n) before every chunk of the span and after it, stacked: c_MJKV and n_MJK."""
    worth_MNLK = k_MNLK * w.d_MNLS[..., -1, :, None]
    added_MNKV, added_MNK = worth_MNLK.mT @ v_MNLV, worth_MNLK.sum(-2)
    decay_MN = w.carry_MNL[..., -1]
    cs, ns = [c_MKV], [n_MK]
    for chunk in range(k_MNLK.shape[1]):
        c_MKV, n_MK = w.left(cs[-1], chunk), w.left(ns[-1], chunk)
        cs.append(torch.addcmul(added_MNKV[:, chunk], decay_MN[:, chunk, None, None], c_MKV))
        ns.append(torch.addcmul(added_MNK[:, chunk], decay_MN[:, chunk, None], n_MK))
    return torch.stack(cs, dim=1), torch.stack(ns, dim=1)


def mass_and_norm(p_MNLS: Tensor, old_MNLK: Tensor, n_MNK: Tensor, w: GateWeights, o: Options) -> tuple[Tensor, Tensor]:
    """b_t, the signed mass n_t . q_t, and what h is divided by."""
    mass_MNL = p_MNLS.sum(-1) + w.kept(old_MNLK @ n_MNK[..., None])[..., 0]
    norm_MNL = torch.maximum(mass_MNL.abs(), w.floor_MNL) + o.eps if o.normalize else w.floor_MNL
    return mass_MNL, norm_MNL


def span_forward(
    q_MNLK: Tensor, k_MNLK: Tensor, v_MNLV: Tensor, w: GateWeights, c_MNKV: Tensor, n_MNK: Tensor, options: Options
) -> Tensor:
    """h_MNLV of a span whose chunks start with the states c_MNKV, n_MNK. q is already scaled."""
    p_MNLS = (q_MNLK @ k_MNLK.mT).mul_(w.d_MNLS)
    old_MNLK = q_MNLK * w.carry_MNL[..., None]
    _, norm_MNL = mass_and_norm(p_MNLS, old_MNLK, n_MNK, w, options)
    return (p_MNLS @ v_MNLV).add_(w.kept(old_MNLK @ c_MNKV)).div_(norm_MNL[..., None])


class SpanGrads(NamedTuple):
    """Gradients of a span's inputs and of the state before it."""

    q_MNLK: Tensor
    k_MNLK: Tensor
    v_MNLV: Tensor
    log_i_MNL: Tensor
    log_f_MNL: Tensor
    c_MKV: Tensor
    n_MK: Tensor


def state_grads(
    dc_MNKV: Tensor, dn_MNK: Tensor, decay_MN: Tensor, dc_MKV: Tensor, dn_MK: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of the state before every chunk, and at the end: N + 1 entries; from the reads of each chunk."""
    dcs, dns = [dc_MKV], [dn_MK]
    for chunk in reversed(range(decay_MN.shape[1])):
        dcs.append(torch.addcmul(dc_MNKV[:, chunk], decay_MN[:, chunk, None, None], dcs[-1]))
        dns.append(torch.addcmul(dn_MNK[:, chunk], decay_MN[:, chunk, None], dns[-1]))
    return torch.stack(dcs[::-1], dim=1), torch.stack(dns[::-1], dim=1)


def span_backward(q_MNLK: Tensor, k_MNLK: Tensor, v_MNLV: Tensor, w: GateWeights, c_MJKV: Tensor, n_MJK: Tensor,
                  h_MNLV: Tensor, dh_MNLV: Tensor, dc_MKV: Tensor, dn_MK: Tensor, options: Options
                  ) -> SpanGrads:  # fmt: skip
    """Gradients of `span_forward` and `states`; c_MJKV and n_MJK: the results of `states`. q is already scaled."""
    before, after = slice(None, -1), slice(1, None)
    p_MNLS = (q_MNLK @ k_MNLK.mT).mul_(w.d_MNLS)
    old_MNLK = q_MNLK * w.carry_MNL[..., None]
    mass_MNL, norm_MNL = mass_and_norm(p_MNLS, old_MNLK, n_MJK[:, before], w, options)
    dnum_MNLV = dh_MNLV / norm_MNL[..., None]
    dmass_MNL = torch.zeros_like(mass_MNL)
    if options.normalize:
        wins_MNL = mass_MNL.abs() >= w.floor_MNL
        dmass_MNL = -(dnum_MNLV * h_MNLV).sum(-1) * mass_MNL.sign() * wins_MNL

    # the states: gradients of each chunk's reads, carried back through time
    read_MNKV, read_MNK = old_MNLK.mT @ dnum_MNLV, (old_MNLK * dmass_MNL[..., None]).sum(-2)
    decay_MN, last_MNL = w.carry_MNL[..., -1], w.d_MNLS[..., -1, :]
    dc_MJKV, dn_MJK = state_grads(read_MNKV, read_MNK, decay_MN, dc_MKV, dn_MK)
    dold_MNLK = w.kept(dnum_MNLV @ c_MJKV[:, before].mT + dmass_MNL[..., None] * n_MJK[:, before, None])
    dworth_MNLK = v_MNLV @ dc_MJKV[:, after].mT + dn_MJK[:, after, None]

    dp_MNLS = torch.baddbmm(
        dmass_MNL.flatten(0, 1)[..., None], dnum_MNLV.flatten(0, 1), v_MNLV.flatten(0, 1).mT
    ).view_as(p_MNLS)
    # selected: the mass of a step may be infinite, and keys of later ones have no part in it
    dp_MNLS.tril_()
    ds_MNLS = dp_MNLS * w.d_MNLS
    dq_MNLK = ds_MNLS @ k_MNLK + dold_MNLK * w.carry_MNL[..., None]
    dk_MNLK = ds_MNLS.mT @ q_MNLK + dworth_MNLK * last_MNL[..., None]
    dv_MNLV = p_MNLS.mT @ dnum_MNLV + (k_MNLK * last_MNL[..., None]) @ dc_MJKV[:, after]

    # gradients of the exponents: of D (whose last row also weighs the keys of the next state) and of the carry
    de_MNLS = dp_MNLS.mul_(p_MNLS)
    de_MNLS[..., -1, :] += (dworth_MNLK * k_MNLK).sum(-1) * last_MNL
    dcarry_MNL = (dold_MNLK * old_MNLK).sum(-1)
    c_MNKV, n_MNK = w.left(c_MJKV[:, before]), w.left(n_MJK[:, before])
    ddecay_MN = (dc_MJKV[:, after] * c_MNKV).sum((-1, -2)) + (dn_MJK[:, after] * n_MNK).sum(-1)
    dcarry_MNL[..., -1] += ddecay_MN * decay_MN
    di_MNL = de_MNLS.sum(-2)
    # log f_j acts on every pair s < j <= t, and on the carry of every t >= j
    earlier_SL = de_MNLS.new_ones(de_MNLS.shape[2:]).triu(1)
    df_MNL = (de_MNLS @ earlier_SL).tril_().sum(-2) + dcarry_MNL.flip(-1).cumsum(-1).flip(-1)
    return SpanGrads(dq_MNLK, dk_MNLK, dv_MNLV, di_MNL, df_MNL, dc_MJKV[:, 0], dn_MJK[:, 0])


def spans(T: int, chunk_len: int) -> list[tuple[int, int, int]]:
    """(start, end, chunk length) covering T steps: spans of whole chunks, then the remainder as one shorter chunk."""
    whole, step = T - T % chunk_len, SPAN_CHUNKS * chunk_len
    parts = [(start, min(start + step, whole), chunk_len) for start in range(0, whole, step)]
    return parts + ([(whole, T, T - whole)] if whole < T else [])


def cut(x: Tensor, start: int, end: int, chunk_len: int) -> Tensor:
    """A span of [B, T, H, ...] as [M, N, L, ...], heads merged into the batch."""
    B, _, H = x.shape[:3]
    heads_first = x[:, start:end].transpose(1, 2)
    return heads_first.reshape(B * H, (end - start) // chunk_len, chunk_len, *x.shape[3:])


def cut_reset(reset_BT: Tensor | None, H: int, start: int, end: int, chunk_len: int) -> Tensor | None:
    if reset_BT is None:
        return None
    return cut(reset_BT[:, :, None].expand(-1, -1, H), start, end, chunk_len)


def paste(x: Tensor, H: int) -> Tensor:
    """[M, N, L, ...] back to [B, T, H, ...]."""
    M, N, L = x.shape[:3]
    return x.reshape(M // H, H, N * L, *x.shape[3:]).transpose(1, 2)


class Chunkwise(torch.autograd.Function):
    """(q, k, v, log i, log f, C, n, m) -> (h, C, n, m); q, k, v and the gates wide, q not scaled yet."""

    @staticmethod
    def forward(ctx: Any, q_BTHK: Tensor, k_BTHK: Tensor, v_BTHV: Tensor, log_i_BTH: Tensor, log_f_BTH: Tensor,
                c_BHKV: Tensor, n_BHK: Tensor, m_BH: Tensor, reset_BT: Tensor | None, chunk_len: int,
                options: Options) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
        B, T, H, K = q_BTHK.shape
        h, starts = [], []
        # detached: else torch's error for an in-place change of a view hides the cause
        c_MKV, n_MK, m_M = (x.detach().flatten(0, 1) for x in (c_BHKV, n_BHK, m_BH))
        for start, end, L in spans(T, chunk_len):
            q_MNLK, k_MNLK, v_MNLV, i_MNL, f_MNL = (
                cut(x, start, end, L) for x in (q_BTHK, k_BTHK, v_BTHV, log_i_BTH, log_f_BTH)
            )
            starts += [c_MKV, n_MK, m_M]
            w = gate_weights(i_MNL, f_MNL, cut_reset(reset_BT, H, start, end, L), m_M, options)
            c_MJKV, n_MJK = states(k_MNLK, v_MNLV, w, c_MKV, n_MK)
            q_MNLK = q_MNLK * K**-0.5
            h.append(paste(span_forward(q_MNLK, k_MNLK, v_MNLV, w, c_MJKV[:, :-1], n_MJK[:, :-1], options), H))
            # clone: a view would keep the states of every chunk alive for the backward
            c_MKV, n_MK, m_M = c_MJKV[:, -1].clone(), n_MJK[:, -1].clone(), w.m_M
        h_BTHV = torch.cat(h, dim=1)
        c_BHKV, n_BHK, m_BH = (x.view(B, H, *x.shape[1:]) for x in (c_MKV, n_MK, m_M))
        ctx.save_for_backward(q_BTHK, k_BTHK, v_BTHV, log_i_BTH, log_f_BTH, reset_BT, h_BTHV, *starts)
        ctx.chunk_len, ctx.options = chunk_len, options
        ctx.mark_non_differentiable(m_BH)
        return h_BTHV, c_BHKV, n_BHK, m_BH

    @staticmethod
    @once_differentiable("mlstm", "chunkwise")
    def backward(ctx: Any, dh_BTHV: Tensor, dc_BHKV: Tensor, dn_BHK: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        q_BTHK, k_BTHK, v_BTHV, log_i_BTH, log_f_BTH, reset_BT, h_BTHV, *starts = ctx.saved_tensors
        B, T, H, K = q_BTHK.shape
        options: Options = ctx.options
        dc_MKV, dn_MK = dc_BHKV.flatten(0, 1), dn_BHK.flatten(0, 1)
        parts: list[tuple[Tensor, ...]] = []
        with without_autocast(dh_BTHV):
            for number, (start, end, L) in reversed(list(enumerate(spans(T, ctx.chunk_len)))):
                c_MKV, n_MK, m_M = starts[3 * number : 3 * number + 3]
                q_MNLK, k_MNLK, v_MNLV, i_MNL, f_MNL, h_MNLV, dh_MNLV = (
                    cut(x, start, end, L) for x in (q_BTHK, k_BTHK, v_BTHV, log_i_BTH, log_f_BTH, h_BTHV, dh_BTHV)
                )
                w = gate_weights(i_MNL, f_MNL, cut_reset(reset_BT, H, start, end, L), m_M, options)
                c_MJKV, n_MJK = states(k_MNLK, v_MNLV, w, c_MKV, n_MK)
                grads = span_backward(
                    q_MNLK * K**-0.5, k_MNLK, v_MNLV, w, c_MJKV, n_MJK, h_MNLV, dh_MNLV, dc_MKV, dn_MK, options
                )
                dc_MKV, dn_MK = grads.c_MKV, grads.n_MK
                parts.append(tuple(paste(x, H) for x in (grads.q_MNLK * K**-0.5, *grads[1:5])))
        inputs = (torch.cat(xs[::-1], dim=1) for xs in zip(*parts, strict=True))
        dstate = (x.view(B, H, *x.shape[1:]) for x in (dc_MKV, dn_MK))
        return *inputs, *dstate, None, None, None, None


def mlstm_chunkwise(
    q_BTHK: Tensor, k_BTHK: Tensor, v_BTHV: Tensor, i_BTH: Tensor, f_BTH: Tensor, state: MLSTMState, /,
    *, reset_BT: Tensor | None = None, input_gate: InputGate = "exp", forget_gate: ForgetGate = "sigmoid",
    normalize: bool = True, eps: float = 1e-6, chunk_len: int = 64,
) -> tuple[Tensor, MLSTMState]:  # fmt: skip
    """The same numbers as `mlstm_recurrent`, a chunk at a time. Any T; no length is a multiple of another."""
    log_i_BTH, log_f_BTH = log_gates(i_BTH, f_BTH, input_gate, forget_gate)
    options = Options(stabilize=needs_unit(input_gate, forget_gate), normalize=normalize, eps=eps)
    h_BTHV, *after = Chunkwise.apply(  # type: ignore[no-untyped-call]
        upcast(q_BTHK), upcast(k_BTHK), upcast(v_BTHV), log_i_BTH, log_f_BTH, *state, reset_BT, chunk_len, options
    )
    return h_BTHV.to(q_BTHK.dtype), MLSTMState(*after)
