"""The weights of a recurrent layer as torch keeps them: rows of four gates below one another, and two biases.

B batch  T time  D width of the input  H heads  K width of a head  J gates of all heads (4 H K)
"""

from typing import NamedTuple

import torch
from torch import Tensor

from exlstm.runtime import capture
from exlstm.runtime.availability import no_numba
from exlstm.runtime.tracing import tracer


class Layer(NamedTuple):
    """Weights of the gates W x + R h + b + more_b, rows in the order (gate, head, unit); two biases, one or none."""

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
    """Whether kernels of whole layers run: float32 on a CPU. In a captured step it is those of a single one."""
    tensors = (x_BTD, *layer)
    # small steps wait for these questions: the attributes of tensors first, which are the quickest
    for x in tensors:
        if x is not None and (x.dtype is not torch.float32 or not x.is_cpu):
            return False
    return (
        backend in ("auto", "numba")
        and tracer(tensors) is None
        and no_numba() is None
        and not torch.is_autocast_enabled("cpu")
        and (x_BTD.shape[1] == 1 or capture.active() is None)
    )


def contiguous(layer: Layer) -> Layer:
    """The same weights, whose rows follow one another in memory."""
    return Layer(*(None if x is None else x.contiguous() for x in layer))  # type: ignore[arg-type]
