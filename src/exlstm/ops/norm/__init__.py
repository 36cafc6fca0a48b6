"""Layer norm, RMS norm and head norm: statistics float32 or wider, whatever the input is.

D width  H heads  V head width; leading axes are free
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import Parameter, functional

from exlstm.ops.common import upcast
from exlstm.runtime.availability import no_numba
from exlstm.runtime.internals import is_compiling
from exlstm.runtime.tracing import is_traced_or_autocast

Norm = Literal["layer", "rms"]
SMALL_NUMEL = 1 << 14  # for larger inputs torch's several passes are as fast as one kernel


def layer_norm(x: Tensor, gain_D: Tensor, eps: float, bias_D: Tensor | None = None) -> Tensor:
    """(x - mean) / sqrt(variance + eps) * gain + bias over the last axis; None: no bias."""
    if fits_norm_kernel(x, gain_D, bias_D):
        from exlstm.ops.norm.numba import norm_numba

        return norm_numba(x, gain_D, bias_D, eps, False)
    b_D = None if bias_D is None else upcast(bias_D)
    return functional.layer_norm(upcast(x), gain_D.shape, upcast(gain_D), b_D, eps).to(x.dtype)


def rms_norm(x: Tensor, gain_D: Tensor, eps: float, bias_D: Tensor | None = None) -> Tensor:
    """x / sqrt(mean square + eps) * gain + bias over the last axis (Zhang & Sennrich 2019); None: no bias."""
    if fits_norm_kernel(x, gain_D, bias_D):
        from exlstm.ops.norm.numba import norm_numba

        return norm_numba(x, gain_D, bias_D, eps, True)
    y = functional.rms_norm(upcast(x), gain_D.shape, upcast(gain_D), eps=eps)
    return (y if bias_D is None else y + upcast(bias_D)).to(x.dtype)


def is_small_inference(tensors: Sequence[Tensor | None]) -> bool:
    """True for small plain tensors on a CPU without gradients, x first: the norms of a decoding step.

    One kernel does such a norm. The overhead of torch's several operations would be ten times its work.
    """
    x = tensors[0]
    assert x is not None
    # first of all, for a comparison of sizes would fix them in a graph
    if (
        is_compiling()
        or not 0 < x.numel() <= SMALL_NUMEL
        or x.dtype not in (torch.float32, torch.bfloat16)
        or is_traced_or_autocast()
        or no_numba()
    ):
        return False
    gradient = torch.is_grad_enabled()
    return all(
        y is None
        or (
            (type(y) is Tensor or type(y) is Parameter)
            and y.is_cpu
            and y.dtype is x.dtype
            and not (gradient and y.requires_grad)
        )
        for y in tensors
    )


def fits_norm_kernel(x: Tensor, gain_D: Tensor, bias_D: Tensor | None = None) -> bool:
    """Whether the kernel takes a norm of x over the width."""
    return (
        is_small_inference((x, gain_D, bias_D))
        and x.shape[-1:] == gain_D.shape
        and x.is_contiguous()
        and are_contiguous(gain_D, bias_D)
    )


def are_contiguous(gain: Tensor, bias: Tensor | None) -> bool:
    """Whether a kernel can read a gain and a bias of the same shape, or none, as contiguous numbers."""
    return gain.is_contiguous() and (bias is None or (bias.shape == gain.shape and bias.is_contiguous()))


def head_norm(
    x_BTHV: Tensor, gain_HV: Tensor, eps: float, bias_HV: Tensor | None = None, *, norm: Norm = "layer"
) -> Tensor:
    """Layer norm or RMS norm of every head on its own, one gain per channel (of layer norms: a group norm).

    bias: one per channel too, added after the gain, or None.
    """
    same = x_BTHV.shape[-2:] == gain_HV.shape
    if x_BTHV.dtype is torch.float32:
        # a float32 cell of a narrower model, whose gains the kernel reads in the dtype of x
        gain_HV, bias_HV = upcast(gain_HV), None if bias_HV is None else upcast(bias_HV)
    if (
        same
        and is_small_inference((x_BTHV, gain_HV, bias_HV))
        and x_BTHV.is_contiguous()
        and are_contiguous(gain_HV, bias_HV)
    ):
        from exlstm.ops.norm.numba import head_norm_numba

        return head_norm_numba(x_BTHV, gain_HV, bias_HV, eps, norm == "rms")
    normalize = functional.rms_norm if norm == "rms" else functional.layer_norm
    h_BTHV = normalize(upcast(x_BTHV), gain_HV.shape[1:], eps=eps) * upcast(gain_HV)
    return (h_BTHV if bias_HV is None else h_BTHV + upcast(bias_HV)).to(x_BTHV.dtype)
