"""The norm of vectors, the definition: x / sqrt(sum x^2 + eps), or x / (sum x + eps), each times a scale.

The second makes convex weights of what is not negative, as the features of linear attention.

B batch  T time  H heads  K width of a vector
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from exlstm.ops.common import upcast

VectorNorm = Literal["l2", "sum"]


class VectorNormOptions(NamedTuple):
    """Options of the norm."""

    kind: VectorNorm = "l2"
    eps: float = 1e-6
    scale: float = 1.0


def vector_norm_torch(x_BTHK: Tensor, options: VectorNormOptions) -> Tensor:
    """The definition, wide inside."""
    wide_BTHK = upcast(x_BTHK)
    if options.kind == "l2":
        factor_BTH1 = torch.rsqrt(wide_BTHK.square().sum(-1, keepdim=True) + options.eps)
    else:
        factor_BTH1 = 1 / (wide_BTHK.sum(-1, keepdim=True) + options.eps)
    return (wide_BTHK * (options.scale * factor_BTH1)).to(x_BTHK.dtype)
