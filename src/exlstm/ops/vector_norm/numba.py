"""The norm of vectors on a CPU: one pass forward and one backward.

Saved is x alone. In a decoding step x may be bfloat16.

B batch  T time  H heads  K width of a vector
"""

from math import sqrt
from typing import Any

import numpy as np
import torch
from numpy import float32, float64
from torch import Tensor

from exlstm.ops.derivatives import twice_differentiable
from exlstm.ops.vector_norm.reference import VectorNormOptions, vector_norm_torch
from exlstm.runtime.cpu.bfloat16 import read_numbers, write_numbers
from exlstm.runtime.cpu.jit import helper
from exlstm.runtime.cpu.kernel import F32, F32Rows, FloatRows, Floats, kernel
from exlstm.runtime.cpu.launch import launch, microseconds
from exlstm.runtime.cpu.loops import Array, Number, dot, total
from exlstm.runtime.cpu.memory import SIZE, tensor_at
from exlstm.runtime.tracing import has_gradients


@helper()
def factor_of(x_K: Array, l2: bool, eps: float) -> Number:
    """What x is multiplied by."""
    if l2:
        return float32(1.0 / sqrt(float64(dot(x_K, x_K)) + eps))
    return float32(1.0 / (float64(total(x_K)) + eps))


@helper()
def multiplied(x_K: Array, factor: Number, y_K: Array) -> None:
    """y = factor x"""
    for j in range(x_K.size):
        y_K[j] = factor * x_K[j]


@helper()
def combined(dy_K: Array, x_K: Array, along: Number, factor: Number, dx_K: Array) -> None:
    """dx = factor (dy - along x)"""
    for j in range(x_K.size):
        dx_K[j] = factor * (dy_K[j] - along * x_K[j])


@helper()
def less(dy_K: Array, along: Number, factor: Number, dx_K: Array) -> None:
    """dx = factor (dy - along)"""
    for j in range(dy_K.size):
        dx_K[j] = factor * (dy_K[j] - along)


@kernel()
def norm_vectors(
    first: int,
    last: int,
    B: int,
    T: int,
    H: int,
    K: int,
    x_BTHK: FloatRows,
    x_step: int,
    y_BTHK: Floats,
    l2: bool,
    eps: float,
    scale: float,
    bf16: bool,
) -> None:
    """Steps of y. The heads of a step of x are contiguous, x_step bytes from the next."""
    size, x_K, y_K = 2 if bf16 else 4, np.empty(K, float32), np.empty(K, float32)
    for m in range(first, last):
        for h in range(H):
            read_numbers(x_BTHK + m * x_step + h * K * size, bf16, x_K)
            multiplied(x_K, float32(scale) * factor_of(x_K, l2, eps), y_K)
            write_numbers(y_K, y_BTHK + (m * H + h) * K * size, bf16)


@kernel()
def norm_vectors_backward(
    first: int,
    last: int,
    B: int,
    T: int,
    H: int,
    K: int,
    x_BTHK: F32Rows,
    x_step: int,
    dy_BTHK: F32Rows,
    dy_step: int,
    dx_BTHK: F32,
    l2: bool,
    eps: float,
    scale: float,
) -> None:
    """Steps of dx."""
    for m in range(first, last):
        for h in range(H):
            x_K = tensor_at(x_BTHK + m * x_step + h * K * SIZE, K, float32)
            dy_K = tensor_at(dy_BTHK + m * dy_step + h * K * SIZE, K, float32)
            dx_K = tensor_at(dx_BTHK + (m * H + h) * K * SIZE, K, float32)
            factor, along = factor_of(x_K, l2, eps), dot(x_K, dy_K)
            if l2:
                combined(dy_K, x_K, along * factor * factor, float32(scale) * factor, dx_K)
            else:
                less(dy_K, along * factor, float32(scale) * factor, dx_K)


def steps_of(x_BTHK: Tensor) -> tuple[Tensor, int]:
    """`x` and the bytes from step to step; a copy where steps are not at equal distances or have gaps inside."""
    B, T, H, K = x_BTHK.shape
    row, step, head, number = x_BTHK.stride()
    if number != 1 or (head != K and H > 1) or (row != T * step and B > 1):
        x_BTHK, step = x_BTHK.contiguous(), H * K
    return x_BTHK, step * x_BTHK.itemsize


def forward(x_BTHK: Tensor, options: VectorNormOptions) -> Tensor:
    """y, without a graph."""
    B, T, H, K = x_BTHK.shape
    y_BTHK = x_BTHK.new_empty(x_BTHK.shape)
    launch(
        norm_vectors,
        B * T,
        B,
        T,
        H,
        K,
        *steps_of(x_BTHK),
        y_BTHK,
        options.kind == "l2",
        options.eps,
        options.scale,
        x_BTHK.dtype is torch.bfloat16,
        cost=microseconds(bytes=2 * y_BTHK.nbytes),
    )
    return y_BTHK


class Norm(torch.autograd.Function):
    """`forward` with gradients, of float32."""

    @staticmethod
    def forward(ctx: Any, x_BTHK: Tensor, options: VectorNormOptions) -> Tensor:
        ctx.save_for_backward(x_BTHK)
        ctx.options = {"options": options}
        return forward(x_BTHK, options)

    @staticmethod
    @twice_differentiable(vector_norm_torch)
    def backward(ctx: Any, dy_BTHK: Tensor) -> tuple[Tensor | None, ...]:
        (x_BTHK,), options = ctx.saved_tensors, ctx.options["options"]
        B, T, H, K = x_BTHK.shape
        dx_BTHK = x_BTHK.new_empty(x_BTHK.shape)
        launch(
            norm_vectors_backward,
            B * T,
            B,
            T,
            H,
            K,
            *steps_of(x_BTHK),
            *steps_of(dy_BTHK),
            dx_BTHK,
            options.kind == "l2",
            options.eps,
            options.scale,
            cost=microseconds(bytes=3 * dx_BTHK.nbytes),
        )
        return dx_BTHK, None


def vector_norm_numba(x_BTHK: Tensor, options: VectorNormOptions) -> Tensor:
    """The numbers of `vector_norm_torch`."""
    call: Any = Norm.apply if has_gradients([x_BTHK]) else forward
    y_BTHK: Tensor = call(x_BTHK, options)
    return y_BTHK
