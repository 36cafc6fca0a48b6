"""Products of large float32 matrices on a CPU: by oneDNN where torch's own choice, MKL, is slow.

With AVX-512 on a processor of AMD, MKL takes vectors of half the width, and oneDNN, which torch brings along, takes
whole ones: products are 1.3 to 2.4 times as fast. The first call with a shape takes 0.3 ms more, once. It is a rule and
not a measurement: both round differently, and a clock chooses anew in each process.

M rows  K inputs, which are summed over  N outputs
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter, functional

from exlstm.ops.derivatives import twice_differentiable
from exlstm.runtime.availability import mkl_is_slow
from exlstm.runtime.capture import active
from exlstm.runtime.internals import is_compiling, onednn_linear
from exlstm.runtime.tracing import has_gradients, is_traced_or_autocast

# multiplications of a product that wins back the 10 microseconds by which a call of oneDNN takes longer
LEAST = 1 << 20
SHORTEST = 4  # rows, inputs and outputs; MKL multiplies vectors as fast


def by_onednn(x: Tensor, w_NK: Tensor, b_N: Tensor | None = None) -> bool:
    """Whether oneDNN computes this product, or torch as it likes. x: [..., K]."""
    # first of all, for a comparison of sizes would fix them in a graph
    if is_compiling():
        return False
    N, K = w_NK.shape
    if x.numel() * N < LEAST or not x.is_cpu or active() is not None or is_traced_or_autocast():
        return False
    if min(N, K, x.numel() // K) < SHORTEST:
        return False
    plain = all(y is None or (type(y) in (Tensor, Parameter) and y.dtype is torch.float32) for y in (x, w_NK, b_N))
    return plain and mkl_is_slow()


def linear(x: Tensor, w_NK: Tensor, b_N: Tensor | None = None, /) -> Tensor:
    """Linear map x W^T + b, with its gradients. x: [..., K]; returns [..., N]."""
    if not by_onednn(x, w_NK, b_N):
        return functional.linear(x, w_NK, b_N)
    x_MK = x.reshape(-1, x.shape[-1])
    call: Any = OneDNNLinear.apply if has_gradients((x, w_NK, b_N)) else onednn_product
    y_MN: Tensor = call(x_MK, w_NK, b_N)
    return y_MN.view(*x.shape[:-1], len(w_NK))


def product(a_MK: Tensor, b_KN: Tensor, /, *, out: Tensor | None = None) -> Tensor:
    """Product a b, without a graph; in `out`, if that is given."""
    if not by_onednn(a_MK, b_KN.T):
        return torch.mm(a_MK, b_KN, out=out)
    found = onednn_product(a_MK, b_KN.T)
    return found if out is None else out.copy_(found)


def add_product(total_MN: Tensor, a_MK: Tensor, b_KN: Tensor, /) -> Tensor:
    """Adds the product a b to the total, in place and without a graph."""
    if by_onednn(a_MK, b_KN.T):
        return total_MN.add_(onednn_product(a_MK, b_KN.T))
    return total_MN.addmm_(a_MK, b_KN)


def onednn_product(a_MK: Tensor, b_NK: Tensor, bias_N: Tensor | None = None) -> Tensor:
    """Product a b^T by oneDNN, which takes a hundred times as long where there are gaps between rows."""
    return onednn_linear(without_gaps(a_MK), without_gaps(b_NK), bias_N)


def without_gaps(x_MK: Tensor) -> Tensor:
    """Matrix without gaps between its rows, or columns where it was stored by these; a copy if it has some."""
    return x_MK if x_MK.is_contiguous() or x_MK.T.is_contiguous() else x_MK.contiguous()


class OneDNNLinear(torch.autograd.Function):
    """Linear map x W^T + b by oneDNN, and its gradients."""

    @staticmethod
    def forward(ctx: Any, x_MK: Tensor, w_NK: Tensor, b_N: Tensor | None) -> Tensor:
        ctx.save_for_backward(x_MK, w_NK, b_N)
        ctx.options = {}
        return onednn_product(x_MK, w_NK, b_N)

    @staticmethod
    @twice_differentiable(functional.linear)
    def backward(ctx: Any, dy_MN: Tensor) -> tuple[Tensor | None, ...]:
        x_MK, w_NK, b_N = ctx.saved_tensors
        x, w, b = ctx.needs_input_grad
        dx_MK = product(dy_MN, w_NK) if x else None
        dw_NK = product(dy_MN.T, x_MK) if w else None
        return dx_MK, dw_NK, dy_MN.sum(0) if b else None
