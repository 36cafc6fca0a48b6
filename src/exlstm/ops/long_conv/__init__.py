"""Long causal convolutions, one filter of R taps per channel: y_t = sum_l taps_l u_{t-l}, as in Hyena.

Their state is the cache of the last R - 1 inputs: there is no smaller one that is exact. `reference` is the definition,
`chunkwise` products with blocks of Toeplitz matrices, `fft` Fourier transforms, `numba` a step of decoding.

B batch  T time  S cached steps  A cached and new steps  E channels  R taps
"""

from math import log2
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from exlstm.ops.arguments import checked_rows, exact_in, misfit
from exlstm.ops.common import row_masks, upcast, wide_dtype, without_autocast, zero_padding
from exlstm.ops.long_conv.chunkwise import long_conv_chunkwise
from exlstm.ops.long_conv.fft import long_conv_fft
from exlstm.ops.long_conv.reference import LongConvState, long_conv_recurrent, seen_alone
from exlstm.ops.long_conv.segments import cache_after
from exlstm.runtime.availability import single_step_obstacle, widened_kernel_obstacle
from exlstm.runtime.backend import choose
from exlstm.runtime.tracing import tracer

__all__ = ["LongConvState", "long_conv", "long_conv_flops", "long_conv_recurrent"]
LONG = 256  # steps of a window from which transforms are faster than products


def long_conv(
    u_BTE: Tensor,
    taps_RE: Tensor,
    state: LongConvState | None = None,
    /,
    *,
    reset_BT: Tensor | None = None,
    lengths_B: Tensor | None = None,
    filter_len: int | None = None,
    backend: str = "auto",
) -> tuple[Tensor, LongConvState]:
    """A sequence through the filters, computed wide; any T >= 1.

    u: [B, T, E]; taps: [R, E], of which tap l meets the input l steps before. Both in any float dtype.
    filter_len: the number of taps of the whole filter, of which `taps` may be the first ones: as many as there are
    cached and new steps will do. None: R.
    state: the cache of an earlier call, None for the empty one. Its size grows with T, up to filter_len - 1 entries.
    reset_BT (bool): inputs before that step count as zero from there on. lengths_B (int): steps at or beyond a row's
    length leave its state alone and give 0, whatever is there.
    backend: "auto", "numba" (one step, float32 on a CPU, without gradients), "chunkwise" (bit by bit causal; cost grows
    with the window), "fft" (causal up to rounding; "auto" takes it for windows beyond 256 steps), both with a
    hand-written backward, or "recurrent" (the definition).

    Returns y [B, T, E] in u's dtype and the state after the last step, float32 or wider.
    Raises ValueError for shapes that do not fit and for a backend that cannot run.
    """
    B, T, E = u_BTE.shape
    R = len(taps_RE)
    reset_BT, lengths_B = checked_rows(u_BTE, reset_BT, lengths_B)
    limit = R if filter_len is None else filter_len
    state = checked_cache(state, u_BTE, limit)
    S, tensors = state.u_BSE.shape[1], (u_BTE, taps_RE, state.u_BSE)
    least = max(1, min(limit, S + T))
    if taps_RE.ndim != 2 or taps_RE.shape[1] != E or least > R or not exact_in(taps_RE.dtype, wide_dtype(u_BTE.dtype)):
        raise misfit("taps", taps_RE, wide_dtype(u_BTE.dtype), (least, E), u_BTE.device)
    traced = None
    if reset_BT is not None and tracer() is not None:
        traced = "it has a row for each segment, and torch traces this call, without these numbers"
    long = f"windows of more than {LONG} steps are faster by transforms" if min(R, S + T) > LONG else None
    candidates = [
        ("numba", widened_kernel_obstacle(tensors, single_step_obstacle(tensors, T))),
        ("chunkwise", traced or (long if backend == "auto" else None)),
        ("fft", traced),
        ("recurrent", None),
    ]
    name = choose("long_conv", backend, candidates, tensors)
    if name == "numba":
        from exlstm.ops.long_conv.numba import long_conv_numba

        y_BTE, state = long_conv_numba(
            upcast(u_BTE), upcast(taps_RE), state, limit, reset_BT=reset_BT, lengths_B=lengths_B
        )
    else:
        with without_autocast(u_BTE):
            y_BTE, state = in_torch(name, upcast(u_BTE), upcast(taps_RE), state, limit, reset_BT, lengths_B)
    return y_BTE.to(u_BTE.dtype), state


def in_torch(
    name: str,
    u_BTE: Tensor,
    taps_RE: Tensor,
    state: LongConvState,
    filter_len: int,
    reset_BT: Tensor | None,
    lengths_B: Tensor | None,
) -> tuple[Tensor, LongConvState]:
    """The form of this name in plain torch, with zeros in the padding of its input and of its output."""
    (reset_BT, valid_BT), S = row_masks(reset_BT, lengths_B, u_BTE.shape[1]), state.u_BSE.shape[1]
    if valid_BT is not None:
        u_BTE = zero_padding(u_BTE, valid_BT)
    if name == "recurrent":
        whole = pad(taps_RE, (0, 0, 0, max(0, filter_len - len(taps_RE))))
        return long_conv_recurrent(u_BTE, whole, state, reset_BT=reset_BT, valid_BT=valid_BT)
    x_BAE = torch.cat([seen_alone(state), u_BTE], dim=1) if S else u_BTE
    # torch transforms no batch without rows
    run: Any = long_conv_chunkwise if name == "chunkwise" or len(x_BAE) == 0 else long_conv_fft
    y_BTE = run(x_BAE, taps_RE, S, reset_BT)
    after = cache_after(x_BAE, S, state.seen_B, filter_len, reset_BT, lengths_B)
    return y_BTE if valid_BT is None else zero_padding(y_BTE, valid_BT), after


def long_conv_flops(mode: str, length: int, taps: int) -> float:
    """FLOPs per channel and token: in "decode" after `length` steps, or in "prefill" of so many."""
    window = min(length, taps)
    if mode == "decode":
        return 2.0 * window
    return float(window) if window <= LONG else 15.0 * log2(2 * length)


def checked_cache(state: LongConvState | None, u_BTE: Tensor, taps: int) -> LongConvState:
    """The state in float32 or wider. ValueError for another type, shape or device, and for numbers that are wider."""
    (B, _, E), dtype, device = u_BTE.shape, wide_dtype(u_BTE.dtype), u_BTE.device
    if state is None:
        return LongConvState(u_BTE.new_zeros((B, 0, E), dtype=dtype), u_BTE.new_zeros(B, dtype=torch.int64))
    if not isinstance(state, LongConvState):
        raise ValueError(f"the state is a {type(state).__name__}; it must be the LongConvState of an earlier call.")
    u_BSE, seen_B = state
    S = min(u_BSE.shape[1], taps - 1) if u_BSE.ndim == 3 else 0
    if u_BSE.shape != (B, S, E) or u_BSE.device != device or not exact_in(u_BSE.dtype, dtype):
        raise misfit("u_BSE of the state", u_BSE, dtype, (B, S, E), device)
    if seen_B.shape != (B,) or seen_B.device != device or seen_B.dtype is not torch.int64:
        raise misfit("seen_B of the state", seen_B, torch.int64, (B,), device)
    return LongConvState(u_BSE.to(dtype), seen_B)
