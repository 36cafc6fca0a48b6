"""The bonus of a decoding step on a CPU, in one kernel. float32 or bfloat16 in and out, float32 between.

B batch  T time  H heads  K key width  V value width
"""

import numpy as np
import torch
from numpy import float32
from torch import Tensor

from exlstm.runtime.cpu.bfloat16 import read_numbers, write_numbers
from exlstm.runtime.cpu.kernel import Floats, kernel
from exlstm.runtime.cpu.launch import launch, microseconds
from exlstm.runtime.cpu.loops import dot, multiply


@kernel()
def bonus_heads(
    first: int,
    last: int,
    B: int,
    T: int,
    H: int,
    K: int,
    V: int,
    r_BTHK: Floats,
    k_BTHK: Floats,
    u_HK: Floats,
    v_BTHV: Floats,
    o_BTHV: Floats,
    bf16: bool,
) -> None:
    """Heads of all steps."""
    size = 2 if bf16 else 4
    r_K, k_K, u_K, v_V = np.empty(K, float32), np.empty(K, float32), np.empty(K, float32), np.empty(V, float32)
    for item in range(first, last):
        read_numbers(r_BTHK + size * item * K, bf16, r_K)
        read_numbers(k_BTHK + size * item * K, bf16, k_K)
        read_numbers(u_HK + size * (item % H) * K, bf16, u_K)
        read_numbers(v_BTHV + size * item * V, bf16, v_V)
        multiply(r_K, u_K, r_K)
        weight = dot(r_K, k_K)
        for j in range(V):
            v_V[j] *= weight
        write_numbers(v_V, o_BTHV + size * item * V, bf16)


def bonus_numba(r_BTHK: Tensor, k_BTHK: Tensor, u_HK: Tensor, v_BTHV: Tensor) -> Tensor:
    """The numbers of `bonus_torch`, of tensors of one dtype without gradients."""
    B, T, H, K = r_BTHK.shape
    r, k, u, v = (x.contiguous() for x in (r_BTHK, k_BTHK, u_HK, v_BTHV))
    o_BTHV = v.new_empty(v.shape)
    launch(
        bonus_heads,
        B * T * H,
        B,
        T,
        H,
        K,
        v.shape[3],
        r,
        k,
        u,
        v,
        o_BTHV,
        v.dtype is torch.bfloat16,
        cost=microseconds(bytes=2 * (r.nbytes + v.nbytes)),
    )
    return o_BTHV
