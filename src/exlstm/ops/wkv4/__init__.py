"""wkv of RWKV-4: for every channel an average of all values so far, weighted by their keys (Peng et al. 2023).

`reference` is the definition, `chunkwise` about 4 sqrt(T) passes in plain torch, `numba` one pass.

B batch  T time  E channels
"""

from torch import Tensor

from exlstm.ops.arguments import check_like, checked_rows, checked_state
from exlstm.ops.common import row_masks, without_autocast
from exlstm.ops.wkv4.chunkwise import wkv4_chunkwise
from exlstm.ops.wkv4.reference import WKV4State, wkv4_recurrent
from exlstm.runtime.availability import chunk_obstacle, cpu_kernel_obstacle
from exlstm.runtime.backend import choose

__all__ = ["WKV4State", "wkv4", "wkv4_recurrent"]


def wkv4(
    k_BTE: Tensor,
    v_BTE: Tensor,
    w_E: Tensor,
    u_E: Tensor,
    state: WKV4State | None = None,
    /,
    *,
    reset_BT: Tensor | None = None,
    lengths_B: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, WKV4State]:
    """A sequence through the recurrence; any T >= 1, also one step.

    k: [B, T, E] logarithms of weights. v: [B, T, E]. w: [E] logarithm of what a step leaves of a weight, at most 0.
    u: [E] what is added to the key of the step itself. All in any float dtype.
    state: sums before the first step, None for zeros. reset_BT (bool): sums count as zero before that step.
    lengths_B (int): steps at or beyond a row's length leave its state alone and give 0, whatever is there.
    backend: "auto", "numba" (float32 on a CPU), "chunkwise" (any device and dtype), both with a hand-written backward,
    or "recurrent" (the definition).

    Returns y [B, T, E] in v's dtype and the state after the last step, float32 or wider.
    Raises ValueError for shapes that do not fit and for a backend that cannot run.
    """
    B, T, E = v_BTE.shape
    for name, x, shape in (("k", k_BTE, (B, T, E)), ("w", w_E, (E,)), ("u", u_E, (E,))):
        check_like(name, x, shape, v_BTE)
    reset_BT, lengths_B = checked_rows(v_BTE, reset_BT, lengths_B)
    state = checked_state(state, WKV4State, [(B, E)] * 3, v_BTE)
    inputs = k_BTE, v_BTE, w_E, u_E
    candidates = [
        ("numba", cpu_kernel_obstacle((*inputs, *state), float32_only=True)),
        ("chunkwise", chunk_obstacle(T, backend)),
        ("recurrent", None),
    ]
    name = choose("wkv4", backend, candidates, (*inputs, *state))
    if name == "numba":
        from exlstm.ops.wkv4.numba.op import wkv4_numba

        return wkv4_numba(*inputs, state, reset_BT, lengths_B)
    reset_BT, valid_BT = row_masks(reset_BT, lengths_B, T)
    run = wkv4_chunkwise if name == "chunkwise" else wkv4_recurrent
    with without_autocast(v_BTE):
        y_BTE, state = run(*inputs, state, reset_BT=reset_BT, valid_BT=valid_BT)
    return y_BTE.to(v_BTE.dtype), state
