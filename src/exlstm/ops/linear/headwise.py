"""A matrix product per head, as for the gates of an sLSTM from its heads' inputs.

H heads  M rows  K input and J output width of a head
"""

import torch
from torch import Tensor

from exlstm.runtime import capture
from exlstm.runtime.internals import is_compiling


def headwise(x_HMK: Tensor, w_HJK: Tensor, /) -> Tensor:
    """y_hm = W_h x_hm; returns [H, M, J] in x's dtype.

    In a captured step the linear kernels compute it: torch's product cannot be replayed.
    """
    if not is_captured() or not is_replayable(x_HMK, w_HJK):
        return torch.bmm(x_HMK, w_HJK.mT)
    from exlstm.ops.linear.numba.op import Plan

    (H, M, _), J = x_HMK.shape, w_HJK.shape[1]
    x_HMK, y_HMJ = x_HMK.contiguous(), x_HMK.new_empty(H, M, J)
    for x_MK, w_JK, y_MJ in zip(x_HMK, w_HJK, y_HMJ, strict=True):
        Plan([(w_JK, None, y_HMJ.dtype)]).run(x_MK, [y_MJ])
    return y_HMJ


def is_captured() -> bool:
    """Whether the call is a part of a step that is being captured."""
    return not is_compiling() and capture.active() is not None


def is_replayable(x_HMK: Tensor, w_HJK: Tensor) -> bool:
    """Whether the linear kernels can read these."""
    known = (torch.float32, torch.bfloat16)
    return x_HMK.dtype in known and w_HJK.dtype in known and x_HMK.numel() > 0 and w_HJK[0].is_contiguous()
