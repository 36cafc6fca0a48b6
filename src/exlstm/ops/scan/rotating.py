"""The scan with complex factors of constant angle, as two real scans, with its hand-written backward: for any device.

    h_t = r_t e^(i theta) h_{t-1} + b_t
    g_t = e^(-i theta t) h_t    ->    g_t = r_t g_{t-1} + e^(-i theta t) b_t

g is h seen from a frame that turns with it, and its factors are real. So both parts of g are one diagonal scan, and h
is g turned back. Steps are counted from the beginning of a call, and angles are taken in float64 (`exact_dtype`) modulo
a full turn, so that none loses digits in a long sequence. A reset is that of the scan: it has nothing to do with the
frame.

The backward is the same scan from behind, turning the other way: dh_t = dy_t + r_{t+1} e^(-i theta) dh_{t+1}. The
gradients of r and theta are sums over t of dh_t against e^(i theta) h_{t-1}. Through the frame's angles they would be
differences of sums weighted by t, and lose digits.

B batch  T time  E channels  M both parts of all channels
"""

import math
from typing import Any

import torch
from torch import Tensor

from exlstm.ops.common import exact_dtype, upcast
from exlstm.ops.derivatives import once_differentiable
from exlstm.ops.scan.chunkwise import advance
from exlstm.ops.scan.reference import RotatingState


def rotated(re: Tensor, im: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """(re + i im)(cos + i sin)"""
    return re * cos - im * sin, re * sin + im * cos


def turning_scan(
    r_BTE: Tensor,
    theta_E: Tensor,
    b: tuple[Tensor, Tensor],
    before: tuple[Tensor, Tensor],
    first_BT1: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Parts of h, wide. first: True where the step before counts as zero."""
    exact = exact_dtype(theta_E)
    steps_T1 = torch.arange(1, r_BTE.shape[1] + 1, device=theta_E.device, dtype=exact)[:, None]
    angle_TE = torch.remainder(steps_T1 * theta_E.to(exact), 2 * math.pi)
    cos_TE, sin_TE = torch.cos(angle_TE).to(r_BTE.dtype), torch.sin(angle_TE).to(r_BTE.dtype)
    b_BTM = torch.cat(rotated(*b, cos_TE, -sin_TE), dim=2)
    g_BTM = advance(torch.cat([r_BTE, r_BTE], dim=2), b_BTM, torch.cat(before, dim=1), first_BT1)
    g_re_BTE, g_im_BTE = g_BTM.chunk(2, dim=2)
    return rotated(g_re_BTE, g_im_BTE, cos_TE, sin_TE)


class RotatingInChunks(torch.autograd.Function):
    """(r, theta, parts of b, parts of h before) -> parts of h of every step; all wide."""

    @staticmethod
    def forward(
        ctx: Any,
        r_BTE: Tensor,
        theta_E: Tensor,
        re_BTE: Tensor,
        im_BTE: Tensor,
        re_BE: Tensor,
        im_BE: Tensor,
        first_BT1: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        h = turning_scan(r_BTE, theta_E, (re_BTE, im_BTE), (re_BE, im_BE), first_BT1)
        ctx.save_for_backward(r_BTE, theta_E, re_BE, im_BE, first_BT1, *h)
        return h

    @staticmethod
    @once_differentiable("rotating_scan", "chunkwise")
    def backward(ctx: Any, dy_re_BTE: Tensor, dy_im_BTE: Tensor) -> tuple[Tensor | None, ...]:
        r_BTE, theta_E, re_BE, im_BE, first_BT1, h_re_BTE, h_im_BTE = ctx.saved_tensors
        # from behind, the factor of step t + 1 leads to step t
        later_BTE = torch.cat([torch.zeros_like(r_BTE[:, :1]), r_BTE.flip(1)[:, :-1]], dim=1)
        later_first = None
        if first_BT1 is not None:
            later_first = torch.cat([torch.zeros_like(first_BT1[:, :1]), first_BT1.flip(1)[:, :-1]], dim=1)
        nothing_BE = torch.zeros_like(re_BE)
        behind = dy_re_BTE.flip(1), dy_im_BTE.flip(1)
        dh = turning_scan(later_BTE, -theta_E, behind, (nothing_BE, nothing_BE), later_first)
        dh_re_BTE, dh_im_BTE = (x.flip(1) for x in dh)
        cos_E, sin_E = torch.cos(theta_E), torch.sin(theta_E)
        before = ((re_BE, h_re_BTE), (im_BE, h_im_BTE))
        before_re_BTE, before_im_BTE = (torch.cat([x[:, None], h[:, :-1]], dim=1) for x, h in before)
        at_re_BTE, at_im_BTE = rotated(before_re_BTE, before_im_BTE, cos_E, sin_E)
        dr_BTE = dh_re_BTE * at_re_BTE + dh_im_BTE * at_im_BTE
        dtheta_BTE = r_BTE * (dh_im_BTE * at_re_BTE - dh_re_BTE * at_im_BTE)
        dbefore = rotated(r_BTE[:, 0] * dh_re_BTE[:, 0], r_BTE[:, 0] * dh_im_BTE[:, 0], cos_E, -sin_E)
        if first_BT1 is not None:
            dr_BTE, dtheta_BTE = dr_BTE.masked_fill(first_BT1, 0), dtheta_BTE.masked_fill(first_BT1, 0)
            dbefore = dbefore[0].masked_fill(first_BT1[:, 0], 0), dbefore[1].masked_fill(first_BT1[:, 0], 0)
        return dr_BTE, dtheta_BTE.sum((0, 1)), dh_re_BTE, dh_im_BTE, *dbefore, None


def rotating_chunkwise(
    r_BTE: Tensor,
    theta_E: Tensor,
    re_BTE: Tensor,
    im_BTE: Tensor,
    state: RotatingState,
    /,
    *,
    reset_BT: Tensor | None,
    valid_BT: Tensor | None,
) -> tuple[Tensor, Tensor, RotatingState]:
    """The numbers of `rotating_recurrent`."""
    r_BTE, theta_E, re_BTE, im_BTE = (upcast(x) for x in (r_BTE, theta_E, re_BTE, im_BTE))
    if valid_BT is not None:
        invalid_BT1 = ~valid_BT[..., None]
        r_BTE = r_BTE.masked_fill(invalid_BT1, 1)
        re_BTE, im_BTE = re_BTE.masked_fill(invalid_BT1, 0), im_BTE.masked_fill(invalid_BT1, 0)
    first_BT1 = None if reset_BT is None else reset_BT[..., None]
    found: Any = RotatingInChunks.apply(r_BTE, theta_E, re_BTE, im_BTE, *state, first_BT1)  # type: ignore[no-untyped-call]
    if valid_BT is None:
        return *found, RotatingState(*(h_BTE[:, -1] for h_BTE in found))
    # h of padding turns on, so that of a row's end is the state
    rows_B, lengths_B = torch.arange(len(valid_BT), device=valid_BT.device), valid_BT.sum(1)
    both = zip(state, found, strict=True)
    after = [torch.cat([before[:, None], h_BTE], dim=1)[rows_B, lengths_B] for before, h_BTE in both]
    h_re_BTE, h_im_BTE = (h_BTE.masked_fill(invalid_BT1, 0) for h_BTE in found)
    return h_re_BTE, h_im_BTE, RotatingState(*after)
