"""The selective scan on a GPU as operators of torch, with its backward. A lone step is a scan of one step.

B batch  T time  E channels  Z states of a channel  Q programs of a row  N chunks of L steps
"""

from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from exlstm.ops.derivatives import once_differentiable
from exlstm.ops.selective_scan.reference import SelectiveScanInputs
from exlstm.ops.selective_scan.triton.kernels import (
    Flags,
    Gradients,
    Inputs,
    States,
    Steps,
    backward_kernel,
    forward_kernel,
)
from exlstm.runtime.gpu.operator import operator
from exlstm.runtime.tracing import has_gradients

TILE_NUMEL = 512  # states of a program, about
THREAD_STATES = 8  # of them for a thread
STAGES = 3  # steps whose inputs are on their way


class Plan(NamedTuple):
    """How the work is cut: channels of a program, programs of a row, states with padding, steps of a chunk, warps."""

    block: int
    parts: int
    wide: int
    steps: int
    warps: int

    def options(self, Z: int, reset_BT: Tensor | None, lengths_B: Tensor | None, softplus: bool) -> dict[str, Any]:
        """What the kernels are compiled for."""
        return {
            "Z": Z,
            "BLOCK": self.block,
            "WIDE": self.wide,
            "STEPS": self.steps,
            "SOFTPLUS": softplus,
            "RESETS": reset_BT is not None,
            "RAGGED": lengths_B is not None,
            "STAGES": STAGES,
            "num_warps": self.warps,
        }


