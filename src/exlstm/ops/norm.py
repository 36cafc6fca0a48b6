"""Normalisations: statistics float32 or wider, whatever the input is.

D width  H heads  V head width; leading axes are free
"""

from torch import Tensor
from torch.nn import functional

from exlstm.ops.shared import wide


def layer_norm(x: Tensor, gain_D: Tensor, eps: float) -> Tensor:
    """(x - mean) / sqrt(variance + eps) * gain over the last axis, without bias."""
    return functional.layer_norm(wide(x), gain_D.shape, wide(gain_D), eps=eps).to(x.dtype)


def rms_norm(x: Tensor, gain_D: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean square + eps) * gain over the last axis (Zhang & Sennrich 2019)."""
    return functional.rms_norm(wide(x), gain_D.shape, wide(gain_D), eps=eps).to(x.dtype)


def head_norm(x_BTHV: Tensor, gain_HV: Tensor, eps: float) -> Tensor:
    """Layer norm of every head on its own (a group norm with one group per head), one gain per channel."""
    h_BTHV = functional.layer_norm(wide(x_BTHV), gain_HV.shape[1:], eps=eps) * wide(gain_HV)
    return h_BTHV.to(x_BTHV.dtype)
