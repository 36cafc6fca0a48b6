"""Diagonal linear time-invariant state spaces, a system per channel: S4D, DSS, the recurrences of GSS, BiGS and H3.

`reference` is the definition (Gu et al. 2022, arXiv:2206.11893, for the parameters), `chunkwise` a few batched products
for whole sequences, `numba` the recurrence with its states in registers.

B batch  T time  E channels  Z states  P channels that poles are given for (E or 1)  R the same of c
"""

from collections.abc import Callable

import torch
from torch import Tensor

from exlstm.ops.arguments import State, check_like, checked_rows, checked_state
from exlstm.ops.common import row_masks, upcast, wide_dtype, without_autocast, zero_padding
from exlstm.ops.lti.chunkwise import lti_chunkwise
from exlstm.ops.lti.columns import CHUNK
from exlstm.ops.lti.reference import Discretization, LTIParameters, LTIState, discretized, lti_recurrent
from exlstm.runtime.availability import chunk_obstacle, widened_kernel_obstacle
from exlstm.runtime.backend import choose
from exlstm.runtime.tracing import has_gradients, tracer

__all__ = ["Discretization", "LTIParameters", "LTIState", "lti", "lti_flops", "lti_recurrent"]


def lti(
    u_BTE: Tensor,
    parameters: LTIParameters,
    state: LTIState | None = None,
    /,
    *,
    method: Discretization = "zoh",
    reset_BT: Tensor | None = None,
    lengths_B: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, LTIState]:
    """A sequence through the systems, h_t = a h_{t-1} + u_t, y_t = Re(sum_z c_z b_z h_t[z]) + skip u_t; any T >= 1.

    u: [B, T, E]. The parameters, of which one row stands for all channels: log_re, im [E, Z] or [1, Z], poles
    -exp(log_re) + i im; log_dt [E] or [1], as many as poles, or None for a step size of 1; c_re, c_im [E, Z] or [1, Z];
    skip [E] or [1], as many. All in any float dtype.
    state: h before the first step, None for zeros. method: "zoh" (zero-order hold) or "bilinear", which makes a and b
    from poles and step sizes.
    reset_BT (bool): h counts as zero before that step. lengths_B (int): steps at or beyond a row's length leave its
    state alone and give 0, whatever is there.
    backend: "auto", "numba" (float32 on a CPU), "chunkwise" (any device and dtype), both with a hand-written backward
    that saves u and a state for every 64 steps, or "recurrent" (the definition).

    Returns y [B, T, E] in u's dtype and the state after the last step, float32 or wider.
    Raises ValueError for shapes that do not fit and for a backend that cannot run.
    """
    B, T, E = u_BTE.shape
    check_parameters(u_BTE, parameters, method)
    Z = parameters.log_re_PZ.shape[1]
    reset_BT, lengths_B = checked_rows(u_BTE, reset_BT, lengths_B)
    state = checked_state(state, LTIState, 2 * [(B, E, Z)], u_BTE)
    tensors = u_BTE, *parameters, *state
    candidates = [
        ("numba", widened_kernel_obstacle(tensors)),
        ("chunkwise", column_obstacle(T, reset_BT, backend)),
        ("recurrent", None),
    ]
    name = choose("lti", backend, candidates, tensors)
    wide = widened(parameters, wide_dtype(u_BTE.dtype))
    if name == "numba":
        from exlstm.ops.lti.numba.scan import lti_numba
        from exlstm.ops.lti.numba.system import discretized_numba

        trained = has_gradients(tensors)
        system = discretized(wide, method) if trained else discretized_numba(wide, method)
        y_BTE, state = lti_numba(upcast(u_BTE), system, state, reset_BT=reset_BT, lengths_B=lengths_B)
    else:
        run = lti_chunkwise if name == "chunkwise" else lti_recurrent
        with without_autocast(u_BTE):
            y_BTE, state = in_torch(run, u_BTE, discretized(wide, method), state, reset_BT, lengths_B)
    return y_BTE.to(u_BTE.dtype), state


def in_torch(
    run: Callable[..., tuple[Tensor, State]],
    u_BTE: Tensor,
    system: tuple[Tensor, ...],
    state: State,
    reset_BT: Tensor | None,
    lengths_B: Tensor | None,
) -> tuple[Tensor, State]:
    """A form in plain torch, with zeros in the padding of its input and of its output."""
    reset_BT, valid_BT = row_masks(reset_BT, lengths_B, u_BTE.shape[1])
    u_BTE = upcast(u_BTE)
    if valid_BT is not None:
        u_BTE = zero_padding(u_BTE, valid_BT)
    y_BTE, state = run(u_BTE, system, state, reset_BT=reset_BT, lengths_B=lengths_B)
    return y_BTE if valid_BT is None else zero_padding(y_BTE, valid_BT), state


def widened(p: LTIParameters, dtype: torch.dtype) -> LTIParameters:
    """The parameters in float32 or wider."""
    log_dt_P = None if p.log_dt_P is None else p.log_dt_P.to(dtype)
    return LTIParameters(
        p.log_re_PZ.to(dtype), p.im_PZ.to(dtype), log_dt_P, p.c_re_RZ.to(dtype), p.c_im_RZ.to(dtype), p.skip_R.to(dtype)
    )


def lti_flops(mode: str, length: int, states: int) -> float:
    """FLOPs per channel and token: of the recurrence in "decode", of products in chunks in "prefill" of `length`."""
    return 8.0 * states if mode == "decode" else 2.0 * min(CHUNK, length) + 16.0 * states


def check_parameters(u_BTE: Tensor, parameters: LTIParameters, method: str) -> None:
    """ValueError for parameters that do not fit u, and for an unknown method."""
    E = u_BTE.shape[2]
    log_re_PZ, im_PZ, log_dt_P, c_re_RZ, c_im_RZ, skip_R = parameters
    if method not in ("zoh", "bilinear"):
        raise ValueError(f"method is {method!r}; it must be 'zoh' or 'bilinear'.")
    if log_re_PZ.ndim != 2 or c_re_RZ.ndim != 2 or not {len(log_re_PZ), len(c_re_RZ)} <= {1, E}:
        raise ValueError(
            f"log_re has shape {tuple(log_re_PZ.shape)} and c_re {tuple(c_re_RZ.shape)}; both must be [{E}, states], "
            "or [1, states] for all channels."
        )
    (P, Z), R = log_re_PZ.shape, len(c_re_RZ)
    for label, x, shape in (
        ("log_re", log_re_PZ, (P, Z)),
        ("im", im_PZ, (P, Z)),
        ("log_dt", log_dt_P, (P,)),
        ("c_re", c_re_RZ, (R, Z)),
        ("c_im", c_im_RZ, (R, Z)),
        ("skip", skip_R, (R,)),
    ):
        if x is not None:
            check_like(label, x, shape, u_BTE)


def column_obstacle(T: int, reset_BT: Tensor | None, backend: str) -> str | None:
    """Why sequences cannot be cut into columns, or None."""
    single = chunk_obstacle(T, backend)
    if single is None and reset_BT is not None and tracer() is not None:
        return "it has a column for each reset, and torch traces this call, without these numbers"
    return single
