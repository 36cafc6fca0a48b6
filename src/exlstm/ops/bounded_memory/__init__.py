"""A memory of bounded size that softmax reads: slots with a key and a value each (ABC, GSA, causal Linformer).

`reference` is the definition, `composed` two linear attentions with softmax in between, `numba` one decoding step.

B batch  T time  H heads  K key width  V value width  Q slots
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from exlstm.ops.arguments import check_like, checked_rows, checked_state
from exlstm.ops.bounded_memory.composed import RowBounds, averaged_memory_composed, bounded_memory_composed
from exlstm.ops.bounded_memory.reference import (
    LIMIT,
    AveragedMemoryState,
    BoundedMemoryState,
    averaged_memory_recurrent,
    averaged_memory_step,
    bounded_memory_recurrent,
    bounded_memory_step,
)
from exlstm.ops.common import row_masks, upcast, without_autocast
from exlstm.ops.gated_linear_attention import MAX_KEYS
from exlstm.runtime.availability import chunk_obstacle, widened_kernel_obstacle
from exlstm.runtime.backend import choose
from exlstm.runtime.gpu.limits import gpu_candidate
from exlstm.runtime.tracing import has_gradients

__all__ = [
    "LIMIT",
    "AveragedMemoryState",
    "BoundedMemoryState",
    "averaged_memory",
    "averaged_memory_step",
    "bounded_memory",
    "bounded_memory_step",
]


def bounded_memory(
    q_BTHK: Tensor,
    k_BTHK: Tensor,
    v_BTHV: Tensor,
    g_BTHQ: Tensor | None = None,
    state: BoundedMemoryState | None = None,
    /,
    *,
    write_BTHQ: Tensor | None = None,
    value_write_BTHQ: Tensor | None = None,
    reset_BT: Tensor | None = None,
    lengths_B: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, BoundedMemoryState]:
    """Slots with decays, K = K diag(e^g) + k w^T and V = diag(e^g) V + u v^T, read by o = V^T softmax(K^T q).

    Source: Peng et al. 2021, arXiv:2110.02488; with gates Zhang et al. 2024, arXiv:2409.07146. A slot that nothing was
    written to has the score 0 and the value 0, and counts.
    q, k: [B, T, H, K] and v: [B, T, H, V] in any float dtype; q is scaled by the caller. g: [B, T, H, Q] logarithms of
    decays, in nats, at most 0, also -inf; None for no decay. state: K and V before the first step, None for zeros.
    write: w [B, T, H, Q], None for 1 - e^g, with which slots hold averages. value_write: u, None for w.
    reset_BT (bool): the slots are empty before that step. lengths_B (int): steps at or beyond a row's length leave its
    state alone and give 0, whatever is there.
    backend: "auto", "numba" (a CPU, up to float32), "triton" (a GPU, up to float32 and 256 slots), "chunkwise" (any
    device and dtype), all with memory linear in T, or "recurrent" (the definition).

    Returns o [B, T, H, V] in q's dtype and the state after the last step, float32 or wider.
    Raises ValueError for shapes that do not fit and for a backend that cannot run.
    """
    reset_BT, lengths_B = checked_rows(q_BTHK, reset_BT, lengths_B)
    like = write_BTHQ if g_BTHQ is None else g_BTHQ
    if like is None:
        raise ValueError("g and write are both None; give what decays, what is written, or both.")
    B, T, H, K, V, Q = checked_sizes(q_BTHK, k_BTHK, v_BTHV, like)
    for name, x in (("g", g_BTHQ), ("write", write_BTHQ), ("value_write", value_write_BTHQ)):
        if x is not None:
            check_like(name, x, (B, T, H, Q), q_BTHK)
    state = checked_state(state, BoundedMemoryState, [(B, H, K, Q), (B, H, Q, V)], q_BTHK)
    optional = [x for x in (g_BTHQ, write_BTHQ, value_write_BTHQ) if x is not None]
    name, one_step = pick("bounded_memory", [q_BTHK, k_BTHK, v_BTHV, *optional, *state], Q, backend)
    if name == "numba" and one_step:
        from exlstm.ops.bounded_memory.numba import bounded_memory_step_numba

        gates = g_BTHQ, write_BTHQ, value_write_BTHQ
        return bounded_memory_step_numba((q_BTHK, k_BTHK, v_BTHV), gates, state, (reset_BT, lengths_B))
    rows = RowBounds(reset_BT, lengths_B)
    g_BTHQ = upcast(q_BTHK).new_zeros(()).expand(B, T, H, Q) if g_BTHQ is None else rows.padded(g_BTHQ)
    if write_BTHQ is None:
        write_BTHQ = -torch.expm1(upcast(g_BTHQ))
    inputs = q_BTHK, k_BTHK, v_BTHV, g_BTHQ, write_BTHQ, write_BTHQ if value_write_BTHQ is None else value_write_BTHQ
    with without_autocast(q_BTHK):
        if name == "recurrent":
            o_BTHV, state = bounded_memory_recurrent(inputs, state, *row_masks(*rows, T))
        else:
            o_BTHV, state = bounded_memory_composed(inputs, state, name, rows)
    return o_BTHV.to(q_BTHK.dtype), state


def averaged_memory(
    q_BTHK: Tensor,
    k_BTHK: Tensor,
    v_BTHV: Tensor,
    s_BTHQ: Tensor,
    state: AveragedMemoryState | None = None,
    /,
    *,
    reset_BT: Tensor | None = None,
    lengths_B: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, AveragedMemoryState]:
    """Slots that hold averages of keys and values, weighed by e^s, which softmax reads (arXiv:2110.02488).

    s: [B, T, H, Q] logarithms of weights, clamped to `LIMIT` nats from 0. All else is as in `bounded_memory`.
    Nothing is divided by zero: the first step has written before it is read.
    """
    reset_BT, lengths_B = checked_rows(q_BTHK, reset_BT, lengths_B)
    B, T, H, K, V, Q = checked_sizes(q_BTHK, k_BTHK, v_BTHV, s_BTHQ)
    check_like("s", s_BTHQ, (B, T, H, Q), q_BTHK)
    state = checked_state(state, AveragedMemoryState, [(B, H, K, Q), (B, H, Q, V), (B, H, Q)], q_BTHK)
    inputs = q_BTHK, k_BTHK, v_BTHV, s_BTHQ
    name, one_step = pick("averaged_memory", [*inputs, *state], Q, backend)
    if name == "numba" and one_step:
        from exlstm.ops.bounded_memory.numba import averaged_memory_step_numba

        return averaged_memory_step_numba(inputs[:3], s_BTHQ, state, (reset_BT, lengths_B))
    rows = RowBounds(reset_BT, lengths_B)
    with without_autocast(q_BTHK):
        if name == "recurrent":
            o_BTHV, state = averaged_memory_recurrent(inputs, state, *row_masks(*rows, T))
        else:
            o_BTHV, state = averaged_memory_composed(inputs, state, name, rows)
    return o_BTHV.to(q_BTHK.dtype), state


def checked_sizes(q_BTHK: Tensor, k_BTHK: Tensor, v_BTHV: Tensor, x_BTHQ: Tensor) -> tuple[int, ...]:
    """B, T, H, K, V, Q; ValueError for a k or v that does not fit q."""
    (B, T, H, K), V, Q = q_BTHK.shape, v_BTHV.shape[-1], x_BTHQ.shape[-1]
    check_like("k", k_BTHK, (B, T, H, K), q_BTHK)
    check_like("v", v_BTHV, (B, T, H, V), q_BTHK)
    return B, T, H, K, V, Q


def pick(op: str, tensors: Sequence[Tensor], Q: int, backend: str) -> tuple[str, bool]:
    """The form that runs on these tensors, q first, and whether they are one step without gradients."""
    T = tensors[0].shape[1]
    one_step = T == 1 and not has_gradients(tensors)
    no_chunk = chunk_obstacle(T, backend)
    many = None if Q <= MAX_KEYS else f"it has up to {MAX_KEYS} slots"
    candidates = [
        ("numba", widened_kernel_obstacle(tensors)),
        *gpu_candidate(tensors, backend, many or no_chunk),
        ("chunkwise", no_chunk),
        ("recurrent", None),
    ]
    return choose(op, backend, candidates, tensors), one_step
