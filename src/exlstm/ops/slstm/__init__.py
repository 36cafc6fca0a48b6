"""sLSTM: the scalar memory of xLSTM, with memory mixing. `reference` defines it, `numba` runs it fast on a CPU."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from exlstm.ops.choose import choose
from exlstm.ops.shared import check_rows, exactly, gpu_candidate, has_numba, inside, wide_dtype
from exlstm.ops.slstm.reference import (
    CELL_ACTIVATIONS,
    CellActivation,
    ForgetGate,
    SLSTMState,
    slstm_recurrent,
    slstm_step,
    zero_state,
)

__all__ = ["CellActivation", "ForgetGate", "SLSTMState", "slstm", "slstm_recurrent", "slstm_step", "zero_state"]


def numba_obstacle(x: Tensor, cell_activation: CellActivation) -> str | None:
    """Why the Numba scan cannot run on this input, or None."""
    if x.device.type != "cpu":
        return f"the tensors are on {x.device.type}, Numba runs on the CPU"
    if wide_dtype(x.dtype) != torch.float32:
        return f"it computes in float32 and the input is {x.dtype}"
    if cell_activation != "tanh":
        return f"it has the cell-input activation tanh, not {cell_activation}"
    if not has_numba():
        return "Numba is not installed"
    return None


def scan(backend: str) -> Callable[..., tuple[Tensor, SLSTMState]]:
    """The fast form of this name, imported when it is first needed."""
    if backend == "triton":
        from exlstm.ops.slstm.triton import slstm_triton

        return slstm_triton
    from exlstm.ops.slstm.numba import slstm_numba

    return slstm_numba


def gpu_scan_obstacle(tensors: Sequence[Tensor], cell_activation: CellActivation) -> str | None:
    """What only the Triton scan minds in these tensors, x first, or None."""
    if cell_activation != "tanh":
        return f"it has the cell-input activation tanh, not {cell_activation}"
    units, most = tensors[0].shape[4], 64
    if units > most:
        return f"a multiprocessor holds R of heads of up to {most} units, not {units}"
    return None


def slstm(
    x_BTHGV: Tensor, r_HKGV: Tensor | None, state: SLSTMState | None = None, /,
    *, reset_BT: Tensor | None = None, lengths_B: Tensor | None = None, forget_gate: ForgetGate = "sigmoid",
    cell_activation: CellActivation = "tanh", backend: str = "auto",
) -> tuple[Tensor, SLSTMState]:  # fmt: skip
    """A sequence through the sLSTM cell (Beck et al. 2024, arXiv:2405.04517, eqs 8-17 and 34-51).

    x: [B, T, H, 4, V] pre-activations W x + b of the gates i, f, z, o, in any float dtype. r: [H, V, 4, V] recurrent
    weights from h (second axis) to the gates, one block per head; None means no memory mixing. H = 1 is dense.
    state: what came before, None for nothing. reset_BT (bool): clear the row's state before that step.
    lengths_B (int): steps at or beyond a row's length leave its state alone and give h = 0.
    forget_gate: "sigmoid" or "exp". cell_activation: phi, applied to z.
    backend: "auto", "numba" (float32 on a CPU), "triton" (a GPU, up to float32, heads of up to 64 units) or
    "recurrent" (the definition, plain torch).

    Returns h [B, T, H, V] in x's dtype and the state after the last step, float32 or wider. The state's m carries no
    gradient (see `reference`); h, c and n do, in both directions.
    Raises ValueError for shapes that do not fit and for a backend that cannot run.
    """
    B, T, H, G, V = x_BTHGV.shape
    if G != 4 or T < 1:
        raise ValueError(f"x has shape {tuple(x_BTHGV.shape)}; it must be [B, T >= 1, H, 4, V].")
    if r_HKGV is not None and tuple(r_HKGV.shape) != (H, V, 4, V):
        raise ValueError(f"r has shape {tuple(r_HKGV.shape)}; with x {tuple(x_BTHGV.shape)} it must be {(H, V, 4, V)}.")
    if forget_gate not in ("sigmoid", "exp"):
        raise ValueError(f"forget_gate is {forget_gate!r}; it must be 'sigmoid' or 'exp'.")
    if cell_activation not in CELL_ACTIVATIONS:
        raise ValueError(f"cell_activation is {cell_activation!r}; it must be one of {list(CELL_ACTIVATIONS)}.")
    check_rows("reset_BT", reset_BT, (B, T))
    check_rows("lengths_B", lengths_B, (B,))
    state = zero_state(x_BTHGV) if state is None else state
    for name, x in state._asdict().items():
        check_rows(f"{name} of the state", x, (B, H, V))
    tensors = [x_BTHGV, *state, *([] if r_HKGV is None else [r_HKGV])]
    name = choose("slstm", backend, [
        ("numba", numba_obstacle(x_BTHGV, cell_activation)),
        *gpu_candidate(tensors, backend, gpu_scan_obstacle(tensors, cell_activation)),
        ("recurrent", None),
    ])  # fmt: skip
    with exactly(x_BTHGV):
        if name in ("numba", "triton"):
            return scan(name)(
                x_BTHGV, r_HKGV, state, reset_BT=reset_BT, lengths_B=lengths_B, exp_forget=forget_gate == "exp"
            )
        valid_BT = None if lengths_B is None else inside(lengths_B, T)
        if reset_BT is not None and valid_BT is not None:
            reset_BT = reset_BT & valid_BT
        return slstm_recurrent(
            x_BTHGV, r_HKGV, state,
            reset_BT=reset_BT, valid_BT=valid_BT, forget_gate=forget_gate, cell_activation=cell_activation,
        )  # fmt: skip
