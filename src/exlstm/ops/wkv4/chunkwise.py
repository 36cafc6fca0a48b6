"""wkv in about 4 sqrt(T) passes over all channels, with its hand-written backward: for any device.

The units come first, p_t = max(p_0 + t w, max over s <= t of (k_s + (t - s) w)). They depend on k and w alone, and are
found as the scan is: within chunks of about sqrt(T) steps, from below everything, then from chunk to chunk. With them
the sums are a diagonal scan,

    (num, den)_t = a_t (num, den)_{t-1} + b_t (v_t, 1) ,   a_t = e^(w + p_{t-1} - p_t) ,   b_t = e^(k_t - p_t)

and no exponent is above 0. "Nothing seen yet" is p = -inf, and then a = 0. Padding has a = 1 and b = 0.
The backward is the same scan from behind.

B batch  T time  N chunks  L steps of a chunk  E channels  M channels of num and of den
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from exlstm.ops.common import upcast
from exlstm.ops.derivatives import once_differentiable
from exlstm.ops.scan.chunkwise import advance, chunk_length, in_chunks
from exlstm.ops.wkv4.reference import WKV4State

NOTHING = -torch.inf  # p before a first step


def units(k_BTE: Tensor, w_E: Tensor, p_BE: Tensor, first_BT1: Tensor | None, valid_BT1: Tensor | None) -> Tensor:
    """p_BTE. p: before the first step, -inf where nothing was seen. k is -inf in padding, where p stays.

    first: True where the step before counts as nothing.
    """
    B, T, E = k_BTE.shape
    L = chunk_length(T)
    k_BNLE = in_chunks(k_BTE, L, NOTHING)
    N = k_BNLE.shape[1]
    first_BNL1 = None if first_BT1 is None else in_chunks(first_BT1, L, False)
    valid_BNL1 = None if valid_BT1 is None else in_chunks(valid_BT1, L, True)
    local, faded = [], []  # the unit of the chunk's own keys, and what one from before has lost up to here
    p_BNE, fade_BNE = k_BTE.new_full((B, N, E), NOTHING), k_BTE.new_zeros((B, N, E))
    for step in range(L):
        lost = w_E if valid_BNL1 is None else torch.where(valid_BNL1[:, :, step], w_E, 0)
        p_BNE, fade_BNE = p_BNE + lost, fade_BNE + lost
        if first_BNL1 is not None:
            p_BNE, fade_BNE = (x.masked_fill(first_BNL1[:, :, step], NOTHING) for x in (p_BNE, fade_BNE))
        p_BNE = torch.maximum(p_BNE, k_BNLE[:, :, step])
        local.append(p_BNE)
        faded.append(fade_BNE)
    local_BNLE, faded_BNLE = torch.stack(local, dim=2), torch.stack(faded, dim=2)
    before = [p_BE]
    for chunk in range(N - 1):
        before.append(torch.maximum(local_BNLE[:, chunk, -1], before[-1] + faded_BNLE[:, chunk, -1]))
    p_BNLE = torch.maximum(local_BNLE, torch.stack(before, dim=1)[:, :, None] + faded_BNLE)
    return p_BNLE.flatten(1, 2)[:, :T]


class Sequence(NamedTuple):
    """All that forward and backward share, of every step; `before`: of the step before, as that step sees it."""

    k_BTE: Tensor
    v_BTE: Tensor
    u_E: Tensor
    decay_BTE: Tensor  # a
    write_BTE: Tensor  # b
    num_BTE: Tensor  # before
    den_BTE: Tensor  # before
    p_BTE: Tensor  # before

    def read(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """y, its denominator, and the weights of what was before and of the step itself."""
        unit_BTE = torch.maximum(self.p_BTE, self.u_E + self.k_BTE)
        past_BTE, now_BTE = torch.exp(self.p_BTE - unit_BTE), torch.exp(self.u_E + (self.k_BTE - unit_BTE))
        total_BTE = past_BTE * self.den_BTE + now_BTE
        return (past_BTE * self.num_BTE + now_BTE * self.v_BTE) / total_BTE, total_BTE, past_BTE, now_BTE


def shifted(x_BE: Tensor, x_BTE: Tensor, first_BT1: Tensor | None, value: float) -> Tensor:
    """Every step's x of the step before; `value` where that counts as nothing."""
    before_BTE = torch.cat([x_BE[:, None], x_BTE[:, :-1]], dim=1)
    return before_BTE if first_BT1 is None else before_BTE.masked_fill(first_BT1, value)


