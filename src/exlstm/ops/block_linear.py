"""A block-diagonal linear map: y_hv = sum_k w_hvk x_hk, small matrices side by side.

B batch  T time  M both  D width  H blocks  K input and V output width of each (K = V)
N blocks taken together  G groups of these, I input and J output width of each
"""

import torch
from torch import Tensor

from exlstm.ops.arguments import described
from exlstm.ops.choose import choose
from exlstm.ops.shared import no_numba

MERGED_WIDTH = 16  # a vector register of float32: narrower matrices leave most of it empty


def merged(w_HVK: Tensor) -> Tensor:
    """The same map with several blocks on the diagonal of each larger matrix: [H / n, n V, n K]."""
    H, V, K = w_HVK.shape
    # the most blocks that divide all of them and fit: products of 4 x 4 blocks are three times faster by fours
    n = max(n for n in range(1, H + 1) if H % n == 0 and (n == 1 or n * V <= MERGED_WIDTH))
    place_1N1N1 = torch.eye(n, dtype=w_HVK.dtype, device=w_HVK.device)[None, :, None, :, None]
    return (w_HVK.view(H // n, n, V, 1, K) * place_1N1N1).reshape(H // n, n * V, n * K)


def block_linear_torch(x_BTD: Tensor, w_HVK: Tensor) -> Tensor:
    """As one batched product of groups of blocks."""
    B, T, D = x_BTD.shape
    w_GJI = merged(w_HVK)
    x_GMI = x_BTD.reshape(B * T, *w_GJI.shape[::2]).transpose(0, 1)
    y_BTD: Tensor = (x_GMI @ w_GJI.mT).transpose(0, 1).reshape(B, T, D)
    return y_BTD


def numba_obstacle(x_BTD: Tensor, w_HVK: Tensor) -> str | None:
    """Why the Numba form cannot run on this input, or None."""
    if x_BTD.device.type != "cpu":
        return f"the tensors are on {x_BTD.device.type}, Numba runs on the CPU"
    if x_BTD.dtype != torch.float32 or w_HVK.dtype != torch.float32 or torch.is_autocast_enabled("cpu"):
        return "it computes in float32, and something else is asked for"
    if w_HVK.shape[1] != 4:
        return f"it takes blocks of 4 x 4, and these are {w_HVK.shape[1]} wide"
    return no_numba()


def block_linear(x_BTD: Tensor, w_HVK: Tensor, /, *, backend: str = "auto") -> Tensor:
    """[B, T, D] -> [B, T, D] in x's dtype; w [H, V, K] with K = V = D / H.

    backend: "auto", "numba" (blocks of 4 x 4 in float32 on a CPU) or "torch". ValueError for one that cannot run.
    """
    (H, V, K), D = w_HVK.shape, x_BTD.shape[2]
    if V != K or H * V != D or x_BTD.device != w_HVK.device:
        raise ValueError(
            f"w is {described(w_HVK)}; to fit x of shape {tuple(x_BTD.shape)} it must be [H, V, V] on {x_BTD.device} "
            f"with H V = {D}."
        )
    name = choose("block_linear", backend, [("numba", numba_obstacle(x_BTD, w_HVK)), ("torch", None)], (x_BTD, w_HVK))
    if name == "torch":
        return block_linear_torch(x_BTD, w_HVK)
    from exlstm.ops.numba_block_linear import block_linear_numba

    y_BTD: Tensor = block_linear_numba(x_BTD, w_HVK)
    return y_BTD
