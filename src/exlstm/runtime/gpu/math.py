# mypy: ignore-errors
"""Elementary functions shared by kernels for GPUs."""

import triton
import triton.language as tl


@triton.jit
def log_sigmoid(x, e):
    """log(1 / (1 + e^-x)) = min(x, 0) - log(1 + e^-|x|); the logarithm as 2 artanh(e / (2 + e)). e: e^-|x|."""
    y = e / (e + 2.0)
    y2 = y * y
    p = (((y2 / 15 + 1 / 13) * y2 + 1 / 11) * y2 + 1 / 9) * y2 + 1 / 7
    p = (p * y2 + 1 / 5) * y2 + 1 / 3
    return tl.minimum(x, 0.0) - 2.0 * (y + y * y2 * p)
