"""Causal attention of one head with learned biases of distances, within the chunks of a grid or over all steps: Mega's.

`reference` is the definition (Ma et al. 2022, arXiv:2209.10655), `chunkwise` the form for whole sequences, `numba` a
step of decoding within chunks.

B batch  T time  S cached steps  P the same afterwards  A all keys  K key width  V value width  R distances with a bias
"""

import torch
from torch import Tensor
from torch.nn.functional import pad

from exlstm.ops.arguments import check_like, checked_rows, exact_in, misfit
from exlstm.ops.chunk_attention.chunkwise import cache_after, chunk_attention_chunkwise
from exlstm.ops.chunk_attention.reference import (
    AttentionFunction,
    ChunkState,
    WholeState,
    chunk_attention_recurrent,
    seen_alone,
)
from exlstm.ops.common import length_mask, row_masks, upcast, wide_dtype, without_autocast, zero_padding
from exlstm.ops.positions import positions
from exlstm.runtime.availability import single_step_obstacle, widened_kernel_obstacle
from exlstm.runtime.backend import choose

__all__ = [
    "AttentionFunction",
    "ChunkState",
    "WholeState",
    "chunk_attention",
    "chunk_attention_flops",
    "chunk_attention_recurrent",
]


def chunk_attention(
    q_BTK: Tensor,
    k_BTK: Tensor,
    v_BTV: Tensor,
    bias_R: Tensor,
    state: ChunkState | WholeState | None = None,
    /,
    *,
    chunk: int | None,
    function: AttentionFunction = "softmax",
    reset_BT: Tensor | None = None,
    lengths_B: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, ChunkState | WholeState]:
    """Every step sees itself and the steps before it in its chunk; computed wide, any T >= 1.

    q, k: [B, T, K]; v: [B, T, V]; bias: [R], of distances 0 to R - 1, the last one of all that are farther.
    chunk: steps of a chunk, counted from a row's beginning; None: a step sees all steps before it.
    function: of a product of query and key, "softmax" or "laplace".
    state: the cache of an earlier call, None for the empty one. A ChunkState has chunk - 1 entries at any length, a
    WholeState grows with T.
    reset_BT (bool): a chunk begins at that step, which sees nothing before it. What is forgotten is masked: it must be
    finite. lengths_B (int): steps at or beyond a row's length leave its state alone and give 0, whatever is there.
    backend: "auto", "numba" (one step within chunks, float32 on a CPU, without gradients), "chunkwise" (any device and
    dtype, whose gradients are torch's) or "recurrent" (the definition).

    Returns o [B, T, V] in v's dtype and the state after the last step, float32 or wider.
    Raises ValueError for shapes that do not fit and for a backend that cannot run.
    """
    (B, T, K), V = q_BTK.shape, v_BTV.shape[-1]
    reset_BT, lengths_B = checked_rows(q_BTK, reset_BT, lengths_B)
    for label, x, shape in (
        ("k", k_BTK, (B, T, K)),
        ("v", v_BTV, (B, T, V)),
        ("bias", bias_R, tuple(bias_R.shape[:1])),
    ):
        check_like(label, x, shape, q_BTK)
    if function not in ("softmax", "laplace"):
        raise ValueError(f"function is {function!r}; it must be 'softmax' or 'laplace'.")
    aligned = state is None and reset_BT is None
    cache = checked_cache(state, q_BTK, V, chunk)
    tensors = q_BTK, k_BTK, v_BTV, bias_R, *cache[:2]
    whole = None if chunk is not None else "it is for chunks"
    candidates = [
        ("numba", widened_kernel_obstacle(tensors, whole or single_step_obstacle(tensors, T))),
        ("chunkwise", None),
        ("recurrent", None),
    ]
    name = choose("chunk_attention", backend, candidates, tensors)
    wide = upcast(q_BTK), upcast(k_BTK), upcast(v_BTV), bias_R.to(wide_dtype(q_BTK.dtype))
    if name == "numba":
        from exlstm.ops.chunk_attention.numba import chunk_attention_numba

        o_BTV, cache = chunk_attention_numba(*wide, cache, function=function, reset_BT=reset_BT, lengths_B=lengths_B)
    else:
        run = in_blocks if name == "chunkwise" else in_steps
        with without_autocast(q_BTK):
            o_BTV, cache = run(*wide, cache, chunk, function, aligned, reset_BT, lengths_B)
    return o_BTV.to(v_BTV.dtype), WholeState(*cache) if chunk is None else cache


