"""Linear attention: a matrix of keys times values, read by queries, with a decay per head or with a normalizer.

It is the mLSTM at a fixed unit of measure, so the mLSTM's forms over chunks run here. With input gates of log i = 0 and
forget gates of log f = g <= 0, its m is 0 at every step. With log i = m = 60 and log f = 0 the floor of its normalizer,
e^-60, is below any sum of weights, and every exponent is 0 as before. `reference` is the definition, `numba` one step.

B batch  T time  G groups of heads  H heads  K key width  V value width
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from exlstm.ops.arguments import check_like, checked_rows, checked_state
from exlstm.ops.common import length_mask, row_masks, upcast, without_autocast, zero_padding
from exlstm.ops.linear_attention.reference import (
    LinearAttentionState,
    NormalizedState,
    linear_attention_recurrent,
    normalized_recurrent,
)
from exlstm.ops.mlstm import ForgetGate, MLSTMState, mlstm
from exlstm.runtime.availability import chunk_obstacle, widened_kernel_obstacle
from exlstm.runtime.backend import choose
from exlstm.runtime.gpu.limits import gpu_candidate
from exlstm.runtime.tracing import has_gradients

__all__ = ["LinearAttentionState", "NormalizedState", "linear_attention", "normalized_linear_attention"]

NORMALIZED_UNIT = 60.0  # nats
SMALL_DECAY = -1e-30  # a decay of 0 as a sigmoid gate has it, whose pre-activation would be infinite


def linear_attention(
    q_BTGK: Tensor,
    k_BTGK: Tensor,
    v_BTHV: Tensor,
    g: Tensor | None = None,
    state: LinearAttentionState | None = None,
    /,
    *,
    write_BTH: Tensor | None = None,
    reset_BT: Tensor | None = None,
    lengths_B: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, LinearAttentionState]:
    """A sequence through S_t = e^{g_t} S_{t-1} + w_t k_t v_t^T, o_t = S_t^T q_t; any T >= 1, also one step.

    q, k: [B, T, G, K], not scaled here; each of G groups is shared by H / G heads next to one another. v: [B, T, H, V].
    g: log decays of every step [B, T, H], or of every head [H], or None for no decay; above 0 they count as 0.
    write_BTH: w, None for 1. state: S before the first step, None for zeros. reset_BT (bool): S counts as zero before
    that step. lengths_B (int): steps at or beyond a row's length leave its state alone and give 0, whatever is there.
    backend: "auto", "numba" (float32 on a CPU), "triton" (a GPU, up to float32), "chunkwise" (any device and dtype),
    all with the mLSTM's hand-written backward and memory linear in T, or "recurrent" (the definition).

    Returns o [B, T, H, V] in v's dtype and the state after the last step, float32 or wider.
    Raises ValueError for shapes that do not fit and for a backend that cannot run.
    """
    reset_BT, lengths_B = checked_rows(q_BTGK, reset_BT, lengths_B)
    B, T, H, K, V = checked_sizes(q_BTGK, k_BTGK, v_BTHV)
    if g is not None and g.ndim != 1:
        check_like("g", g, (B, T, H), q_BTGK)
    elif g is not None:
        check_like("g", g, (H,), q_BTGK)
    if write_BTH is not None:
        check_like("write", write_BTH, (B, T, H), q_BTGK)
    state = checked_state(state, LinearAttentionState, [(B, H, K, V)], q_BTGK)
    tensors = [x for x in (q_BTGK, k_BTGK, v_BTHV, g, write_BTH, state.s_BHKV) if x is not None]
    name, one_step = pick("linear_attention", tensors, backend)
    if one_step and name == "numba":
        from exlstm.ops.linear_attention.numba import linear_attention_step_numba

        x = q_BTGK, k_BTGK, v_BTHV, g, write_BTH
        o_BTHV, s_BHKV = linear_attention_step_numba(*x, state.s_BHKV, reset_BT, lengths_B)
        return o_BTHV, LinearAttentionState(s_BHKV)
    g_BTH = (upcast(q_BTGK).new_zeros(()) if g is None else upcast(g).clamp(max=0)).expand(B, T, H)
    x_BTHV = v_BTHV if write_BTH is None else written(v_BTHV, write_BTH, lengths_B, name)
    k_BTHK = expanded(k_BTGK, H)
    if name == "recurrent":
        inputs = expanded(q_BTGK, H), k_BTHK, x_BTHV, g_BTH
        o_BTHV, state = stepwise(linear_attention_recurrent, inputs, state, reset_BT, lengths_B)
        return o_BTHV.to(v_BTHV.dtype), state
    q_BTHK = expanded(scaled(q_BTGK, K**0.5, name), H)  # the mLSTM divides by it
    zeros = state.s_BHKV.new_zeros
    before = MLSTMState(state.s_BHKV, zeros(B, H, K), zeros(B, H))
    rows = {"reset_BT": reset_BT, "lengths_B": lengths_B}
    o_BTHV, after = through_mlstm(q_BTHK, k_BTHK, x_BTHV, g_BTH, before, name, normalize=False, **rows)
    return o_BTHV.to(v_BTHV.dtype), LinearAttentionState(after.c_BHKV)


def normalized_linear_attention(
    q_BTHK: Tensor,
    k_BTHK: Tensor,
    v_BTHV: Tensor,
    state: NormalizedState | None = None,
    /,
    *,
    eps: float = 1e-6,
    reset_BT: Tensor | None = None,
    lengths_B: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, NormalizedState]:
    """Means of the values so far, weighed by products of features: S^T q / (|n . q| + eps) of the sums S and n.

    q, k: [B, T, H, K] features of queries and keys. v: [B, T, H, V]. state: S and n before the first step, None for
    zeros. All else is as in `linear_attention`.
    """
    reset_BT, lengths_B = checked_rows(q_BTHK, reset_BT, lengths_B)
    B, T, H, K, V = checked_sizes(q_BTHK, k_BTHK, v_BTHV)
    check_like("q", q_BTHK, (B, T, H, K), q_BTHK)
    state = checked_state(state, NormalizedState, [(B, H, K, V), (B, H, K)], q_BTHK)
    name, one_step = pick("normalized_linear_attention", [q_BTHK, k_BTHK, v_BTHV, *state], backend)
    if one_step and name == "numba":
        from exlstm.ops.linear_attention.numba import normalized_step_numba

        x, rows = (q_BTHK, k_BTHK, v_BTHV), (reset_BT, lengths_B)
        o_BTHV, s_BHKV, n_BHK = normalized_step_numba(*x, *state, *rows, eps=eps)
        return o_BTHV, NormalizedState(s_BHKV, n_BHK)
    if name == "recurrent":
        inputs = q_BTHK, k_BTHK, v_BTHV
        o_BTHV, state = stepwise(normalized_recurrent, inputs, state, reset_BT, lengths_B, eps=eps)
        return o_BTHV.to(v_BTHV.dtype), state
    g_BTH = upcast(q_BTHK).new_zeros(()).expand(B, T, H)
    before = MLSTMState(*state, state.n_BHK.new_full((B, H), NORMALIZED_UNIT))
    # the mLSTM divides the numerator and the sum of weights by sqrt(K)
    o_BTHV, after = through_mlstm(
        q_BTHK,
        k_BTHK,
        v_BTHV,
        g_BTH,
        before,
        name,
        normalize=True,
        eps=eps * K**-0.5,
        reset_BT=reset_BT,
        lengths_B=lengths_B,
    )
    return o_BTHV.to(v_BTHV.dtype), NormalizedState(after.c_BHKV, after.n_BHK)


def checked_sizes(q_BTGK: Tensor, k_BTGK: Tensor, v_BTHV: Tensor) -> tuple[int, int, int, int, int]:
    """B, T, H, K, V; ValueError for a k or v that does not fit q, and for heads that do not divide into groups."""
    (B, T, G, K), (H, V) = q_BTGK.shape, v_BTHV.shape[2:]
    check_like("k", k_BTGK, (B, T, G, K), q_BTGK)
    check_like("v", v_BTHV, (B, T, H, V), q_BTGK)
    if H % G:
        raise ValueError(f"q has {G} groups; they must divide the {H} heads of v.")
    return B, T, H, K, V


def pick(op: str, tensors: list[Tensor], backend: str) -> tuple[str, bool]:
    """The form that runs on these tensors, q first, and whether they are one step without gradients."""
    T = tensors[0].shape[1]
    one_step = T == 1 and not has_gradients(tensors)
    no_chunk = chunk_obstacle(T, backend)
    candidates = [
        ("numba", widened_kernel_obstacle(tuple(tensors))),
        *gpu_candidate(tensors, backend, None if one_step else no_chunk),
        ("chunkwise", no_chunk),
        ("recurrent", None),
    ]
    return choose(op, backend, candidates, tensors, portable=("chunkwise",)), one_step


def expanded(x_BTGK: Tensor, H: int) -> Tensor:
    """Queries or keys of every head, [B, T, H, K]: without a copy if all heads share them, or each has its own."""
    B, T, G, K = x_BTGK.shape
    return x_BTGK[:, :, :, None].expand(B, T, G, H // G, K).flatten(2, 3)


def scaled(x: Tensor, factor: Tensor | float, backend: str) -> Tensor:
    """`x` times a factor, wide; but Triton's products take tensors of one dtype."""
    y = upcast(x) * factor
    return y.to(x.dtype) if backend == "triton" else y