def plan_of(E: int, Z: int) -> Plan:
    """The plan for these sizes. Chunks of as many steps as there are states: borders are then as large as x."""
    wide = max(2, int(triton.next_power_of_2(Z)))
    block = max(8, min(32, TILE_NUMEL // wide, int(triton.next_power_of_2(E))))
    warps = max(1, min(8, block * wide // (32 * THREAD_STATES)))
    return Plan(block, triton.cdiv(E, block), wide, max(16, wide), warps)


def inputs_of(x_BTE: Tensor, dt_BTE: Tensor, a_EZ: Tensor, b_BTZ: Tensor, c_BTZ: Tensor, skip_E: Tensor) -> Inputs:
    """The tensors with their strides."""
    x, dt, b, c = (Steps(t, *t.stride()) for t in (x_BTE, dt_BTE, b_BTZ, c_BTZ))
    return Inputs(x, dt, b, c, a_EZ.contiguous(), skip_E.contiguous())


def flags_of(x: Tensor, reset_BT: Tensor | None, lengths_B: Tensor | None) -> Flags:
    """Resets and lengths; x, which is not read, where there are none."""
    return Flags(x if reset_BT is None else reset_BT.contiguous(), x if lengths_B is None else lengths_B.contiguous())


def forward(
    x_BTE: Tensor,
    dt_BTE: Tensor,
    a_EZ: Tensor,
    b_BTZ: Tensor,
    c_BTZ: Tensor,
    skip_E: Tensor,
    h_BEZ: Tensor,
    reset_BT: Tensor | None,
    lengths_B: Tensor | None,
    softplus: bool,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """y, the states after the last step and, to save, those before every chunk."""
    (B, T, E), Z = x_BTE.shape, a_EZ.shape[1]
    inputs, plan = (x_BTE, dt_BTE, a_EZ, b_BTZ, c_BTZ, skip_E), plan_of(E, Z)
    y_BTE, after_BEZ, borders_BNEZ = fake_forward(*inputs, h_BEZ, reset_BT, lengths_B, softplus, save)
    if B * E:
        forward_kernel[B * plan.parts,](
            inputs_of(*inputs),
            flags_of(h_BEZ, reset_BT, lengths_B),
            States(h_BEZ.contiguous(), after_BEZ, borders_BNEZ),
            y_BTE,
            T,
            E,
            -(-T // plan.steps),
            SAVE=save,
            **plan.options(Z, reset_BT, lengths_B, softplus),
        )
    return y_BTE, after_BEZ, borders_BNEZ


def backward(
    x_BTE: Tensor,
    dt_BTE: Tensor,
    a_EZ: Tensor,
    b_BTZ: Tensor,
    c_BTZ: Tensor,
    skip_E: Tensor,
    reset_BT: Tensor | None,
    lengths_B: Tensor | None,
    borders_BNEZ: Tensor,
    dy_BTE: Tensor,
    dafter_BEZ: Tensor,
    softplus: bool,
) -> tuple[Tensor, ...]:
    """The gradients of x, dt, of a, b, c and skip in shares to be summed, and of the first states."""
    (B, T, E), Z = x_BTE.shape, a_EZ.shape[1]
    made, plan = fake_backward(x_BTE, dt_BTE, a_EZ, b_BTZ), plan_of(E, Z)
    dx_BTE, ddt_BTE, da_BEZ, db_BQTZ, dc_BQTZ, dskip_BE, dh_BEZ = made
    slots_BLEZ, dlast_BEZ = dafter_BEZ.new_empty(B, plan.steps, E, Z), dafter_BEZ.contiguous()
    if B * E:
        backward_kernel[B * plan.parts,](
            inputs_of(x_BTE, dt_BTE, a_EZ, b_BTZ, c_BTZ, skip_E),
            flags_of(dlast_BEZ, reset_BT, lengths_B),
            States(dlast_BEZ, dlast_BEZ, borders_BNEZ),
            dy_BTE.contiguous(),
            Gradients(dlast_BEZ, dh_BEZ, dx_BTE, ddt_BTE, da_BEZ, dskip_BE, db_BQTZ, dc_BQTZ, slots_BLEZ),
            T,
            E,
            borders_BNEZ.shape[1],
            **plan.options(Z, reset_BT, lengths_B, softplus),
        )
    return made


def fake_forward(
    x_BTE: Tensor,
    dt_BTE: Tensor,
    a_EZ: Tensor,
    b_BTZ: Tensor,
    c_BTZ: Tensor,
    skip_E: Tensor,
    h_BEZ: Tensor,
    reset_BT: Any,
    lengths_B: Any,
    softplus: bool,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The shapes of `forward`."""
    (B, T, E), Z = x_BTE.shape, a_EZ.shape[1]
    N = -(-T // plan_of(E, Z).steps) if save else 0
    return x_BTE.new_empty(B, T, E), h_BEZ.new_empty(B, E, Z), h_BEZ.new_empty(B, N, E, Z)


def fake_backward(
    x_BTE: Tensor, dt_BTE: Tensor, a_EZ: Tensor, b_BTZ: Tensor, *_: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The shapes of `backward`."""
    (B, T, E), Z = x_BTE.shape, a_EZ.shape[1]
    states, shares = (B, E, Z), (B, plan_of(E, Z).parts, T, Z)
    da_BEZ, db_BQTZ, dc_BQTZ, dskip_BE, dh_BEZ = (
        x_BTE.new_empty(shape, dtype=torch.float32) for shape in (states, shares, shares, (B, E), states)
    )
    return x_BTE.new_empty(B, T, E), dt_BTE.new_empty(B, T, E), da_BEZ, db_BQTZ, dc_BQTZ, dskip_BE, dh_BEZ


run_forward = operator(
    "selective_scan_forward(Tensor x, Tensor dt, Tensor a, Tensor b, Tensor c, Tensor skip, Tensor first, "
    "Tensor? reset, Tensor? lengths, bool softplus, bool save) -> (Tensor, Tensor, Tensor)",
    forward,
    fake_forward,
)
run_backward = operator(
    "selective_scan_backward(Tensor x, Tensor dt, Tensor a, Tensor b, Tensor c, Tensor skip, Tensor? reset, "
    "Tensor? lengths, Tensor borders, Tensor dy, Tensor dlast, bool softplus) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    backward,
    fake_backward,
)


class SelectiveScan(torch.autograd.Function):
    """(x, dt, a, b, c, skip, h before) -> (y in x's dtype, h after in float32)."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, Tensor]:
        y_BTE, after_BEZ, borders_BNEZ = run_forward(*arguments, True)
        *inputs, _, reset_BT, lengths_B, ctx.softplus = arguments
        ctx.save_for_backward(*inputs, reset_BT, lengths_B, borders_BNEZ)
        return y_BTE, after_BEZ

    @staticmethod
    @once_differentiable("selective_scan", "triton")
    def backward(ctx: Any, dy_BTE: Tensor, dafter_BEZ: Tensor) -> tuple[Tensor | None, ...]:
        found = run_backward(*ctx.saved_tensors, dy_BTE, dafter_BEZ, ctx.softplus)
        dx_BTE, ddt_BTE, da_BEZ, db_BQTZ, dc_BQTZ, dskip_BE, dh_BEZ = found
        sums = da_BEZ.sum(0), db_BQTZ.sum(1), dc_BQTZ.sum(1), dskip_BE.sum(0)
        return dx_BTE, ddt_BTE, *sums, dh_BEZ, None, None, None


def selective_scan_triton(
    given: SelectiveScanInputs, reset_BT: Tensor | None, lengths_B: Tensor | None, softplus: bool
) -> tuple[Tensor, Tensor]:
    """The numbers of `selective_scan_recurrent`, in float32."""
    arguments = *given, reset_BT, lengths_B, softplus
    if has_gradients(given):
        y_BTE, after_BEZ = SelectiveScan.apply(*arguments)  # type: ignore[no-untyped-call]
    else:
        y_BTE, after_BEZ, _ = run_forward(*arguments, False)
    return y_BTE, after_BEZ
