"""The sLSTM on a GPU: Triton's loops over time, everything else as products outside of them.

Outside are W x (the caller's), the gates of all steps again for the backward, and the gradient of R. Heads of up to 64
units, whose R one multiprocessor holds beside the rest even in float32 (128 units take 221 KB in bfloat16 and 379 KB in
float32; an H100 has 227); for wider ones the definition runs.

B batch  T time  H heads  K, V head width  G gates: i, f, z, o
"""

from typing import Any

import torch
import triton
from torch import Tensor

from exlstm.ops.shared import contiguous, exactly, wide
from exlstm.ops.slstm.reference import SLSTMState
from exlstm.ops.slstm.triton_scan import backward_kernel, forward_kernel

ROWS = 16  # of a tile of the batch, the least that a product takes


class Scan(torch.autograd.Function):
    """(x, R, h, c, n, m) -> (h of every step, last h, c, n, m); R in any dtype, possibly of width 0: no mixing."""

    @staticmethod
    def forward(ctx: Any, x_BTHGV: Tensor, r_HKGV: Tensor, h_BHV: Tensor, c_BHV: Tensor, n_BHV: Tensor, m_BHV: Tensor,
                reset_BT: Tensor | None, lengths_B: Tensor, exp_forget: bool) -> tuple[Tensor, ...]:  # fmt: skip
        B, T, H, _, V = x_BTHGV.shape
        x_BTHGV, r_HKGV, *first = contiguous(x_BTHGV, r_HKGV, h_BHV, c_BHV, n_BHV, m_BHV)
        h_BTHV, kept = x_BTHGV.new_empty(B, T, H, V), x_BTHGV.new_empty(3, B, T, H, V)
        last = [torch.empty_like(x) for x in first]
        forward_kernel[H, triton.cdiv(B, ROWS)](
            x_BTHGV, r_HKGV, *first, lengths_B if reset_BT is None else reset_BT, lengths_B, h_BTHV, kept, *last,
            B, T, H, **options(r_HKGV, V, reset_BT, exp_forget),
        )  # fmt: skip
        ctx.save_for_backward(x_BTHGV, r_HKGV, *first, lengths_B, h_BTHV, kept)
        ctx.reset, ctx.exp_forget = reset_BT, exp_forget
        ctx.mark_non_differentiable(last[3])
        return h_BTHV, *last

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dh_BTHV: Tensor, *dlast: Tensor) -> tuple[Tensor | None, ...]:
        x_BTHGV, r_HKGV, h_BHV, *first, lengths_B, h_BTHV, kept = ctx.saved_tensors
        B, T, H, _, V = x_BTHGV.shape
        dh_BTHV, *dstate = contiguous(dh_BTHV, *dlast[:3])
        past_HMV = torch.cat([h_BHV[:, None], h_BTHV[:, :-1]], dim=1)
        if ctx.reset is not None:
            past_HMV = past_HMV.masked_fill(ctx.reset[:, :, None, None], 0)
        past_HMV, raw_BTHGV = past_HMV.permute(2, 0, 1, 3).reshape(H, B * T, V), x_BTHGV
        mixing = r_HKGV.shape[1] > 0
        with exactly(dh_BTHV):
            if mixing:
                mixed_HMJ = past_HMV.to(r_HKGV.dtype).float() @ r_HKGV.float().flatten(2)
                raw_BTHGV = x_BTHGV + mixed_HMJ.view(H, B, T, 4, V).permute(1, 2, 0, 3, 4)
            dx_BTHGV, dfirst = torch.empty_like(raw_BTHGV), [torch.empty_like(h_BHV) for _ in range(3)]
            backward_kernel[H, triton.cdiv(B, ROWS)](
                raw_BTHGV, r_HKGV, *first, lengths_B if ctx.reset is None else ctx.reset, lengths_B, kept, dh_BTHV,
                *dstate, dx_BTHGV, *dfirst, B, T, H, **options(r_HKGV, V, ctx.reset, ctx.exp_forget),
            )  # fmt: skip
            dr_HKGV = torch.zeros_like(r_HKGV)
            if mixing and ctx.needs_input_grad[1]:
                dx_HMJ = dx_BTHGV.permute(2, 0, 1, 3, 4).reshape(H, B * T, 4 * V)
                dr_HKGV = (past_HMV.mT @ dx_HMJ).view_as(r_HKGV).to(r_HKGV.dtype)
        return dx_BTHGV, dr_HKGV, *dfirst, None, None, None, None


def options(r_HKGV: Tensor, V: int, reset_BT: Tensor | None, exp_forget: bool) -> dict[str, Any]:
    """What both kernels are compiled for."""
    return {
        "V": V, "WIDE": max(16, triton.next_power_of_2(V)), "ROWS": ROWS, "MIXING": r_HKGV.shape[1] > 0,
        "RESETS": reset_BT is not None, "EXP_FORGET": exp_forget,
        "PRECISION": "ieee" if r_HKGV.dtype == torch.float32 else "tf32",
    }  # fmt: skip


def slstm_triton(
    x_BTHGV: Tensor, r_HKGV: Tensor | None, state: SLSTMState, /,
    *, reset_BT: Tensor | None, lengths_B: Tensor | None, exp_forget: bool,
) -> tuple[Tensor, SLSTMState]:  # fmt: skip
    """The same numbers as `slstm_recurrent`, tanh cell input."""
    B, T, H, _, V = x_BTHGV.shape
    r_HKGV = x_BTHGV.new_empty(H, 0, 4, V) if r_HKGV is None else r_HKGV
    lengths_B = torch.full((B,), T, device=x_BTHGV.device) if lengths_B is None else lengths_B.clamp(0, T).long()
    reset_BT = None if reset_BT is None else reset_BT.contiguous()
    h_BTHV, *last = Scan.apply(  # type: ignore[no-untyped-call]
        wide(x_BTHGV), r_HKGV, *state, reset_BT, lengths_B.contiguous(), exp_forget
    )
    return h_BTHV.to(x_BTHGV.dtype), SLSTMState(*last)
