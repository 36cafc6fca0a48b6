"""Feature maps of linear attention, whose products stand in for e^s, s = x . y / sqrt(K) of queries and keys.

    elu1      elu(x) + 1                                  Katharopoulos et al. 2020, arXiv:2006.16236, eq 7
    taylor    phi(x) . phi(y) = 1 + s + s^2 / 2           Arora et al. 2024, arXiv:2402.18668
    favor     phi(x)_m = M^-1/2 (exp(w_m . x' - |x'|^2 / 2 - c) + 1e-4) ,  x' = x K^-1/4
              Choromanski et al. 2020, arXiv:2009.14794, lemma 1

For rows w_m from N(0, 1) the products of favor's features are e^s on average. Its c is a step's largest exponent for
queries, where it cancels in a mean of values, and 0 for keys. The paper's code takes the maximum over all keys, which
would see the future; without it the largest feature is e^(|w|^2 / 2), about e^32 at K = 64.

`reference` has the definitions, `numba` the kernels.

B batch  T time  H heads  K width of x  P, M features
"""

from torch import Tensor

from exlstm.ops.common import upcast
from exlstm.ops.features.reference import elu1, favor_torch, random_rows, taylor_torch
from exlstm.runtime.availability import cpu_kernel_obstacle
from exlstm.runtime.backend import choose
from exlstm.runtime.tracing import has_gradients

__all__ = ["elu1", "favor", "random_rows", "taylor"]


def taylor(x_BTHK: Tensor, /, *, backend: str = "auto") -> Tensor:
    """The features [B, T, H, 1 + K + K (K + 1) / 2], float32 or wider; each product of two channels is there once.

    backend: "auto", "numba" (float32 on a CPU: one pass forward and one backward) or "torch".
    Raises ValueError for a backend that cannot run.
    """
    wide_BTHK = upcast(x_BTHK)
    obstacle = cpu_kernel_obstacle([wide_BTHK], float32_only=True)
    if choose("features", backend, [("numba", obstacle), ("torch", None)], [x_BTHK]) == "torch":
        return taylor_torch(wide_BTHK)
    from exlstm.ops.features.numba import taylor_numba

    return taylor_numba(wide_BTHK)


def favor(x_BTHK: Tensor, rows_MK: Tensor, /, *, is_query: bool, backend: str = "auto") -> Tensor:
    """The random features [B, T, H, M], float32 or wider, of queries or of keys. rows: see `random_rows`.

    backend: "auto", "numba" (one step without gradients, float32 on a CPU) or "torch".
    Raises ValueError for rows that do not fit, and for a backend that cannot run.
    """
    wide_BTHK = upcast(x_BTHK)
    if rows_MK.shape[1:] != x_BTHK.shape[-1:] or rows_MK.dtype is not wide_BTHK.dtype:
        raise ValueError(
            f"rows are {rows_MK.dtype} of shape {tuple(rows_MK.shape)}; with x of shape {tuple(x_BTHK.shape)} they "
            f"must be {wide_BTHK.dtype} of shape [features, {x_BTHK.shape[-1]}]."
        )
    tensors, needs_backward = (wide_BTHK, rows_MK), has_gradients([x_BTHK])
    several = "it takes one step without gradients" if needs_backward or x_BTHK.shape[1] > 1 else None
    obstacle = cpu_kernel_obstacle(tensors, several, float32_only=True)
    if choose("features", backend, [("numba", obstacle), ("torch", None)], tensors) == "torch":
        return favor_torch(*tensors, is_query)
    from exlstm.ops.features.numba import favor_numba

    return favor_numba(*tensors, is_query)
