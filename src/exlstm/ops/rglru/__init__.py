"""The gates of the RG-LRU: from its pre-activations to the factors and inputs of a diagonal scan (De et al. 2024).

`reference` is the definition in plain torch, `numba` one pass over the inputs.

B batch  T time  E channels
"""

import torch
from torch import Tensor
from torch.nn.functional import softplus

from exlstm.ops.arguments import check_like, checked_rows, misfit
from exlstm.ops.common import upcast, without_autocast
from exlstm.ops.rglru.reference import rglru_gates_torch
from exlstm.runtime.availability import cpu_kernel_obstacle
from exlstm.runtime.backend import choose

__all__ = ["rglru_gates", "rglru_gates_torch"]
SHARPNESS = 8.0  # c of the paper


def rglru_gates(
    u_BTE: Tensor,
    r_BTE: Tensor,
    i_BTE: Tensor,
    lam_E: Tensor,
    seen_B: Tensor,
    /,
    *,
    reset_BT: Tensor | None = None,
    lengths_B: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor, Tensor]:
    """Factors a and inputs b of the scan, and which rows have seen a step now.

    u, r, i: [B, T, E] input and pre-activations of both gates. lam: [E]. All in any float dtype.
    seen: [B], bool: whether a row has had a step before. Its first step, as one after a reset (reset_BT, bool), is
    written without the root. lengths_B (int): a row of no steps has seen none.
    backend: "auto", "numba" (float32 on a CPU) or "torch".

    Returns a and b [B, T, E], float32 or wider, and seen afterwards [B].
    Raises ValueError for shapes that do not fit and for a backend that cannot run.
    """
    B, T, E = u_BTE.shape
    for name, x, shape in (("r", r_BTE, (B, T, E)), ("i", i_BTE, (B, T, E)), ("lam", lam_E, (E,))):
        check_like(name, x, shape, u_BTE)
    if seen_B.dtype is not torch.bool or seen_B.shape != (B,) or seen_B.device != u_BTE.device:
        raise misfit("seen_B of the state", seen_B, torch.bool, (B,), u_BTE.device)
    reset_BT, lengths_B = checked_rows(u_BTE, reset_BT, lengths_B)
    decay_E = -SHARPNESS * softplus(upcast(lam_E))
    tensors = u_BTE, r_BTE, i_BTE, decay_E
    obstacle = cpu_kernel_obstacle(tensors, float32_only=True)
    if choose("rglru_gates", backend, [("numba", obstacle), ("torch", None)], tensors) == "numba":
        from exlstm.ops.rglru.numba import rglru_gates_numba

        return rglru_gates_numba(*tensors, seen_B, reset_BT, lengths_B)
    first_BT = torch.zeros((B, T), dtype=torch.bool, device=u_BTE.device) if reset_BT is None else reset_BT.clone()
    first_BT[:, 0] |= ~seen_B
    after_B = torch.ones_like(seen_B) if lengths_B is None else seen_B | (lengths_B > 0)
    with without_autocast(u_BTE):
        a_BTE, b_BTE = rglru_gates_torch(*tensors, first_BT)
    return a_BTE, b_BTE, after_B
