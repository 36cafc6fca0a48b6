"""Causal softmax attention, by default with rotary positions and over all steps. Its state is a cache.

Without a window the cache grows with time. `reference` is in torch, `numba` is a decoding step with a window.

B batch  T time  S cached steps  H query heads  G key and value heads  K head width
"""

import torch
from torch import Tensor

from exlstm.ops.arguments import checked_rows, exact_in, misfit
from exlstm.ops.attention.reference import AttentionState, WindowState, attention_torch, newest
from exlstm.runtime.availability import single_step_obstacle, widened_kernel_obstacle
from exlstm.runtime.backend import choose

__all__ = ["AttentionState", "WindowState", "attention", "empty_cache", "empty_window"]


def attention(
    q_BTHK: Tensor,
    k_BTGK: Tensor,
    v_BTGK: Tensor,
    state: AttentionState | WindowState | None = None,
    /,
    *,
    reset_BT: Tensor | None = None,
    lengths_B: Tensor | None = None,
    window: int | None = None,
    rope_base: float | None = 10_000.0,
    rope_share: float = 1.0,
    backend: str = "auto",
) -> tuple[Tensor, AttentionState | WindowState]:
    """Every step sees itself and the steps before it in its row (the last `window` of them, itself included).

    q: [B, T, H, K]; k, v: [B, T, G, K], H a multiple of G. reset_BT: what came before that step is forgotten, and
    positions restart. lengths_B: steps at or beyond a row's length are seen by none, and give h = 0, whatever is there.
    rope_base, rope_share: base and share of `rope`; a base of None rotates nothing.
    backend: "auto", "numba" (one step with a window, up to float32 on a CPU, without gradients) or "torch".
    A WindowState of S entries without a window is a cache with room, as decoding has it: the window is S + 1 then.
    Returns h [B, T, H, K] and the state: an AttentionState that grows with T, or a WindowState of window - 1 entries.
    Raises ValueError for a state, reset_BT or lengths_B that does not fit q, k and v, and a backend that cannot run.
    """
    reset_BT, lengths_B = checked_rows(q_BTHK, reset_BT, lengths_B)
    if window is None and isinstance(state, WindowState) and state.k_BSGK.ndim == 4:
        window = state.k_BSGK.shape[1] + 1
    if state is not None:
        check_cache(state, k_BTGK, window)
    inputs, cache = (q_BTHK, k_BTGK, v_BTGK), () if state is None else state[:2]
    whole = "there is no window, which it needs" if window is None else None
    other = whole or single_step_obstacle((*inputs, *cache), q_BTHK.shape[1])
    if other is None and k_BTGK.dtype is torch.bfloat16 and k_BTGK.shape[-1] % 2:
        other = "in bfloat16 it takes heads of even width"
    obstacle = widened_kernel_obstacle((*inputs, *cache), other)
    rows = {"reset_BT": reset_BT, "lengths_B": lengths_B}
    name = choose("attention", backend, [("numba", obstacle), ("torch", None)], (*inputs, *cache))
    if window is not None and name == "numba":
        from exlstm.ops.attention.numba import attention_numba

        before = state if isinstance(state, WindowState) else empty_window(k_BTGK, window)
        return attention_numba(q_BTHK, k_BTGK, v_BTGK, before, **rows, rope_base=rope_base, rope_share=rope_share)
    entries = state.entries() if isinstance(state, WindowState) else state or empty_cache(k_BTGK)
    h_BTHK, after = attention_torch(
        q_BTHK, k_BTGK, v_BTGK, entries, **rows, window=window, rope_base=rope_base, rope_share=rope_share
    )
    return h_BTHK, after if window is None else newest(after, window - 1, ragged=lengths_B is not None)


def empty_cache(k_BTGK: Tensor) -> AttentionState:
    """The cache before the first step without a window, for keys like these."""
    (B, _, G, K), new = k_BTGK.shape, k_BTGK.new_zeros
    positions_BS, next_B = new(B, 0, dtype=torch.int64), new(B, dtype=torch.int64)
    return AttentionState(new(B, 0, G, K), new(B, 0, G, K), positions_BS, next_B)


def empty_window(k_BTGK: Tensor, window: int) -> WindowState:
    """The cache before the first step with a window, for keys like these."""
    (B, _, G, K), S, new = k_BTGK.shape, window - 1, k_BTGK.new_zeros
    return WindowState(new(B, S, G, K), new(B, S, G, K), new(B, dtype=torch.int64))


def check_cache(state: AttentionState | WindowState, k_BTGK: Tensor, window: int | None) -> None:
    """ValueError for a state of another type, shape or device than keys like these need, or of wider numbers.

    Under autocast the cache may be wider: autocast rounds it before the product.
    """
    kind = AttentionState if window is None else WindowState
    if not isinstance(state, kind):
        raise ValueError(f"the state is a {type(state).__name__}; it must be the {kind.__name__} of an earlier call.")
    (B, _, G, K), dtype, device = k_BTGK.shape, k_BTGK.dtype, k_BTGK.device
    S = state.k_BSGK.shape[1] if window is None and state.k_BSGK.ndim == 4 else (window or 1) - 1
    rounded = torch.is_autocast_enabled(device.type)
    shapes = {"k_BSGK": (B, S, G, K), "v_BSGK": (B, S, G, K), "position_BS": (B, S), "next_B": (B,)}
    for name, x in zip(kind._fields, state, strict=True):
        shape = shapes[name]
        number = dtype if len(shape) == 4 else torch.int64
        if (
            x.shape != shape
            or x.device != device
            or not (exact_in(x.dtype, number) or (rounded and x.is_floating_point() and len(shape) == 4))
        ):
            raise misfit(f"{name} of the state", x, number, shape, device)
