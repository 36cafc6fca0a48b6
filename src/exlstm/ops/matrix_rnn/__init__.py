"""Recurrent nets whose state is a matrix, with or without mixing. `reference` defines them, `numba` runs them fast."""

from torch import Tensor

from exlstm.ops.arguments import check_like, checked_rows, checked_state
from exlstm.ops.common import length_mask, without_autocast, zero_padding
from exlstm.ops.matrix_rnn.reference import MatrixRNNState, matrix_rnn_recurrent
from exlstm.runtime.availability import widened_kernel_obstacle
from exlstm.runtime.backend import choose

__all__ = ["MatrixRNNState", "matrix_rnn", "matrix_rnn_recurrent"]


def matrix_rnn(
    q_BTHK: Tensor,
    k_BTHK: Tensor,
    v_BTHV: Tensor,
    f_BTH: Tensor | None,
    r_HUV: Tensor | None,
    state: MatrixRNNState | None = None,
    /,
    *,
    reset_BT: Tensor | None = None,
    lengths_B: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, MatrixRNNState]:
    """A sequence through a recurrent net whose state is a matrix (see `reference` for the equations); any T >= 1.

    q, k: [B, T, H, K]. v: [B, T, H, V]. f: [B, T, H] pre-activations of a GRU's update gate, None for the Elman net.
    r: [H, V, V] recurrent weights from values (second axis) to values, None for none. All in any float dtype.
    state: what came before, None for zeros. reset_BT (bool): clear the row's state before that step.
    lengths_B (int): steps at or beyond a row's length leave its state alone and give o = 0, whatever is there.
    backend: "auto", "numba" (float32 on a CPU) or "recurrent" (the definition, plain torch).

    Returns o [B, T, H, V] in v's dtype and the state after the last step, float32 or wider.
    Raises ValueError for shapes that do not fit and for a backend that cannot run.
    """
    (B, T, H, V), K = v_BTHV.shape, q_BTHK.shape[-1]
    given = {"q": (q_BTHK, (B, T, H, K)), "k": (k_BTHK, (B, T, H, K)), "f": (f_BTH, (B, T, H)), "r": (r_HUV, (H, V, V))}
    for what, (x, shape) in given.items():
        if x is not None:
            check_like(what, x, shape, v_BTHV)
    reset_BT, lengths_B = checked_rows(v_BTHV, reset_BT, lengths_B)
    state = checked_state(state, MatrixRNNState, [(B, H, K, V)], v_BTHV)
    inputs = q_BTHK, k_BTHK, v_BTHV, f_BTH, r_HUV
    candidates = [("numba", widened_kernel_obstacle((v_BTHV,))), ("recurrent", None)]
    name = choose("matrix_rnn", backend, candidates, (*inputs, *state))
    with without_autocast(v_BTHV):
        if name == "numba":
            from exlstm.ops.matrix_rnn.numba.op import matrix_rnn_numba

            o_BTHV, state = matrix_rnn_numba(*inputs, state, reset_BT=reset_BT, lengths_B=lengths_B)
        else:
            valid_BT = None if lengths_B is None else length_mask(lengths_B, T)
            if valid_BT is not None:
                q_BTHK, k_BTHK, v_BTHV = (zero_padding(x, valid_BT) for x in (q_BTHK, k_BTHK, v_BTHV))
                f_BTH = None if f_BTH is None else zero_padding(f_BTH, valid_BT)
            o_BTHV, state = matrix_rnn_recurrent(
                q_BTHK, k_BTHK, v_BTHV, f_BTH, r_HUV, state, reset_BT=reset_BT, valid_BT=valid_BT
            )
    return o_BTHV.to(v_BTHV.dtype), state
