"""Rotary position embedding (Su et al. 2021, arXiv:2104.09864), halves rotated as in Llama.

B batch  T time  H heads  K head width  F frequencies (half as many as channels that are rotated)
"""

import torch
from torch import Tensor

from exlstm.ops.common import exact_dtype


def rope(x_BTHK: Tensor, position_BT: Tensor, *, base: float = 10_000.0, share: float = 1.0) -> Tensor:
    """Rotates (x_f, x_{f + R/2}) by position * base^(-2f/R). Angles are float64 where there is one (`exact_dtype`).

    share: of the channels that are rotated, the first R = share * K of them, an even number; the others stay.
    """
    R = rotated_width(x_BTHK.shape[-1], share)
    exact = exact_dtype(x_BTHK)
    frequency_F = base ** (torch.arange(0, R, 2, device=x_BTHK.device, dtype=exact) / -R)
    angle_BT1F = (position_BT.to(exact)[..., None] * frequency_F)[:, :, None]
    cos_BT1F, sin_BT1F = angle_BT1F.cos().to(x_BTHK.dtype), angle_BT1F.sin().to(x_BTHK.dtype)
    left_BTHF, right_BTHF = x_BTHK[..., :R].chunk(2, dim=-1)
    rest = [] if share == 1 else [x_BTHK[..., R:]]
    return torch.cat(
        [left_BTHF * cos_BT1F - right_BTHF * sin_BT1F, right_BTHF * cos_BT1F + left_BTHF * sin_BT1F, *rest], dim=-1
    )


def rotated_width(K: int, share: float) -> int:
    """Channels of a head that are rotated, the first of them."""
    return int(share * K)
