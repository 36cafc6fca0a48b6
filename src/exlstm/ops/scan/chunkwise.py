"""The diagonal scan in about 2 sqrt(T) passes over all channels, with its hand-written backward: for any device.

The sequence is cut into N chunks of L steps. L passes advance all chunks at once, from zero, with the products of a on
the way; N passes carry the state from chunk to chunk:

    h = local + P h_0        P_t the product of a up to t, local_t what the chunk's own inputs give

A reset is a selection, not a factor 0, which would not end an infinity. The backward is the same scan from behind:
dh_t = dy_t + a_{t+1} dh_{t+1}, da_t = dh_t h_{t-1}, db_t = dh_t. Saved are a and h alone.

B batch  T time  N chunks  L steps of a chunk  E channels
"""

import math
from typing import Any

import torch
from torch import Tensor

from exlstm.ops.common import upcast
from exlstm.ops.derivatives import once_differentiable


def chunk_length(T: int) -> int:
    """About sqrt(T) steps: then there are as many passes within chunks as between them."""
    return max(1, math.isqrt(T))


def in_chunks(x_BTE: Tensor, L: int, value: float) -> Tensor:
    """[B, N, L, E]; the last chunk is filled up with `value`."""
    B, T, E = x_BTE.shape
    N = -(-T // L)
    filled = torch.cat([x_BTE, x_BTE.new_full((B, N * L - T, E), value)], dim=1) if N * L > T else x_BTE
    return filled.reshape(B, N, L, E)


def advance(a_BTE: Tensor, b_BTE: Tensor, h_BE: Tensor, first_BT1: Tensor | None) -> Tensor:
    """h_BTE, wide. first: True where the step before counts as zero."""
    T, L = a_BTE.shape[1], chunk_length(a_BTE.shape[1])
    a_BNLE, b_BNLE = in_chunks(a_BTE, L, 1.0), in_chunks(b_BTE, L, 0.0)
    first_BNL1 = None if first_BT1 is None else in_chunks(first_BT1, L, False)
    local, product = [], []
    h_BNE, p_BNE = torch.zeros_like(b_BNLE[:, :, 0]), torch.ones_like(b_BNLE[:, :, 0])
    for step in range(L):
        a_BNE, b_BNE = a_BNLE[:, :, step], b_BNLE[:, :, step]
        h_BNE, p_BNE = a_BNE * h_BNE, a_BNE * p_BNE
        if first_BNL1 is not None:
            h_BNE, p_BNE = (x.masked_fill(first_BNL1[:, :, step], 0) for x in (h_BNE, p_BNE))
        h_BNE = h_BNE + b_BNE
        local.append(h_BNE)
        product.append(p_BNE)
    local_BNLE, product_BNLE = torch.stack(local, dim=2), torch.stack(product, dim=2)
    before = [h_BE]
    for chunk in range(a_BNLE.shape[1] - 1):
        before.append(joined(local_BNLE[:, chunk, -1], product_BNLE[:, chunk, -1], before[-1]))
    h_BN1E = torch.stack(before, dim=1)[:, :, None]
    return joined(local_BNLE, product_BNLE, h_BN1E).flatten(1, 2)[:, :T]


def retreat(a_BTE: Tensor, dy_BTE: Tensor, first_BT1: Tensor | None) -> Tensor:
    """dh_BTE, the gradients of every h. dy: those of what was read of it."""
    # from behind, the factor of step t + 1 leads to step t
    later_BTE = torch.cat([torch.zeros_like(a_BTE[:, :1]), a_BTE.flip(1)[:, :-1]], dim=1)
    later_first = None
    if first_BT1 is not None:
        later_first = torch.cat([torch.zeros_like(first_BT1[:, :1]), first_BT1.flip(1)[:, :-1]], dim=1)
    return advance(later_BTE, dy_BTE.flip(1), torch.zeros_like(a_BTE[:, 0]), later_first).flip(1)


def joined(local: Tensor, product: Tensor, before: Tensor) -> Tensor:
    """local + product before; local alone where nothing of what was before is left."""
    return torch.where(product == 0, local, torch.addcmul(local, product, before))


class ScanInChunks(torch.autograd.Function):
    """(a, b, h before) -> h_BTE; all wide."""

    @staticmethod
    def forward(ctx: Any, a_BTE: Tensor, b_BTE: Tensor, h_BE: Tensor, first_BT1: Tensor | None) -> Tensor:
        h_BTE = advance(a_BTE, b_BTE, h_BE, first_BT1)
        ctx.save_for_backward(a_BTE, h_BE, first_BT1, h_BTE)
        return h_BTE

    @staticmethod
    @once_differentiable("scan", "chunkwise")
    def backward(ctx: Any, dy_BTE: Tensor) -> tuple[Tensor | None, ...]:
        a_BTE, h_BE, first_BT1, h_BTE = ctx.saved_tensors
        dh_BTE = retreat(a_BTE, dy_BTE, first_BT1)
        before_BTE = torch.cat([h_BE[:, None], h_BTE[:, :-1]], dim=1)
        da_BTE, dh_BE = dh_BTE * before_BTE, dh_BTE[:, 0] * a_BTE[:, 0]
        if first_BT1 is not None:
            da_BTE, dh_BE = da_BTE.masked_fill(first_BT1, 0), dh_BE.masked_fill(first_BT1[:, 0], 0)
        return da_BTE, dh_BTE, dh_BE, None


def scan_chunkwise(
    a_BTE: Tensor, b_BTE: Tensor, h_BE: Tensor, /, *, reset_BT: Tensor | None, valid_BT: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The numbers of `scan_recurrent`."""
    a_BTE, b_BTE = upcast(a_BTE), upcast(b_BTE)
    if valid_BT is not None:
        a_BTE, b_BTE = a_BTE.masked_fill(~valid_BT[..., None], 1), b_BTE.masked_fill(~valid_BT[..., None], 0)
    first_BT1 = None if reset_BT is None else reset_BT[..., None]
    h_BTE: Tensor = ScanInChunks.apply(a_BTE, b_BTE, h_BE, first_BT1)  # type: ignore[no-untyped-call]
    after_BE = h_BTE[:, -1]
    return h_BTE if valid_BT is None else h_BTE.masked_fill(~valid_BT[..., None], 0), after_BE