def written(v_BTHV: Tensor, write_BTH: Tensor, lengths_B: Tensor | None, backend: str) -> Tensor:
    """Values times the strength of their writes. Padding is zero in both, for either may be NaN there."""
    if lengths_B is not None:
        valid_BT = length_mask(lengths_B, v_BTHV.shape[1])
        v_BTHV, write_BTH = zero_padding(v_BTHV, valid_BT), zero_padding(write_BTH, valid_BT)
    return scaled(v_BTHV, upcast(write_BTH)[..., None], backend)


def stepwise(
    run: Callable[..., tuple[Tensor, Any]],
    inputs: tuple[Tensor, ...],
    state: Any,
    reset_BT: Tensor | None,
    lengths_B: Tensor | None,
    **options: Any,
) -> tuple[Tensor, Any]:
    """The definition `run`, which takes resets and a mask of what is no padding."""
    reset_BT, valid_BT = row_masks(reset_BT, lengths_B, inputs[0].shape[1])
    with without_autocast(inputs[0]):
        return run(*inputs, state, reset_BT=reset_BT, valid_BT=valid_BT, **options)


def through_mlstm(
    q_BTHK: Tensor, k_BTHK: Tensor, v_BTHV: Tensor, g_BTH: Tensor, state: MLSTMState, backend: str, **options: Any
) -> tuple[Tensor, MLSTMState]:
    """The mLSTM with the decays g. Its input gate is e^m of a state with a normalizer, and else 1."""
    unit = NORMALIZED_UNIT if options["normalize"] else 0.0
    i_BTH = g_BTH.new_full((), unit).expand(g_BTH.shape)
    gate: ForgetGate = "sigmoid" if backend == "triton" else "exp"
    f_BTH = sigmoid_gate(g_BTH) if backend == "triton" else g_BTH
    return mlstm(q_BTHK, k_BTHK, v_BTHV, i_BTH, f_BTH, state, forget_gate=gate, backend=backend, **options)


def sigmoid_gate(g: Tensor) -> Tensor:
    """The f whose sigmoid is e^g, for g <= 0: -log(e^-g - 1). Its gradient is right at g = 0 too."""
    near = g + (g.clamp(max=SMALL_DECAY) - g).detach()  # the clamp in value, the identity in gradient
    return near - torch.log(-torch.expm1(near))
