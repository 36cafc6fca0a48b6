"""Damped moving averages, several per channel: linear recurrences with real, constant factors, and constant weights.

`reference` is the definition (the EMA of Ma et al. 2022, arXiv:2209.10655), `chunkwise` Toeplitz products for whole
sequences, by the products of `ops.lti` with real numbers, and `numba` a step of decoding.

B batch  T time  E channels  Z averages of a channel
"""

from torch import Tensor

from exlstm.ops.arguments import check_like, checked_rows, checked_state
from exlstm.ops.common import upcast, wide_dtype, without_autocast
from exlstm.ops.ema.chunkwise import ema_chunkwise
from exlstm.ops.ema.reference import EMAState, EMAWeights, ema_recurrent
from exlstm.ops.lti import column_obstacle, in_torch
from exlstm.ops.lti.columns import CHUNK
from exlstm.runtime.availability import single_step_obstacle, widened_kernel_obstacle
from exlstm.runtime.backend import choose

__all__ = ["EMAState", "ema", "ema_flops", "ema_recurrent"]


def ema(
    u_BTE: Tensor,
    factor_EZ: Tensor,
    weight_EZ: Tensor,
    skip_E: Tensor,
    state: EMAState | None = None,
    /,
    *,
    reset_BT: Tensor | None = None,
    lengths_B: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, EMAState]:
    """A sequence through the averages, h_t = factor h_{t-1} + u_t, y_t = sum_z weight_z h_t[z] + skip u_t; any T >= 1.

    u: [B, T, E]; factor, from 0 to 1, and weight: [E, Z]; skip: [E]. All in any float dtype.
    state: h before the first step, None for zeros. reset_BT (bool): h counts as zero before that step. lengths_B (int):
    steps at or beyond a row's length leave its state alone and give 0, whatever is there.
    backend: "auto", "numba" (one step, float32 on a CPU, without gradients), "chunkwise" (any device and dtype, with a
    hand-written backward that saves u and a state for every 64 steps), or "recurrent" (the definition).

    Returns y [B, T, E] in u's dtype and the state after the last step, float32 or wider.
    Raises ValueError for shapes that do not fit and for a backend that cannot run.
    """
    B, T, E = u_BTE.shape
    Z = factor_EZ.shape[-1]
    for label, x, shape in (("factor", factor_EZ, (E, Z)), ("weight", weight_EZ, (E, Z)), ("skip", skip_E, (E,))):
        check_like(label, x, shape, u_BTE)
    reset_BT, lengths_B = checked_rows(u_BTE, reset_BT, lengths_B)
    state = checked_state(state, EMAState, [(B, E, Z)], u_BTE)
    tensors = u_BTE, factor_EZ, weight_EZ, skip_E, *state
    candidates = [
        ("numba", widened_kernel_obstacle(tensors, single_step_obstacle(tensors, T))),
        ("chunkwise", column_obstacle(T, reset_BT, backend)),
        ("recurrent", None),
    ]
    name = choose("ema", backend, candidates, tensors)
    weights = EMAWeights(*(x.to(wide_dtype(u_BTE.dtype)) for x in (factor_EZ, weight_EZ, skip_E)))
    if name == "numba":
        from exlstm.ops.ema.numba import ema_numba

        y_BTE, state = ema_numba(upcast(u_BTE), weights, state, reset_BT=reset_BT, lengths_B=lengths_B)
    else:
        run = ema_chunkwise if name == "chunkwise" else ema_recurrent
        with without_autocast(u_BTE):
            y_BTE, state = in_torch(run, u_BTE, weights, state, reset_BT, lengths_B)
    return y_BTE.to(u_BTE.dtype), state


def ema_flops(mode: str, length: int, averages: int) -> float:
    """FLOPs per channel and token: of the recurrence in "decode", of products in chunks in "prefill" of `length`."""
    return 4.0 * averages if mode == "decode" else 2.0 * min(CHUNK, length) + 8.0 * averages
