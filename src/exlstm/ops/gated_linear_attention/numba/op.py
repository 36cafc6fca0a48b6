"""Linear attention with a decay per channel on a CPU, as a function of torch's tensors with a backward.

Saved for it are the inputs, and S before every span of steps: memory is linear in T.

B batch  T time  H heads  N spans  K key width  V value width  I either of them, where the decay is
"""

from typing import Any

import torch
from torch import Tensor

from exlstm.ops.common import upcast
from exlstm.ops.derivatives import once_differentiable
from exlstm.ops.gated_linear_attention.numba.backward import Gradients, backward_items
from exlstm.ops.gated_linear_attention.numba.forward import SPAN, forward_items
from exlstm.ops.gated_linear_attention.numba.planes import Inputs
from exlstm.ops.gated_linear_attention.numba.tiles import VECTORS, WIDTH
from exlstm.ops.gated_linear_attention.reference import Axis
from exlstm.runtime.cpu.launch import launch, microseconds
from exlstm.runtime.tracing import has_gradients

Saved = tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]


def tiles_of(V: int) -> int:
    """Tiles of the values, forward."""
    vectors = -(-V // WIDTH)
    return -(-vectors // next(count for count in VECTORS if vectors % count == 0))


def inputs_of(saved: Saved, by_value: bool) -> Inputs:
    """The inputs of both kernels: contiguous, but for g, whose steps may lie anywhere."""
    q_BTHK, k_BTHK, v_BTHV, g_BTHI, bonus_HK, reset_BT, lengths_B = saved
    (B, T, H, K), V, I = q_BTHK.shape, v_BTHV.shape[3], g_BTHI.shape[3]  # noqa: E741
    g_BTHI = g_BTHI if g_BTHI.stride(3) == 1 else g_BTHI.contiguous()
    q_BTHK, k_BTHK, v_BTHV = (x.contiguous() for x in (q_BTHK, k_BTHK, v_BTHV))
    bonus_HK, reset_BT, lengths_B = (None if x is None else x.contiguous() for x in (bonus_HK, reset_BT, lengths_B))
    row, step, head = (4 * g_BTHI.stride(axis) for axis in range(3))
    return Inputs(
        B, T, H, K, V, I, q_BTHK, k_BTHK, v_BTHV, g_BTHI, row, step, head, bonus_HK, reset_BT, lengths_B, by_value
    )


def cost_of(x: Inputs, flops: int) -> float:
    """The cost of so many operations for every number of S and step, and of reading and writing S."""
    numbers = x.B * x.H * x.K * x.V
    return microseconds(bytes=8 * numbers, flops=flops * numbers * x.T)


def forward(saved: Saved, s_BHKV: Tensor, by_value: bool, needs_backward: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    """o, S after the last step, and S before every span if a backward will follow."""
    x = inputs_of(saved, by_value)
    o_BTHV, after_BHKV = torch.empty_like(x.v_BTHV), s_BHKV.new_empty(s_BHKV.shape)
    N = -(-x.T // SPAN) if needs_backward else 0
    borders_NBHKV = s_BHKV.new_empty(N, *s_BHKV.shape) if N else None
    launch(
        forward_items,
        x.B * x.H * tiles_of(x.V),
        x,
        s_BHKV.contiguous(),
        o_BTHV,
        after_BHKV,
        borders_NBHKV,
        N,
        o_BTHV.dtype is torch.bfloat16,
        cost=cost_of(x, 6),
    )
    return o_BTHV, after_BHKV, borders_NBHKV


class StepLoop(torch.autograd.Function):
    """(S, by_value, those of a `Saved`) -> (o, S), all float32."""

    @staticmethod
    def forward(ctx: Any, s_BHKV: Tensor, by_value: bool, *saved: Any) -> tuple[Tensor, Tensor]:
        o_BTHV, after_BHKV, borders_NBHKV = forward(saved, s_BHKV, by_value, True)
        ctx.save_for_backward(*saved, borders_NBHKV)
        ctx.by_value = by_value
        return o_BTHV, after_BHKV

    @staticmethod
    @once_differentiable("gated_linear_attention", "numba")
    def backward(ctx: Any, do_BTHV: Tensor, dafter_BHKV: Tensor) -> tuple[Tensor | None, ...]:
        *saved, borders_NBHKV = ctx.saved_tensors
        x = inputs_of(tuple(saved), ctx.by_value)
        dq, dk, dv, dg = (do_BTHV.new_empty(each.shape) for each in (x.q_BTHK, x.k_BTHK, x.v_BTHV, x.g_BTHI))
        dbonus_BHK = None if x.bonus_HK is None else do_BTHV.new_empty(x.B, x.H, x.K)
        ds_BHKV = do_BTHV.new_empty(dafter_BHKV.shape)
        launch(
            backward_items,
            x.B * x.H,
            x,
            borders_NBHKV,
            len(borders_NBHKV),
            do_BTHV.contiguous(),
            dafter_BHKV.contiguous(),
            ds_BHKV,
            Gradients(dq, dk, dv, dg, dbonus_BHK),
            cost=cost_of(x, 20),
        )
        dbonus_HK = None if dbonus_BHK is None else dbonus_BHK.sum(0)
        return ds_BHKV, None, dq, dk, dv, dg, dbonus_HK, None, None


def gated_linear_attention_numba(
    q_BTHK: Tensor,
    k_BTHK: Tensor,
    v_BTHV: Tensor,
    g_BTHI: Tensor,
    s_BHKV: Tensor,
    bonus_HK: Tensor | None,
    axis: Axis,
    reset_BT: Tensor | None,
    lengths_B: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The numbers of `gated_linear_attention_recurrent`, in float32; o is returned in q's dtype."""
    bonus_HK = None if bonus_HK is None else upcast(bonus_HK)
    floats = q_BTHK, k_BTHK, v_BTHV, upcast(g_BTHI), s_BHKV, bonus_HK
    needs_backward = has_gradients(floats)
    if needs_backward or not all(x.dtype is torch.bfloat16 for x in floats[:3]):
        q_BTHK, k_BTHK, v_BTHV = map(upcast, (q_BTHK, k_BTHK, v_BTHV))
    saved = q_BTHK, k_BTHK, v_BTHV, floats[3], bonus_HK, reset_BT, lengths_B
    if needs_backward:
        o_BTHV, after_BHKV = StepLoop.apply(s_BHKV, axis == "value", *saved)  # type: ignore[no-untyped-call]
    else:
        o_BTHV, after_BHKV, _ = forward(saved, s_BHKV, axis == "value", False)
    return o_BTHV.to(floats[0].dtype), after_BHKV
