"""The block-diagonal map in plain torch, as one batched product of groups of blocks; in a captured step of the blocks.

B batch  T time  M both  D width  H blocks  K input and V output width of each (K = V)
N blocks taken together  G groups of these, I input and J output width of each
"""

import torch
from torch import Tensor

from exlstm.ops.linear.headwise import headwise, is_captured

MERGED_WIDTH = 16  # a vector register of float32: narrower matrices leave most of it empty


def merge_blocks(w_HVK: Tensor) -> Tensor:
    """The same map with several blocks on the diagonal of each larger matrix: [H / n, n V, n K]."""
    H, V, K = w_HVK.shape
    # the most blocks that divide all of them and fit: products of 4 x 4 blocks are three times faster by fours
    n = max(n for n in range(1, H + 1) if H % n == 0 and (n == 1 or n * V <= MERGED_WIDTH))
    place_1N1N1 = torch.eye(n, dtype=w_HVK.dtype, device=w_HVK.device)[None, :, None, :, None]
    return (w_HVK.view(H // n, n, V, 1, K) * place_1N1N1).reshape(H // n, n * V, n * K)


def block_linear_torch(x_BTD: Tensor, w_HVK: Tensor) -> Tensor:
    """[B, T, D] -> [B, T, D], as one batched product of groups of blocks."""
    B, T, D = x_BTD.shape
    w_GJI = w_HVK if is_captured() else merge_blocks(w_HVK)
    x_GMI = x_BTD.reshape(B * T, *w_GJI.shape[::2]).transpose(0, 1)
    return headwise(x_GMI, w_GJI).transpose(0, 1).reshape(B, T, D)
