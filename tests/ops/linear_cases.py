"""Weights of every kind, and the definition of a linear map, for the tests of its op."""

import torch

from exlstm.ops.linear import dequantised, to_int4, to_int8

KINDS = ["float32", "bfloat16", "int8", "int4"]


def make(kind, N, K, seed=0):
    """(W [N, K] of this kind, b [N])."""
    generator = torch.Generator().manual_seed(seed)
    w_NK, b_N = torch.randn(N, K, generator=generator), torch.randn(N, generator=generator)
    if kind == "bfloat16":
        return w_NK.bfloat16(), b_N.bfloat16()
    return {"float32": lambda w: w, "int8": to_int8, "int4": to_int4}[kind](w_NK), b_N


def exact(x, weight, bias):
    """In float64."""
    y = x.double() @ dequantised(weight).double().T
    return y if bias is None else y + bias.double()


def room(x, weight, bias):
    """What a sum's rounding is measured by: the same sum of absolute values."""
    y = x.double().abs() @ dequantised(weight).double().abs().T
    return y if bias is None else y + bias.double().abs()
