"""The diagonal scan, h_t = a_t h_{t-1} + b_t for every channel: the recurrence of HGRN, RG-LRU, minGRU, LRU and S5.

`reference` is the definition, `chunkwise` about 2 sqrt(T) passes in plain torch, `numba` and `triton` one pass.

B batch  T time  E channels
"""

from collections.abc import Callable

import torch
from torch import Tensor

from exlstm.ops.arguments import check_like, checked_rows, checked_state
from exlstm.ops.common import length_mask, without_autocast
from exlstm.ops.scan.chunkwise import scan_chunkwise
from exlstm.ops.scan.reference import ScanState, scan_recurrent
from exlstm.runtime.availability import cpu_kernel_obstacle
from exlstm.runtime.backend import choose
from exlstm.runtime.gpu.limits import gpu_candidate

__all__ = ["ScanState", "scan", "scan_recurrent"]


def scan(
    a_BTE: Tensor,
    b_BTE: Tensor,
    state: ScanState | None = None,
    /,
    *,
    reset_BT: Tensor | None = None,
    lengths_B: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, ScanState]:
    """A sequence through the recurrence; any T >= 1, also one step.

    a: [B, T, E] factors from 0 to 1; expanded axes are read as they are. b: [B, T, E]. Both in any float dtype.
    state: h before the first step, None for zeros. reset_BT (bool): h counts as zero before that step.
    lengths_B (int): steps at or beyond a row's length leave its state alone and give 0, whatever is there.
    backend: "auto", "numba" (float32 on a CPU), "triton" (a GPU, up to float32), "chunkwise" (any device and dtype),
    all with a hand-written backward that saves a and h alone, or "recurrent" (the definition).

    Returns h [B, T, E] in b's dtype and the state after the last step, float32 or wider.
    Raises ValueError for shapes that do not fit and for a backend that cannot run.
    """
    B, T, E = b_BTE.shape
    check_like("a", a_BTE, (B, T, E), b_BTE)
    reset_BT, lengths_B = checked_rows(b_BTE, reset_BT, lengths_B)
    if state is None:
        state = ScanState(b_BTE.new_zeros((B, E), dtype=torch.promote_types(b_BTE.dtype, torch.float32)))
    state = checked_state(state, ScanState, [(B, E)], b_BTE)
    tensors = a_BTE, b_BTE, state.h_BE
    candidates = [
        ("numba", cpu_kernel_obstacle(tensors, float32_only=True)),
        *gpu_candidate(tensors, backend, None),
        ("chunkwise", "a single step needs no chunk" if T == 1 and backend == "auto" else None),
        ("recurrent", None),
    ]
    name = choose("scan", backend, candidates, tensors)
    if name in ("numba", "triton"):
        h_BTE, after_BE = kernels(name)(*tensors, reset_BT, lengths_B)
        return h_BTE.to(b_BTE.dtype), ScanState(after_BE)
    valid_BT = None if lengths_B is None else length_mask(lengths_B, T)
    if reset_BT is not None and valid_BT is not None:
        reset_BT = reset_BT & valid_BT
    run: Callable[..., tuple[Tensor, Tensor]] = scan_chunkwise if name == "chunkwise" else scan_recurrent
    with without_autocast(b_BTE):
        h_BTE, after_BE = run(*tensors, reset_BT=reset_BT, valid_BT=valid_BT)
    return h_BTE.to(b_BTE.dtype), ScanState(after_BE)


def kernels(backend: str) -> Callable[..., tuple[Tensor, Tensor]]:
    """The kernels of this name, imported when they are first needed."""
    if backend == "triton":
        from exlstm.ops.scan.triton.op import scan_triton

        return scan_triton
    from exlstm.ops.scan.numba import scan_numba

    return scan_numba
