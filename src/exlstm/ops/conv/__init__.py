"""Causal depthwise convolution over time: y_t = b + sum_j w_j x_{t-W+1+j}, j = 0 .. W-1, one filter per channel.

`reference` is the definition in plain torch, `numba` one pass over the inputs.

B batch  T time  S past (W - 1 steps)  D channels  W window
"""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from exlstm.ops.arguments import check_like, checked_rows, checked_state
from exlstm.ops.common import upcast
from exlstm.ops.conv.reference import ConvState, causal_conv_torch
from exlstm.runtime.availability import cpu_kernel_obstacle, widened_kernel_obstacle
from exlstm.runtime.backend import choose
from exlstm.runtime.tracing import has_gradients

__all__ = ["ConvActivation", "ConvState", "causal_conv", "causal_conv_torch"]
ConvActivation = Literal["none", "silu"]


def causal_conv(
    x_BTD: Tensor, w_DW: Tensor, b_D: Tensor | None, state: ConvState, /,
    *, reset_BT: Tensor | None = None, lengths_B: Tensor | None = None, activation: ConvActivation = "none",
    backend: str = "auto",
) -> tuple[Tensor, ConvState]:  # fmt: skip
    """Any T >= 1, also one step; returns y [B, T, D] and the inputs to go on with, float32 or wider. b: None for none.

    reset_BT (bool): inputs before that step count as zero from there on. lengths_B (int): steps at or beyond a row's
    length leave its state alone and give y = 0, whatever is there. activation: "silu" gives silu(y).
    backend: "auto", "numba" (float32 on a CPU, with a hand-written backward; one step without gradients also up to
    float32) or "torch".
    Raises ValueError for shapes that do not fit and for a backend that cannot run.
    """
    (B, T, D), W = x_BTD.shape, w_DW.shape[-1]
    check_like("w", w_DW, (D, W), x_BTD)
    if b_D is not None:
        check_like("b", b_D, (D,), x_BTD)
    state = checked_state(state, ConvState, [(B, W - 1, D)], x_BTD)
    reset_BT, lengths_B = checked_rows(x_BTD, reset_BT, lengths_B)
    if activation not in ("none", "silu"):
        raise ValueError(f"activation is {activation!r}; it must be 'none' or 'silu'.")
    tensors = x_BTD, w_DW, b_D, state.past_BSD
    obstacle = cpu_kernel_obstacle(tensors, float32_only=True)
    if obstacle is not None and T == 1 and not has_gradients(tensors):
        obstacle = widened_kernel_obstacle(tensors)
    if choose("conv", backend, [("numba", obstacle), ("torch", None)], tensors) == "numba":
        from exlstm.ops.conv.numba import causal_conv_numba

        # of narrower inputs silu follows the rounding, as in torch
        fused = activation == "silu" and x_BTD.dtype is torch.float32
        b_D = None if b_D is None else upcast(b_D)
        y_BTD, state = causal_conv_numba(
            upcast(x_BTD), upcast(w_DW), b_D, state, reset_BT=reset_BT, lengths_B=lengths_B, silu=fused
        )
        y_BTD = y_BTD.to(x_BTD.dtype)
        return functional.silu(y_BTD) if activation == "silu" and not fused else y_BTD, state
    y_BTD, state = causal_conv_torch(x_BTD, w_DW, b_D, state, reset_BT=reset_BT, lengths_B=lengths_B)
    return functional.silu(y_BTD) if activation == "silu" else y_BTD, state