def in_blocks(
    q_BTK: Tensor,
    k_BTK: Tensor,
    v_BTV: Tensor,
    bias_R: Tensor,
    cache: ChunkState,
    chunk: int | None,
    function: AttentionFunction,
    aligned: bool,
    reset_BT: Tensor | None,
    lengths_B: Tensor | None,
) -> tuple[Tensor, ChunkState]:
    """The form for whole sequences, with zeros in the padding of its input and of its output."""
    T = q_BTK.shape[1]
    reset_BT, valid_BT = row_masks(reset_BT, lengths_B, T)
    if valid_BT is not None:
        q_BTK, k_BTK, v_BTV = (zero_padding(x, valid_BT) for x in (q_BTK, k_BTK, v_BTV))
    position_BT, _ = positions(cache.seen_B, T, reset_BT)
    if chunk is not None:
        position_BT = position_BT % chunk
    k_BAK = torch.cat([seen_alone(cache.past_k_BSK, cache.seen_B), k_BTK], dim=1)
    v_BAV = torch.cat([seen_alone(cache.past_v_BSV, cache.seen_B), v_BTV], dim=1)
    o_BTV = chunk_attention_chunkwise(
        q_BTK, k_BAK, v_BAV, bias_R, position_BT, chunk=chunk, aligned=aligned, function=function
    )
    after = cache_after(k_BAK, v_BAV, position_BT, cache.seen_B, chunk, lengths_B)
    return o_BTV if valid_BT is None else zero_padding(o_BTV, valid_BT), after


def in_steps(
    q_BTK: Tensor,
    k_BTK: Tensor,
    v_BTV: Tensor,
    bias_R: Tensor,
    cache: ChunkState,
    chunk: int | None,
    function: AttentionFunction,
    _aligned: bool,
    reset_BT: Tensor | None,
    lengths_B: Tensor | None,
) -> tuple[Tensor, ChunkState]:
    """The definition; without chunks that of a chunk which the call does not fill."""
    T, seen_B = q_BTK.shape[1], cache.seen_B
    more = T if chunk is None else 0
    k_BPK, v_BPV = (pad(seen_alone(x, seen_B), (0, 0, more, 0)) for x in cache[:2])
    return chunk_attention_recurrent(
        q_BTK,
        k_BTK,
        v_BTV,
        bias_R,
        ChunkState(k_BPK, v_BPV, seen_B),
        chunk=k_BPK.shape[1] + 1,
        function=function,
        reset_BT=reset_BT,
        valid_BT=None if lengths_B is None else length_mask(lengths_B, T),
    )


def empty_cache(like: Tensor, batch: int, key: int, value: int, chunk: int | None) -> ChunkState:
    """The cache before the first step, on the device of `like`, in its dtype."""
    S = 0 if chunk is None else chunk - 1
    new = like.new_zeros
    return ChunkState(new(batch, S, key), new(batch, S, value), new(batch, dtype=torch.int64))


def checked_cache(state: ChunkState | WholeState | None, q_BTK: Tensor, V: int, chunk: int | None) -> ChunkState:
    """The state in float32 or wider. ValueError for another type, shape or device, and for numbers that are wider."""
    (B, _, K), dtype, device = q_BTK.shape, wide_dtype(q_BTK.dtype), q_BTK.device
    kind = WholeState if chunk is None else ChunkState
    if state is None:
        return empty_cache(q_BTK.new_empty(0, dtype=dtype), B, K, V, chunk)
    if not isinstance(state, kind):
        raise ValueError(f"the state is a {type(state).__name__}; it must be the {kind.__name__} of an earlier call.")
    S = state[0].shape[1] if chunk is None and state[0].ndim == 3 else (chunk or 1) - 1
    for label, x, shape in zip(kind._fields, state, ((B, S, K), (B, S, V), (B,)), strict=True):
        wanted = torch.int64 if len(shape) == 1 else dtype
        if x.shape != shape or x.device != device or not exact_in(x.dtype, wanted):
            raise misfit(f"{label} of the state", x, wanted, shape, device)
    return ChunkState(state[0].to(dtype), state[1].to(dtype), state[2])


def chunk_attention_flops(mode: str, length: int, chunk: int | None, widths: int) -> float:
    """FLOPs per token for keys and values of `widths` channels together: at `length` steps, or in "prefill" of so many.

    Within chunks half a chunk is seen on average.
    """
    seen = length if mode == "decode" else (length + 1) / 2
    return 2.0 * widths * min(seen, length if chunk is None else (chunk + 1) / 2)
