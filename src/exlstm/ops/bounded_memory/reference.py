"""A memory of bounded size that softmax reads, the definition: one step after another.

    K_t = K_{t-1} diag(e^g_t) + k_t w_t^T               keys of Q slots [K, Q]; w_t: how much each slot takes of step t
    V_t = diag(e^g_t) V_{t-1} + u_t v_t^T               values of the slots [Q, V]; u = w but in Linformer
    o_t = V_t^T softmax(K_t^T q_t)

and with slots that hold averages, in ABC, as sums K and V of weights e^s beside the sum n of these weights:

    n_t = n_{t-1} + e^s_t ,  K_t = K_{t-1} + k_t (e^s_t)^T ,  V_t = V_{t-1} + e^s_t v_t^T
    p_t = softmax((K_t^T q_t) / n_t) ,  o_t = V_t^T (p_t / n_t)

B batch  T time  H heads  K key width  V value width  Q slots
"""

from typing import NamedTuple

from torch import Tensor

from exlstm.ops.common import upcast
from exlstm.ops.gated_linear_attention.reference import read
from exlstm.ops.steps import run_steps

LIMIT = 32.0  # nats: sums of e^s, and their quotients, stay in the range of float32


class BoundedMemoryState(NamedTuple):
    """Keys and values of the slots after a step, batch first, float32 or wider."""

    k_BHKQ: Tensor
    v_BHQV: Tensor


class AveragedMemoryState(NamedTuple):
    """Sums of weighted keys and values, and those of the weights, after a step; batch first, float32 or wider."""

    k_BHKQ: Tensor
    v_BHQV: Tensor
    den_BHQ: Tensor


def written(k_BHK: Tensor, v_BHV: Tensor, write_BHQ: Tensor, value_write_BHQ: Tensor) -> tuple[Tensor, Tensor]:
    """k w^T and u v^T"""
    return k_BHK[..., None] * write_BHQ[..., None, :], value_write_BHQ[..., None] * v_BHV[..., None, :]


def bounded_memory_step(
    q_BHK: Tensor,
    k_BHK: Tensor,
    v_BHV: Tensor,
    g_BHQ: Tensor,
    write_BHQ: Tensor,
    value_write_BHQ: Tensor,
    state: BoundedMemoryState,
    /,
) -> tuple[Tensor, BoundedMemoryState]:
    """One time step, computed wide."""
    q_BHK, k_BHK, v_BHV, g_BHQ, *writes = map(upcast, (q_BHK, k_BHK, v_BHV, g_BHQ, write_BHQ, value_write_BHQ))
    (k_BHKQ, v_BHQV), decay_BHQ = written(k_BHK, v_BHV, *writes), g_BHQ.exp()
    k_BHKQ = state.k_BHKQ * decay_BHQ[..., None, :] + k_BHKQ
    v_BHQV = state.v_BHQV * decay_BHQ[..., None] + v_BHQV
    return read(read(q_BHK, k_BHKQ).softmax(-1), v_BHQV), BoundedMemoryState(k_BHKQ, v_BHQV)


def averaged_memory_step(
    q_BHK: Tensor, k_BHK: Tensor, v_BHV: Tensor, s_BHQ: Tensor, state: AveragedMemoryState, /
) -> tuple[Tensor, AveragedMemoryState]:
    """One time step, computed wide."""
    q_BHK, k_BHK, v_BHV, s_BHQ = map(upcast, (q_BHK, k_BHK, v_BHV, s_BHQ))
    weight_BHQ = s_BHQ.clamp(-LIMIT, LIMIT).exp()
    k_BHKQ, v_BHQV = written(k_BHK, v_BHV, weight_BHQ, weight_BHQ)
    after = AveragedMemoryState(state.k_BHKQ + k_BHKQ, state.v_BHQV + v_BHQV, state.den_BHQ + weight_BHQ)
    p_BHQ = (read(q_BHK, after.k_BHKQ) / after.den_BHQ).softmax(-1)
    return read(p_BHQ / after.den_BHQ, after.v_BHQV), after


def bounded_memory_recurrent(
    inputs: tuple[Tensor, ...], state: BoundedMemoryState, reset_BT: Tensor | None, valid_BT: Tensor | None
) -> tuple[Tensor, BoundedMemoryState]:
    """The definition, one step after another; inputs: q, k, v, g and both writes."""
    return run_steps(bounded_memory_step, inputs, state, reset_BT=reset_BT, valid_BT=valid_BT)


def averaged_memory_recurrent(
    inputs: tuple[Tensor, ...], state: AveragedMemoryState, reset_BT: Tensor | None, valid_BT: Tensor | None
) -> tuple[Tensor, AveragedMemoryState]:
    """The definition, one step after another; inputs: q, k, v and s."""
    return run_steps(averaged_memory_step, inputs, state, reset_BT=reset_BT, valid_BT=valid_BT)
