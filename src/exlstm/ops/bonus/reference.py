"""The bonus of the current step in RWKV-7, the definition: each head's value times (sum_k r_k u_k k_k).

B batch  T time  H heads  K key width  V value width
"""

from torch import Tensor

from exlstm.ops.common import upcast


def bonus_torch(r_BTHK: Tensor, k_BTHK: Tensor, u_HK: Tensor, v_BTHV: Tensor) -> Tensor:
    """The definition, wide inside; in v's dtype."""
    weight_BTH1 = (upcast(r_BTHK) * upcast(k_BTHK) * upcast(u_HK)).sum(-1, keepdim=True)
    return (weight_BTH1 * upcast(v_BTHV)).to(v_BTHV.dtype)
