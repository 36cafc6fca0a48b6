"""A block-diagonal linear map: y_hv = sum_k w_hvk x_hk, small matrices side by side.

B batch  T time  D width  H blocks  K input and V output width of each (K = V)
"""

import torch
from torch import Tensor

from exlstm.ops.arguments import described
from exlstm.ops.block_linear.reference import block_linear_torch
from exlstm.runtime.availability import cpu_kernel_obstacle
from exlstm.runtime.backend import choose


def numba_obstacle(x_BTD: Tensor, w_HVK: Tensor) -> str | None:
    """Why the Numba form cannot run on this input, or None."""
    other = None
    if x_BTD.dtype != torch.float32 or w_HVK.dtype != torch.float32 or torch.is_autocast_enabled("cpu"):
        other = "it computes in float32, and something else is asked for"
    elif w_HVK.shape[1] != 4:
        other = f"it takes blocks of 4 x 4, and these are {w_HVK.shape[1]} wide"
    return cpu_kernel_obstacle((x_BTD,), other)


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
    from exlstm.ops.block_linear.numba import block_linear_numba

    y_BTD: Tensor = block_linear_numba(x_BTD, w_HVK)
    return y_BTD
