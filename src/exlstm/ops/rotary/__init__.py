"""Rotary embedding of queries and keys by what a state holds: positions, or angles that every step adds to.

`rotary` counts positions (Su et al. 2021, arXiv:2104.09864), `turned` adds angles, as Mamba-3 does. `reference` is in
plain torch, `numba` is one decoding step.

B batch  T time  H heads  K head width  J pairs that are rotated
"""

from collections.abc import Sequence

from torch import Tensor

from exlstm.ops.arguments import check_like, checked_rows, checked_state
from exlstm.ops.positions import PositionState, check_position_state
from exlstm.ops.rotary.reference import AngleState, rotary_torch, turned_torch
from exlstm.runtime.availability import widened_kernel_obstacle
from exlstm.runtime.backend import choose
from exlstm.runtime.tracing import has_gradients

__all__ = ["AngleState", "PositionState", "rotary", "turned"]


def rotary(
    q_BTHK: Tensor,
    k_BTHK: Tensor,
    state: PositionState,
    /,
    *,
    base: float = 10_000.0,
    reset_BT: Tensor | None = None,
    lengths_B: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor, PositionState]:
    """q and k [B, T, H, K] with (x_f, x_{f + K/2}) rotated by position * base^(-2f/K), and the next positions.

    K is even. reset_BT (bool): the position of that step is 0. lengths_B (int): steps at or beyond a row's length are
    not counted. backend: "auto", "numba" (one step without gradients, up to float32 on a CPU) or "torch".
    Raises ValueError for shapes that do not fit, a state that does not hold int64, and a backend that cannot run.
    """
    reset_BT, lengths_B = checked_rows(q_BTHK, reset_BT, lengths_B)
    B, T, H, K = q_BTHK.shape
    check_like("k", k_BTHK, (B, T, H, K), q_BTHK)
    check_position_state(state, q_BTHK)
    run = rotary_torch
    if pick("rotary", (q_BTHK, k_BTHK), backend) == "numba":
        from exlstm.ops.rotary.numba import rotary_step_numba as run
    q_BTHK, k_BTHK, next_B = run(q_BTHK, k_BTHK, state.next_B, base=base, reset_BT=reset_BT, lengths_B=lengths_B)
    return q_BTHK, k_BTHK, PositionState(next_B)


def turned(
    q_BTHK: Tensor,
    k_BTHK: Tensor,
    turn_BTHJ: Tensor,
    state: AngleState,
    /,
    *,
    reset_BT: Tensor | None = None,
    lengths_B: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor, AngleState]:
    """q and k [B, T, H, K] with pairs (x_2j, x_2j+1), j < J, rotated by the sum of turns so far, and the new angles.

    turn: [B, T, H, J] in radians, 2 J at most K. reset_BT (bool): angles count as 0 before that step. All else is as in
    `rotary`.
    """
    reset_BT, lengths_B = checked_rows(q_BTHK, reset_BT, lengths_B)
    (B, T, H, K), J = q_BTHK.shape, turn_BTHJ.shape[-1]
    check_like("k", k_BTHK, (B, T, H, K), q_BTHK)
    check_like("turn", turn_BTHJ, (B, T, H, min(J, K // 2)), q_BTHK)
    state = checked_state(state, AngleState, [(B, H, J)], q_BTHK)
    tensors, run = (q_BTHK, k_BTHK, turn_BTHJ, state.angle_BHJ), turned_torch
    if pick("turned", tensors, backend) == "numba":
        from exlstm.ops.rotary.numba import turned_step_numba as run
    q_BTHK, k_BTHK, angle_BHJ = run(*tensors, reset_BT=reset_BT, lengths_B=lengths_B)
    return q_BTHK, k_BTHK, AngleState(angle_BHJ)


def pick(op: str, tensors: Sequence[Tensor], backend: str) -> str:
    """The form that runs on these tensors, q first."""
    needs_backward = has_gradients(tensors)
    several = "it takes one step without gradients" if tensors[0].shape[1] > 1 or needs_backward else None
    return choose(op, backend, [("numba", widened_kernel_obstacle(tensors, several)), ("torch", None)], tensors)
