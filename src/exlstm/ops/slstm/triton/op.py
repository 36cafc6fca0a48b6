"""The sLSTM on a GPU: Triton's kernels go through time, everything else is products outside of them.

Outside are W x (the caller's), the gates of all steps again for the backward, and the gradient of R. There are two ways
through time, with the same mathematics (`cell`):

- scan: one launch; a multiprocessor holds R of a head
- step: a launch per step, for heads of any width; the whole GPU reads R again in every step

A launch takes several microseconds of Python, and about two in a CUDA graph: nothing here waits for the GPU, so both
ways can be captured in one.

B batch  T time  H heads  K, V head width  G gates: i, f, z, o  J gates times units  M merged batch and time
"""

from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from exlstm.ops.common import detached_contiguous, rows_for_kernels, upcast, without_autocast
from exlstm.ops.derivatives import once_differentiable
from exlstm.ops.slstm.reference import SLSTMState
from exlstm.ops.slstm.triton.cell import StateGradients, States
from exlstm.ops.slstm.triton.scan import backward_kernel, forward_kernel
from exlstm.ops.slstm.triton.step import backward_step, forward_step
from exlstm.runtime.gpu.operator import block_size, operator

MULTIPROCESSORS = 128  # of a large GPU, about


class Plan(NamedTuple):
    """Grid of a pair of kernels, and what each is compiled for."""

    grid: tuple[int, int]
    forward: dict[str, Any]
    backward: dict[str, Any]