class WKVInChunks(torch.autograd.Function):
    """(k, v, w, u, num, den, p, first, valid) -> (y_BTE, num, den, p of the last step); all wide."""

    @staticmethod
    def forward(
        ctx: Any,
        k_BTE: Tensor,
        v_BTE: Tensor,
        w_E: Tensor,
        u_E: Tensor,
        num_BE: Tensor,
        den_BE: Tensor,
        p_BE: Tensor,
        first_BT1: Tensor | None,
        valid_BT1: Tensor | None,
    ) -> tuple[Tensor, ...]:
        seen_BE = p_BE.masked_fill(den_BE == 0, NOTHING)
        p_BTE = units(k_BTE, w_E, seen_BE, first_BT1, valid_BT1)
        p_before_BTE = shifted(seen_BE, p_BTE, first_BT1, NOTHING)
        decay_BTE, write_BTE = torch.exp(w_E + (p_before_BTE - p_BTE)), torch.exp(k_BTE - p_BTE)
        if valid_BT1 is not None:
            decay_BTE, write_BTE = decay_BTE.masked_fill(~valid_BT1, 1), write_BTE.masked_fill(~valid_BT1, 0)
            # what is read in padding is thrown away, but must be finite
            k_BTE, p_before_BTE = k_BTE.masked_fill(~valid_BT1, 0), p_before_BTE.masked_fill(~valid_BT1, NOTHING)
        b_BTM = torch.cat([write_BTE * v_BTE, write_BTE], dim=2)
        sums_BTM = advance(torch.cat([decay_BTE] * 2, dim=2), b_BTM, torch.cat([num_BE, den_BE], dim=1), first_BT1)
        num_BTE, den_BTE = sums_BTM.chunk(2, dim=2)
        before = shifted(num_BE, num_BTE, first_BT1, 0), shifted(den_BE, den_BTE, first_BT1, 0)
        sequence = Sequence(k_BTE, v_BTE, u_E, decay_BTE, write_BTE, *before, p_before_BTE)
        ctx.save_for_backward(*sequence, first_BT1, valid_BT1)
        # where nothing was seen, p is what it was
        after_BE = torch.where(den_BTE[:, -1] == 0, p_BE, p_BTE[:, -1])
        ctx.mark_non_differentiable(after_BE)
        return sequence.read()[0], num_BTE[:, -1].clone(), den_BTE[:, -1].clone(), after_BE

    @staticmethod
    @once_differentiable("wkv4", "chunkwise")
    def backward(ctx: Any, dy_BTE: Tensor, dnum_BE: Tensor, dden_BE: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        *saved, first_BT1, valid_BT1 = ctx.saved_tensors
        x = Sequence(*saved)
        y_BTE, total_BTE, past_BTE, now_BTE = x.read()
        dread_BTE = dy_BTE / total_BTE
        down_BTE = dread_BTE * now_BTE * (x.v_BTE - y_BTE)
        # gradients of the sums, from behind: what a step reads of them, and what it hands on
        read_BTM = torch.cat([dread_BTE * past_BTE, -dread_BTE * past_BTE * y_BTE], dim=2)
        first = None
        if first_BT1 is not None:
            read_BTM, first = read_BTM.masked_fill(first_BT1, 0), first_BT1.flip(1)
        later_BM = torch.cat([dnum_BE, dden_BE], dim=1)
        found_BTM = advance(torch.cat([x.decay_BTE] * 2, dim=2).flip(1), read_BTM.flip(1), later_BM, first).flip(1)
        before_BM, after_BTM = found_BTM[:, 0], torch.cat([found_BTM[:, 1:], later_BM[:, None]], dim=1)
        dnum_BTE, dden_BTE = after_BTM.chunk(2, dim=2)
        dv_BTE = dread_BTE * now_BTE + dnum_BTE * x.write_BTE
        dk_BTE = down_BTE + x.write_BTE * (dnum_BTE * x.v_BTE + dden_BTE)
        kept_BTE = x.decay_BTE * (dnum_BTE * x.num_BTE + dden_BTE * x.den_BTE)
        if valid_BT1 is not None:
            kept_BTE = kept_BTE.masked_fill(~valid_BT1, 0)
        dnum_BE, dden_BE = before_BM.chunk(2, dim=1)
        return dk_BTE, dv_BTE, kept_BTE.sum((0, 1)), down_BTE.sum((0, 1)), dnum_BE, dden_BE, None, None, None


def wkv4_chunkwise(
    k_BTE: Tensor,
    v_BTE: Tensor,
    w_E: Tensor,
    u_E: Tensor,
    state: WKV4State,
    /,
    *,
    reset_BT: Tensor | None,
    valid_BT: Tensor | None,
) -> tuple[Tensor, WKV4State]:
    """The numbers of `wkv4_recurrent`."""
    k_BTE, v_BTE, w_E, u_E = (upcast(x) for x in (k_BTE, v_BTE, w_E, u_E))
    first_BT1, valid_BT1 = (None if x is None else x[..., None] for x in (reset_BT, valid_BT))
    if valid_BT1 is not None:
        k_BTE, v_BTE = k_BTE.masked_fill(~valid_BT1, NOTHING), v_BTE.masked_fill(~valid_BT1, 0)
    found: Any = WKVInChunks.apply(  # type: ignore[no-untyped-call]
        k_BTE, v_BTE, w_E, u_E, state.num_BE, state.den_BE, state.p_BE.detach(), first_BT1, valid_BT1
    )
    y_BTE, *after = found
    return y_BTE if valid_BT1 is None else y_BTE.masked_fill(~valid_BT1, 0), WKV4State(*after)
