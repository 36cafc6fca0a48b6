"""The input projection of the sLSTM: W x + b of the gates i, f of one input, and of z, o of another or the same.

B batch  T time  M rows and steps  D width of an input  H heads  V head width  G gates: i, f, z, o  N inputs of a head
J gates of a head (G V)
"""

from typing import NamedTuple

import torch
from torch import Tensor

from exlstm.ops.arguments import described, misfit
from exlstm.ops.common import wide_dtype
from exlstm.ops.layer import Layer
from exlstm.ops.linear import linear
from exlstm.ops.linear.headwise import headwise
from exlstm.runtime import capture
from exlstm.runtime.availability import cpu_kernel_obstacle
from exlstm.runtime.internals import is_compiling
from exlstm.runtime.tracing import tracer

LEAST_STEPS = 16  # rows and steps that are worth packing W for


class Projection(NamedTuple):
    """W x + b for the gates i, f, z, o of all heads.

    if_BTD, zo_BTD: inputs of i, f and of z, o; None is the same one. N is D where each head reads the whole input, or
    D / H where it reads its part.
    """

    if_BTD: Tensor
    zo_BTD: Tensor | None
    w_HGVN: Tensor
    b_HGV: Tensor | None


def check_projection(x: Projection) -> None:
    """ValueError for tensors that do not fit each other."""
    first, w_HGVN = x.if_BTD, x.w_HGVN
    if first.dim() != 3 or first.shape[1] < 1:
        raise ValueError(f"the input has shape {tuple(first.shape)}; it must be [B, T >= 1, D].")
    if x.zo_BTD is not None and (x.zo_BTD.shape, x.zo_BTD.device) != (first.shape, first.device):
        raise misfit("the input of z and o", x.zo_BTD, first.dtype, tuple(first.shape), first.device)
    D = first.shape[2]
    if w_HGVN.dim() != 4 or w_HGVN.shape[1] != 4 or D not in (w_HGVN.shape[3], w_HGVN.shape[3] * w_HGVN.shape[0]):
        raise ValueError(
            f"w is {described(w_HGVN)}; for inputs of width {D} it must be [H, 4, V, {D}] or [H, 4, V, {D} / H]."
        )
    if x.b_HGV is not None and x.b_HGV.shape != w_HGVN.shape[:3]:
        raise misfit("b", x.b_HGV, w_HGVN.dtype, tuple(w_HGVN.shape[:3]), w_HGVN.device)


def is_in_scan(x: Projection, backend: str) -> bool:
    """Whether the Numba scan projects its input itself: float32 on a CPU, of more than a few steps."""
    # first of all, for a comparison of sizes would fix them in a graph
    if is_compiling():
        return False
    B, T, _ = x.if_BTD.shape
    return (
        backend in ("auto", "numba")
        and B * T >= LEAST_STEPS
        and tracer(x) is None
        and cpu_kernel_obstacle(x, float32_only=True) is None
        and not torch.is_autocast_enabled("cpu")
        and capture.active() is None
    )


def project_gates(x: Projection) -> Tensor:
    """Pre-activations [B, T, H, G, V], float32 or wider."""
    w_HGVN = x.w_HGVN
    if x.zo_BTD is None:
        raw_BTHGV = projected(x.if_BTD, w_HGVN).contiguous()
    else:
        raw_BTHGV = torch.cat([projected(x.if_BTD, w_HGVN[:, :2]), projected(x.zo_BTD, w_HGVN[:, 2:])], dim=3)
    raw_BTHGV = raw_BTHGV.to(wide_dtype(raw_BTHGV.dtype))
    return raw_BTHGV if x.b_HGV is None else raw_BTHGV + x.b_HGV


def projected(x_BTD: Tensor, w_HGVN: Tensor) -> Tensor:
    """W x for some gates, in x's dtype."""
    (B, T, D), (H, G, V, N) = x_BTD.shape, w_HGVN.shape
    if N == D and H > 1:
        return linear(x_BTD, w_HGVN.flatten(0, 2)).view(B, T, H, G, V)
    x_HMN = x_BTD.reshape(B * T, H, N).transpose(0, 1)
    return headwise(x_HMN, w_HGVN.flatten(1, 2)).transpose(0, 1).reshape(B, T, H, G, V)


def as_heads(x_BTD: Tensor, layer: Layer) -> tuple[Projection, Tensor]:
    """The projection of the input of a layer, and R [H, K, G, V], as the ops of heads have them: views of weights."""
    H, K = layer.heads, layer.r_JK.shape[1]
    w_HGVD = layer.w_JD.view(4, H, K, -1).transpose(0, 1)
    r_HKGV = layer.r_JK.view(4, H, K, K).permute(1, 3, 0, 2)
    b_J = layer.b_J if layer.b_J is None or layer.more_b_J is None else layer.b_J + layer.more_b_J
    b_HGV = None if b_J is None else b_J.view(4, H, K).transpose(0, 1)
    return Projection(x_BTD, None, w_HGVD, b_HGV), r_HKGV
