"""A layer of sLSTM cells with weights and state as torch keeps them: rows of gates below one another, c packed.

B batch  T time  D width of the input  H heads  K width of a head  M of all heads  J gates of all heads (4 M)
G gates: i, f, z, o  V head width
"""

from typing import NamedTuple

import torch
from torch import Tensor

from exlstm.ops.slstm.projection import Projection
from exlstm.runtime import capture
from exlstm.runtime.availability import cpu_kernel_obstacle
from exlstm.runtime.tracing import tracer


class Layer(NamedTuple):
    """Weights of the gates W x + R h + b + more_b, rows in the order (gate, head, unit); both biases or none."""

    w_JD: Tensor
    r_JK: Tensor
    b_J: Tensor | None
    more_b_J: Tensor | None

    @property
    def heads(self) -> int:
        """The number of heads."""
        J, K = self.r_JK.shape
        return J // (4 * K)


def in_own_kernels(x_BTD: Tensor, layer: Layer, backend: str) -> bool:
    """Whether kernels of whole layers run: float32 on a CPU."""
    tensors = (x_BTD, *layer)
    return (
        backend in ("auto", "numba")
        and tracer(tensors) is None
        and cpu_kernel_obstacle(tensors, float32_only=True) is None
        and not torch.is_autocast_enabled("cpu")
        and capture.active() is None
    )


def contiguous(layer: Layer) -> Layer:
    """The same weights, whose rows follow one another in memory."""
    w_JD, r_JK, b_J, more_b_J = layer
    if b_J is not None and more_b_J is not None:
        b_J, more_b_J = b_J.contiguous(), more_b_J.contiguous()
    return Layer(w_JD.contiguous(), r_JK.contiguous(), b_J, more_b_J)


def as_heads(x_BTD: Tensor, layer: Layer) -> tuple[Projection, Tensor]:
    """The projection of the input, and R, as the ops of heads have them: views of the weights."""
    H, K = layer.heads, layer.r_JK.shape[1]
    w_HGVD = layer.w_JD.view(4, H, K, -1).transpose(0, 1)
    r_HKGV = layer.r_JK.view(4, H, K, K).permute(1, 3, 0, 2)
    b_HGV = None
    if layer.b_J is not None and layer.more_b_J is not None:
        b_HGV = (layer.b_J + layer.more_b_J).view(4, H, K).transpose(0, 1)
    return Projection(x_BTD, None, w_HGVD, b_HGV), r_HKGV
