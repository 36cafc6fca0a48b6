"""The bonus of the current step, (sum_k r_k u_k k_k) v: what RWKV-7 adds to what it read from its memory.

B batch  T time  H heads  K key width  V value width
"""

from torch import Tensor

from exlstm.ops.arguments import check_like
from exlstm.ops.bonus.reference import bonus_torch
from exlstm.ops.norm import is_small_inference
from exlstm.runtime.backend import choose


def bonus(r_BTHK: Tensor, k_BTHK: Tensor, u_HK: Tensor, v_BTHV: Tensor, /, *, backend: str = "auto") -> Tensor:
    """[B, T, H, V] in v's dtype, summed in float32 or wider (Peng et al. 2025, arXiv:2503.14456).

    backend: "auto", "numba" (a few steps of one dtype on a CPU without gradients, for decoding) or "torch".
    Raises ValueError for shapes that do not fit and for a backend that cannot run.
    """
    (B, T, H, K), V = r_BTHK.shape, v_BTHV.shape[-1]
    check_like("k", k_BTHK, (B, T, H, K), r_BTHK)
    check_like("u", u_HK, (H, K), r_BTHK)
    check_like("v", v_BTHV, (B, T, H, V), r_BTHK)
    tensors = v_BTHV, r_BTHK, k_BTHK, u_HK
    obstacle = None if is_small_inference(tensors) else "it is for a few steps of one dtype on a CPU without gradients"
    if choose("bonus", backend, [("numba", obstacle), ("torch", None)], tensors) == "numba":
        from exlstm.ops.bonus.numba import bonus_numba

        return bonus_numba(r_BTHK, k_BTHK, u_HK, v_BTHV)
    return bonus_torch(r_BTHK, k_BTHK, u_HK, v_BTHV)
