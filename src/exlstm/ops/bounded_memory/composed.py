"""A memory of bounded size as two linear attentions, with softmax in between: for whole sequences, on any device.

The first reads keys of the slots, with a decay per value channel, for its values are what is written to each slot:
q, k, w -> scores. The second reads their values, with a decay per key channel: softmax(scores), u, v -> o.
Gradients are theirs, memory is linear in T.

B batch  T time  H heads  K key width  V value width  Q slots
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from exlstm.ops.bounded_memory.reference import LIMIT, AveragedMemoryState, BoundedMemoryState
from exlstm.ops.common import broadcast_mask, length_mask, upcast
from exlstm.ops.gated_linear_attention import GatedLinearAttentionState, gated_linear_attention
from exlstm.ops.scan import ScanState, scan


class RowBounds(NamedTuple):
    """Resets and lengths of rows, or None."""

    reset_BT: Tensor | None
    lengths_B: Tensor | None

    def padded(self, x: Tensor, value: float = 0.0) -> Tensor:
        """x [B, T, ...] with this value in its padding, which may hold NaN."""
        if self.lengths_B is None:
            return x
        return x.masked_fill(~broadcast_mask(length_mask(self.lengths_B, x.shape[1]), x), value)


def compose(
    qkv: tuple[Tensor, ...],
    g_BTHQ: Tensor,
    writes: tuple[Tensor, Tensor],
    state: BoundedMemoryState,
    den_BTHQ: Tensor | None,
    backend: str,
    rows: RowBounds,
) -> tuple[Tensor, BoundedMemoryState]:
    """o [B, T, H, V], wide, and the state after. den: what scores and weights are divided by, or None."""
    q_BTHK, k_BTHK, v_BTHV = map(upcast, qkv)
    # only the second half has kernels for a GPU
    first = "chunkwise" if backend == "triton" else backend
    given: dict[str, Any] = rows._asdict()
    before = GatedLinearAttentionState(state.k_BHKQ)
    z_BTHQ, keys = gated_linear_attention(
        q_BTHK, k_BTHK, writes[0], g_BTHQ, before, axis="value", backend=first, **given
    )
    p_BTHQ = torch.softmax(z_BTHQ if den_BTHQ is None else z_BTHQ / den_BTHQ, dim=-1)
    if den_BTHQ is not None:
        p_BTHQ = p_BTHQ / den_BTHQ
    before = GatedLinearAttentionState(state.v_BHQV)
    o_BTHV, values = gated_linear_attention(p_BTHQ, writes[1], v_BTHV, g_BTHQ, before, backend=backend, **given)
    return o_BTHV, BoundedMemoryState(keys.s_BHKV, values.s_BHKV)


def bounded_memory_composed(
    inputs: tuple[Tensor, ...], state: BoundedMemoryState, backend: str, rows: RowBounds
) -> tuple[Tensor, BoundedMemoryState]:
    """The numbers of `bounded_memory_recurrent`. backend: of the linear attentions."""
    *qkv, g_BTHQ, write_BTHQ, value_write_BTHQ = inputs
    writes = upcast(write_BTHQ), upcast(value_write_BTHQ)
    return compose(tuple(qkv), upcast(g_BTHQ), writes, state, None, backend, rows)


def averaged_memory_composed(
    inputs: tuple[Tensor, ...], state: AveragedMemoryState, backend: str, rows: RowBounds
) -> tuple[Tensor, AveragedMemoryState]:
    """The numbers of `averaged_memory_recurrent`. backend: of the linear attentions, and of the sum of weights."""
    *qkv, s_BTHQ = inputs
    weight_BTHQ = rows.padded(upcast(s_BTHQ)).clamp(-LIMIT, LIMIT).exp()
    weight_BTE, zero = weight_BTHQ.flatten(2), weight_BTHQ.new_zeros(())
    before = ScanState(state.den_BHQ.flatten(1))
    den_BTE, after = scan((zero + 1).expand_as(weight_BTE), weight_BTE, before, backend=backend, **rows._asdict())
    # a row that has seen nothing has no sum in its padding
    den_BTHQ = rows.padded(den_BTE, 1.0).view(weight_BTHQ.shape)
    memory, g_BTHQ = BoundedMemoryState(state.k_BHKQ, state.v_BHQV), zero.expand_as(weight_BTHQ)
    o_BTHV, memory = compose(tuple(qkv), g_BTHQ, (weight_BTHQ, weight_BTHQ), memory, den_BTHQ, backend, rows)
    return o_BTHV, AveragedMemoryState(*memory, after.h_BE.view(state.den_BHQ.shape))
