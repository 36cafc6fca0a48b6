"""Rotary position embedding (Su et al. 2021, arXiv:2104.09864), halves rotated as in Llama.

B batch  T time  H heads  K head width  F frequencies (K / 2)
"""

import torch
from torch import Tensor


def rope(x_BTHK: Tensor, position_BT: Tensor, *, base: float = 10_000.0) -> Tensor:
    """Rotates (x_f, x_{f + K/2}) by position * base^(-2f/K). Angles are float64 where the device has it."""
    K = x_BTHK.shape[-1]
    exact = torch.float32 if x_BTHK.device.type == "mps" else torch.float64
    frequency_F = base ** (torch.arange(0, K, 2, device=x_BTHK.device, dtype=exact) / -K)
    angle_BT1F = (position_BT.to(exact)[..., None] * frequency_F)[:, :, None]
    cos_BT1F, sin_BT1F = angle_BT1F.cos().to(x_BTHK.dtype), angle_BT1F.sin().to(x_BTHK.dtype)
    left_BTHF, right_BTHF = x_BTHK.chunk(2, dim=-1)
    return torch.cat(
        [left_BTHF * cos_BT1F - right_BTHF * sin_BT1F, right_BTHF * cos_BT1F + left_BTHF * sin_BT1F], dim=-1
    )
