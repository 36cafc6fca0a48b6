"""The gates of the RG-LRU, the definition (De et al. 2024, arXiv:2402.19427, eqs 1-4).

    log a_t = -8 softplus(lambda) sigmoid(r~_t)
    b_t = sqrt(1 - a_t^2) sigmoid(i~_t) u_t

The recurrence is the diagonal scan of a and b. At a row's first step, which has no past to leave room for, b is taken
without the root. The slope of the root, which has no bound where a is 1, is at most 1000.

B batch  T time  E channels
"""

import torch
from torch import Tensor

from exlstm.ops.common import upcast

STEEPEST = 1000.0  # slope of the square root


def root(z: Tensor) -> Tensor:
    """sqrt(z) for z >= 0, with a slope of at most STEEPEST."""
    least = (0.5 / STEEPEST) ** 2  # where the slope is that
    flat = z <= least
    line = torch.sqrt(z).detach() + STEEPEST * (z - z.detach())
    return torch.where(flat, line, torch.sqrt(z.masked_fill(flat, 1)))


def rglru_gates_torch(
    u_BTE: Tensor, r_BTE: Tensor, i_BTE: Tensor, decay_E: Tensor, first_BT: Tensor
) -> tuple[Tensor, Tensor]:
    """a and b [B, T, E], wide. decay: -8 softplus(lambda). first: True at the first step of a row or after a reset."""
    u_BTE, r_BTE, i_BTE = upcast(u_BTE), upcast(r_BTE), upcast(i_BTE)
    log_a_BTE = decay_E * torch.sigmoid(r_BTE)
    scale_BTE = root(-torch.expm1(2 * log_a_BTE)).masked_fill(first_BT[..., None], 1)
    return torch.exp(log_a_BTE), scale_BTE * (torch.sigmoid(i_BTE) * u_BTE)
