"""Normalisations: statistics float32 or wider, whatever the input is.

D width  H heads  V head width; leading axes are free
"""

import torch
from torch import Tensor
from torch.nn import functional

from exlstm.ops.shared import has_numba, watched, wide

FEW = 1 << 14  # numbers: for more, torch's own passes are as fast as one


def layer_norm(x: Tensor, gain_D: Tensor, eps: float) -> Tensor:
    """(x - mean) / sqrt(variance + eps) * gain over the last axis, without bias."""
    if few(x, gain_D):
        from exlstm.ops.numba_norm import norm_numba

        return norm_numba(x, gain_D, eps, False)
    return functional.layer_norm(wide(x), gain_D.shape, wide(gain_D), eps=eps).to(x.dtype)


def rms_norm(x: Tensor, gain_D: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean square + eps) * gain over the last axis (Zhang & Sennrich 2019)."""
    if few(x, gain_D):
        from exlstm.ops.numba_norm import norm_numba

        return norm_numba(x, gain_D, eps, True)
    return functional.rms_norm(wide(x), gain_D.shape, wide(gain_D), eps=eps).to(x.dtype)


def few(x: Tensor, gain_D: Tensor) -> bool:
    """Whether these are a few plain numbers on a CPU without gradients, such as the rows of a decoding step.

    Then a norm is one short kernel: what torch spends on its way in and out of several would be ten times as much.
    """
    return (
        x.numel() <= FEW
        and type(x) is Tensor
        and x.is_cpu
        and x.dtype is gain_D.dtype
        and x.dtype in (torch.float32, torch.bfloat16)
        and not (torch.is_grad_enabled() and (x.requires_grad or gain_D.requires_grad))
        and x.shape[-1:] == gain_D.shape
        and x.numel() > 0
        and x.is_contiguous()
        and gain_D.is_contiguous()
        and has_numba()
        and not watched()
    )


def head_norm(x_BTHV: Tensor, gain_HV: Tensor, eps: float) -> Tensor:
    """Layer norm of every head on its own (a group norm with one group per head), one gain per channel."""
    h_BTHV = functional.layer_norm(wide(x_BTHV), gain_HV.shape[1:], eps=eps) * wide(gain_HV)
    return h_BTHV.to(x_BTHV.dtype)
