"""Associative LSTM over a whole sequence on a CPU: scans forward and backward, the gradient of R outside as a GEMM.

A single step without gradients has its product with R outside of the scan: there R is read as it is stored.

B batch  T time  N, M units  C copies  G planes of x  P planes, real and imaginary  J, I all numbers of x, of h
R rows of one product
"""

from typing import Any

import torch
from torch import Tensor

from exlstm.ops.assoc_lstm.numba.cell import SAVED
from exlstm.ops.assoc_lstm.numba.scan import Inputs, Saved, Sizes, State, backward_scan, forward_scan
from exlstm.ops.assoc_lstm.reference import PLANES, AssocLSTMState, recurrent
from exlstm.ops.common import detached_contiguous, rows_for_kernels, upcast, without_autocast
from exlstm.ops.derivatives import once_differentiable
from exlstm.runtime.cpu.launch import launch, microseconds
from exlstm.runtime.cpu.tile import PANEL, tile_rows
from exlstm.runtime.tracing import has_gradients

# of x and h in one product for the gradient of R: some CPUs' products add many more one by one, and round as often
ROWS = 64


def sizes_of(x_BTGN: Tensor, C: int, mixing: bool = True) -> tuple[Sizes, int, float]:
    """The sizes of a scan, its items, and its cost."""
    B, T, _, N = x_BTGN.shape
    cost = microseconds(flops=B * T * N * (300 + 40 * C + 2 * mixing * PLANES * 2 * N))
    rows = tile_rows(B, 1, cost)
    return Sizes(rows, mixing, B, T, C, N, N, B * T * -(-N // PANEL) * SAVED), -(-B // rows), cost


def forward(
    x_BTGN: Tensor,
    r_GNPM: Tensor,
    h_BPN: Tensor,
    c_BCPN: Tensor,
    order_CN: Tensor,
    reset_BT: Tensor | None,
    lengths_B: Tensor,
    saved: Saved | None = None,
    mixing: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """h of every step and the state after the last one, without a graph. saved: filled for the backward.

    mixing: whether R h is still to be added to x.
    """
    x_BTGN, r_GNPM, *state = detached_contiguous(x_BTGN, r_GNPM, h_BPN, c_BCPN)
    sizes, items, cost = sizes_of(x_BTGN, len(order_CN), mixing)
    h_BTPN, after = x_BTGN.new_empty(*x_BTGN.shape[:2], 2, x_BTGN.shape[3]), State(*map(torch.empty_like, state))
    saved = Saved(None, None, None) if saved is None else saved
    inputs = Inputs(r_GNPM if mixing else None, order_CN, reset_BT, lengths_B)
    launch(forward_scan, items, sizes, inputs, x_BTGN, State(*state), h_BTPN, after, saved, cost=cost)
    return h_BTPN, after.h_BPN, after.c_BCPN


class AssocLSTMScan(torch.autograd.Function):
    """(x, R, h, c) -> (h of every step, last h, last c); all float32."""

    @staticmethod
    def forward(
        ctx: Any,
        x_BTGN: Tensor,
        r_GNPM: Tensor,
        h_BPN: Tensor,
        c_BCPN: Tensor,
        order_CN: Tensor,
        reset_BT: Tensor | None,
        lengths_B: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        (B, T, _, N), C = x_BTGN.shape, len(order_CN)
        sizes, *_ = sizes_of(x_BTGN, C)
        saved = Saved(*(x_BTGN.new_empty(shape) for shape in ((B, T, 2, N), (B, T, C, 2, N), (sizes.E,))))
        out = forward(x_BTGN, r_GNPM, h_BPN, c_BCPN, order_CN, reset_BT, lengths_B, saved)
        ctx.save_for_backward(r_GNPM, order_CN, reset_BT, lengths_B, *saved)
        return out

    @staticmethod
    @once_differentiable("assoc_lstm", "numba")
    def backward(ctx: Any, dh_BTPN: Tensor, *dlast: Tensor) -> tuple[Tensor | None, ...]:
        r_GNPM, order_CN, reset_BT, lengths_B, *rest = ctx.saved_tensors
        saved, (B, T, _, N) = Saved(*rest), dh_BTPN.shape
        dx_BTGN = r_GNPM.new_empty(B, T, PLANES, N)
        dh_BTPN, r_GNPM, *dafter = detached_contiguous(dh_BTPN, r_GNPM, *dlast)
        dbefore, (sizes, items, cost) = State(*map(torch.empty_like, dafter)), sizes_of(dx_BTGN, len(order_CN))
        inputs = Inputs(r_GNPM, order_CN, reset_BT, lengths_B)
        launch(backward_scan, items, sizes, inputs, dh_BTPN, State(*dafter), dx_BTGN, dbefore, saved, cost=cost)
        with without_autocast(dx_BTGN):
            dr_JI = r_GNPM.new_zeros(PLANES * N, 2 * N)
            rows = (z.flatten(0, 1).flatten(1).split(ROWS) for z in (dx_BTGN, saved.past_BTPN))
            for dx_RJ, past_RI in zip(*rows, strict=True):
                dr_JI.addmm_(dx_RJ.mT, past_RI)
        return dx_BTGN, dr_JI.view_as(r_GNPM), *dbefore, None, None, None


def assoc_lstm_numba(
    x_BTGN: Tensor,
    r_GNPM: Tensor,
    order_CN: Tensor,
    state: AssocLSTMState,
    /,
    *,
    reset_BT: Tensor | None,
    lengths_B: Tensor | None,
) -> tuple[Tensor, AssocLSTMState]:
    """The numbers of `assoc_lstm_recurrent`, in float32."""
    T, x_BTGN, order_CN = x_BTGN.shape[1], upcast(x_BTGN), order_CN.contiguous()
    reset_BT, lengths_B = rows_for_kernels(x_BTGN, reset_BT, lengths_B)
    if has_gradients((x_BTGN, r_GNPM, *state)):
        h_BTPN, *after = AssocLSTMScan.apply(x_BTGN, upcast(r_GNPM), *state, order_CN, reset_BT, lengths_B)  # type: ignore[no-untyped-call]
    elif T == 1 and reset_BT is None:
        x_BTGN = x_BTGN + recurrent(state.h_BPN, r_GNPM)[:, None]
        h_BTPN, *after = forward(x_BTGN, r_GNPM, *state, order_CN, reset_BT, lengths_B, mixing=False)
    else:
        h_BTPN, *after = forward(x_BTGN, upcast(r_GNPM), *state, order_CN, reset_BT, lengths_B)
    return h_BTPN, AssocLSTMState(*after)