def scan_plan(B: int, H: int, V: int, dtype: torch.dtype, mixing: bool) -> Plan:
    """The plan of the scan. A unit takes the registers of a step's arithmetic for all rows: hence the warps."""
    exact, units = dtype == torch.float32, block_size(V, 128 if mixing else 64)
    parts = H * triton.cdiv(V, units)
    # 8 rows take a step in less time than 16, as long as every program has a multiprocessor of its own
    rows = 8 if parts * triton.cdiv(B, 8) <= MULTIPROCESSORS else 16
    warps = max(4, units // 4 if exact else min(8, units // 8))
    both = {"WIDE": units, "ROWS": rows, "num_warps": warps}
    # the products of float32 have no matrix units: they take the registers that fetching ahead would need
    forward = {"STAGES": 1 if exact and mixing else 2}
    return Plan((parts, triton.cdiv(B, rows)), both | forward, both | {"STAGES": 2})


def steps_plan(B: int, H: int, V: int, dtype: torch.dtype) -> Plan:
    """The plan of the steps. Few units per program: a step is as fast as all programs together read R from memory."""
    units, rows, depth = 16, block_size(B, 32), block_size(V, 32 if dtype == torch.float32 else 128)
    both = {"UNITS": units, "ROWS": rows, "DEPTH": depth, "STAGES": 3, "num_warps": 4}
    return Plan((H * triton.cdiv(V, units), triton.cdiv(B, rows)), both, both)


def launch(kernel: Any, steps: range, x_BTHGV: Tensor, r_HKGV: Tensor, *others: Any, exp_forget: bool, resets: bool
           ) -> None:  # fmt: skip
    """Launches one of the four kernels: a scan once, a step for every one of `steps`."""
    (B, T, H, _, V), dtype, mixing = x_BTHGV.shape, r_HKGV.dtype, r_HKGV.shape[1] > 0
    options = {
        "V": V, "RESETS": resets, "EXP_FORGET": exp_forget, "PRECISION": "ieee" if dtype == torch.float32 else "tf32",
    }  # fmt: skip
    if kernel in (forward_kernel, backward_kernel):
        plan = scan_plan(B, H, V, dtype, mixing)
        options |= (plan.forward if kernel is forward_kernel else plan.backward) | {"MIXING": mixing}
        kernel[plan.grid](x_BTHGV, r_HKGV, *others, B, T, H, **options)
        return
    plan = steps_plan(B, H, V, dtype)
    options |= plan.forward if kernel is forward_step else plan.backward
    for t in steps:
        kernel[plan.grid](x_BTHGV, r_HKGV, *others, t, B, T, H, **options)


def forward(x_BTHGV: Tensor, r_HKGV: Tensor, first: Tensor, reset_BT: Tensor | None, lengths_B: Tensor,
            exp_forget: bool, resident: bool) -> Tensor:  # fmt: skip
    """h, c, n, m of every step, [4, B, T, H, V], from those before the first, [4, B, H, V]."""
    B, T, H, _, V = x_BTHGV.shape
    planes, reset = x_BTHGV.new_empty(4, B, T, H, V), lengths_B if reset_BT is None else reset_BT
    launch(
        forward_kernel if resident else forward_step, range(T), x_BTHGV, r_HKGV, States(first, planes), reset,
        lengths_B, exp_forget=exp_forget, resets=reset_BT is not None,
    )  # fmt: skip
    return planes


def backward(raw_BTHGV: Tensor, r_HKGV: Tensor, first: Tensor, reset_BT: Tensor | None, lengths_B: Tensor,
             planes: Tensor, dh_BTHV: Tensor, dh1_BHV: Tensor, dc1_BHV: Tensor, dn1_BHV: Tensor, exp_forget: bool,
             resident: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """The gradients of x and of h, c, n before the first step. raw: the gates before their activations."""
    T, dx_BTHGV, dh0_BHV = raw_BTHGV.shape[1], torch.empty_like(raw_BTHGV), torch.empty_like(dh1_BHV)
    # kernels change these in place
    dc_BHV, dn_BHV = (x.clone(memory_format=torch.contiguous_format) for x in (dc1_BHV, dn1_BHV))
    launch(
        backward_kernel if resident else backward_step, range(T - 1, -2, -1), raw_BTHGV, r_HKGV, States(first, planes),
        lengths_B if reset_BT is None else reset_BT, lengths_B, dh_BTHV, dx_BTHGV,
        StateGradients(dh1_BHV, dh0_BHV, dc_BHV, dn_BHV), exp_forget=exp_forget, resets=reset_BT is not None,
    )  # fmt: skip
    return dx_BTHGV, dh0_BHV, dc_BHV, dn_BHV


def fake_forward(x_BTHGV: Tensor, *_: Any) -> Tensor:
    """The shape of `forward`."""
    B, T, H, _, V = x_BTHGV.shape  # type: ignore[assignment]
    return x_BTHGV.new_empty(4, B, T, H, V)


def fake_backward(raw_BTHGV: Tensor, r_HKGV: Tensor, first: Tensor, *_: Any) -> tuple[Tensor, ...]:
    """The shapes of `backward`."""
    return torch.empty_like(raw_BTHGV), *(torch.empty_like(first[0]) for _ in range(3))


run_forward = operator(
    "slstm_forward(Tensor x, Tensor r, Tensor first, Tensor? reset, Tensor lengths, bool exp_forget, bool resident) "
    "-> Tensor", forward, fake_forward,
)  # fmt: skip
run_backward = operator(
    "slstm_backward(Tensor raw, Tensor r, Tensor first, Tensor? reset, Tensor lengths, Tensor planes, Tensor dh, "
    "Tensor dh1, Tensor dc1, Tensor dn1, bool exp_forget, bool resident) -> (Tensor, Tensor, Tensor, Tensor)",
    backward, fake_backward,
)  # fmt: skip


class Scan(torch.autograd.Function):
    """(x, R, h, c, n, m) -> (h of every step, last h, c, n, m); R in any dtype, possibly of width 0: no mixing."""

    @staticmethod
    def forward(ctx: Any, x_BTHGV: Tensor, r_HKGV: Tensor, h_BHV: Tensor, c_BHV: Tensor, n_BHV: Tensor, m_BHV: Tensor,
                reset_BT: Tensor | None, lengths_B: Tensor, exp_forget: bool, resident: bool,
                ) -> tuple[Tensor, ...]:  # fmt: skip
        B, _, H, _, V = x_BTHGV.shape
        x_BTHGV, r_HKGV = detached_contiguous(x_BTHGV, r_HKGV)
        first = torch.stack([h_BHV, c_BHV, n_BHV, m_BHV])
        planes = run_forward(x_BTHGV, r_HKGV, first, reset_BT, lengths_B, exp_forget, resident)
        ctx.save_for_backward(x_BTHGV, r_HKGV, first, reset_BT, lengths_B, planes)
        ctx.options = exp_forget, resident
        end_B1HV = (lengths_B - 1).clamp(min=0)[:, None, None, None].expand(B, 1, H, V)
        h_BHV = torch.where(lengths_B[:, None, None] > 0, planes[0].gather(1, end_B1HV)[:, 0], first[0])
        c_BHV, n_BHV, m_BHV = (planes[part, :, -1].clone() for part in (1, 2, 3))
        ctx.mark_non_differentiable(m_BHV)
        return planes[0], h_BHV, c_BHV, n_BHV, m_BHV

    @staticmethod
    @once_differentiable("slstm", "triton")
    def backward(ctx: Any, dh_BTHV: Tensor, *dlast: Tensor) -> tuple[Tensor | None, ...]:
        x_BTHGV, r_HKGV, first, reset_BT, lengths_B, planes = ctx.saved_tensors
        B, T, H, _, V = x_BTHGV.shape
        dh_BTHV, dh1_BHV = detached_contiguous(dh_BTHV, dlast[0])
        past_HMV = torch.cat([first[0][:, None], planes[0][:, :-1]], dim=1)
        if reset_BT is not None:
            past_HMV = past_HMV.masked_fill(reset_BT[:, :, None, None], 0)
        past_HMV, raw_BTHGV = past_HMV.permute(2, 0, 1, 3).reshape(H, B * T, V), x_BTHGV
        mixing = r_HKGV.shape[1] > 0
        with without_autocast(dh_BTHV):
            if mixing:
                mixed_HMJ = past_HMV.to(r_HKGV.dtype).float() @ r_HKGV.float().flatten(2)
                raw_BTHGV = (x_BTHGV + mixed_HMJ.view(H, B, T, 4, V).permute(1, 2, 0, 3, 4)).contiguous()
            dx_BTHGV, *dfirst = run_backward(
                raw_BTHGV, r_HKGV, first, reset_BT, lengths_B, planes, dh_BTHV, dh1_BHV, *dlast[1:3], *ctx.options
            )
            dr_HKGV = torch.zeros_like(r_HKGV)
            if mixing and ctx.needs_input_grad[1]:
                dx_HMJ = dx_BTHGV.permute(2, 0, 1, 3, 4).reshape(H, B * T, 4 * V)
                dr_HKGV = (past_HMV.mT @ dx_HMJ).view_as(r_HKGV).to(r_HKGV.dtype)
        return dx_BTHGV, dr_HKGV, *dfirst, None, None, None, None, None


def slstm_triton(
    x_BTHGV: Tensor, r_HKGV: Tensor | None, state: SLSTMState, /,
    *, reset_BT: Tensor | None, lengths_B: Tensor | None, exp_forget: bool, resident: bool = True,
) -> tuple[Tensor, SLSTMState]:  # fmt: skip
    """The same numbers as `slstm_recurrent`, tanh cell input. resident: as a scan, otherwise in steps."""
    _, _, H, _, V = x_BTHGV.shape
    resident = resident or r_HKGV is None
    r_HKGV = x_BTHGV.new_empty(H, 0, 4, V) if r_HKGV is None else r_HKGV
    rows = rows_for_kernels(x_BTHGV, reset_BT, lengths_B)
    h_BTHV, *last = Scan.apply(  # type: ignore[no-untyped-call]
        upcast(x_BTHGV), r_HKGV, *state, *rows, exp_forget, resident
    )
    return h_BTHV.to(x_BTHGV.dtype), SLSTMState(*last)
