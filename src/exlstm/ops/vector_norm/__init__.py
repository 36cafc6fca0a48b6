"""Vectors of every head divided by their length, or by their sum: queries and keys of the delta rule.

B batch  T time  H heads  K width of a vector
"""

from torch import Tensor

from exlstm.ops.norm import is_small_inference
from exlstm.ops.vector_norm.reference import VectorNorm, VectorNormOptions, vector_norm_torch
from exlstm.runtime.availability import cpu_kernel_obstacle
from exlstm.runtime.backend import choose

__all__ = ["VectorNorm", "vector_norm"]


def vector_norm(
    x_BTHK: Tensor, /, *, kind: VectorNorm = "l2", eps: float = 1e-6, scale: float = 1.0, backend: str = "auto"
) -> Tensor:
    """scale x / sqrt(sum x^2 + eps) ("l2"), or scale x / (sum x + eps) ("sum"), over the last axis; in x's dtype.

    Sums are float32 or wider. backend: "auto", "numba" (float32 on a CPU: one pass forward and one backward) or "torch"
    (any device and dtype). Raises ValueError for another kind and for a backend that cannot run.
    """
    if kind not in ("l2", "sum"):
        raise ValueError(f"kind is {kind!r}; it must be 'l2' or 'sum'.")
    options, small = VectorNormOptions(kind, eps, scale), is_small_inference((x_BTHK,))
    obstacle = None if small else cpu_kernel_obstacle([x_BTHK], float32_only=True)
    if choose("vector_norm", backend, [("numba", obstacle), ("torch", None)], [x_BTHK]) == "numba":
        from exlstm.ops.vector_norm.numba import vector_norm_numba

        return vector_norm_numba(x_BTHK, options)
    return vector_norm_torch(x_BTHK, options)
