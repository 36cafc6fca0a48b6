"""mLSTM: the matrix memory of xLSTM. `reference` defines it, the other pages compute the same numbers faster."""

from functools import partial

import torch
from torch import Tensor

from exlstm.ops.choose import choose
from exlstm.ops.mlstm.chunkwise import mlstm_chunkwise
from exlstm.ops.mlstm.reference import InputGate, MLSTMState, mlstm_recurrent, mlstm_step, zero_state
from exlstm.ops.shared import check_rows, exactly, inside

__all__ = ["InputGate", "MLSTMState", "mlstm", "mlstm_chunkwise", "mlstm_recurrent", "mlstm_step", "zero_state"]


def mlstm(
    q_BTHK: Tensor, k_BTHK: Tensor, v_BTHV: Tensor, i_BTH: Tensor, f_BTH: Tensor, state: MLSTMState | None = None, /,
    *, reset_BT: Tensor | None = None, lengths_B: Tensor | None = None, input_gate: InputGate = "exp",
    normalize: bool = True, eps: float = 1e-6, chunk_len: int = 64, backend: str = "auto",
) -> tuple[Tensor, MLSTMState]:  # fmt: skip
    """A sequence through the mLSTM cell (Beck et al. 2024, arXiv:2405.04517, eqs 19-27 and 71-105).

    q, k: [B, T, H, K] and v: [B, T, H, V] in any float dtype; q is scaled by K^-1/2 here. i, f: [B, T, H]
    pre-activations of the gates, in nats. state: what came before, None for nothing.
    reset_BT (bool): clear the row's state before that step. lengths_B (int): steps at or beyond a row's
    length leave its state alone and give h = 0.
    input_gate: "exp", or "sigmoid" (mLSTMsig). normalize: divide by max(|n.q|, exp(-m)) + eps.
    chunk_len: how many steps the chunkwise form takes at once; changes speed, not numbers.
    backend: "auto", "chunkwise" (hand-written backward, memory linear in T) or "recurrent" (the definition).

    Returns h [B, T, H, V] in q's dtype and the state after the last step, float32 or wider. The state's m carries
    no gradient (see `reference`); C and n do, in both directions.
    Raises ValueError for shapes that do not fit and for a backend that cannot run.
    """
    B, T, H, K = q_BTHK.shape
    expected = {"k": (B, T, H, K), "v": (B, T, H, v_BTHV.shape[-1]), "i": (B, T, H), "f": (B, T, H)}
    for name, x in zip(expected, (k_BTHK, v_BTHV, i_BTH, f_BTH), strict=True):
        if tuple(x.shape) != expected[name]:
            raise ValueError(
                f"{name} has shape {tuple(x.shape)}; with q {tuple(q_BTHK.shape)} it must be {expected[name]}."
            )
    if T < 1 or chunk_len < 1:
        raise ValueError(f"the sequence has {T} steps and chunk_len is {chunk_len}; both must be at least 1.")
    if input_gate not in ("exp", "sigmoid"):
        raise ValueError(f"input_gate is {input_gate!r}; it must be 'exp' or 'sigmoid'.")
    check_rows("reset_BT", reset_BT, (B, T))
    check_rows("lengths_B", lengths_B, (B,))
    state = zero_state(k_BTHK, v_BTHV) if state is None else state
    for name, x, shape in zip(state._fields, state, ((B, H, K, v_BTHV.shape[-1]), (B, H, K), (B, H)), strict=True):
        check_rows(f"{name} of the state", x, shape)
    valid_BT = None if lengths_B is None else inside(lengths_B, T)
    if valid_BT is not None:
        # a step that writes nothing (log i = -inf) and forgets nothing (log f = 0)
        i_BTH = i_BTH.masked_fill(~valid_BT[..., None], -torch.inf)
        f_BTH = f_BTH.masked_fill(~valid_BT[..., None], torch.inf)
        reset_BT = None if reset_BT is None else reset_BT & valid_BT
    one_step = "a single step needs no chunk" if T == 1 else None
    name = choose("mlstm", backend, [("chunkwise", one_step if backend == "auto" else None), ("recurrent", None)])
    run = partial(mlstm_chunkwise, chunk_len=chunk_len) if name == "chunkwise" else mlstm_recurrent
    with exactly(q_BTHK):
        h_BTHV, state = run(
            q_BTHK, k_BTHK, v_BTHV, i_BTH, f_BTH, state,
            reset_BT=reset_BT, input_gate=input_gate, normalize=normalize, eps=eps,
        )  # fmt: skip
    if valid_BT is not None:
        h_BTHV = h_BTHV.masked_fill(~valid_BT[..., None, None], 0)
    return h_BTHV, state
