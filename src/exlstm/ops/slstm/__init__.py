"""sLSTM: the scalar memory of xLSTM, with memory mixing. `reference` defines it, `numba` and `triton` run it fast."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from exlstm.ops.arguments import check_like, checked_rows, checked_state
from exlstm.ops.common import length_mask, wide_dtype, without_autocast, zero_padding
from exlstm.ops.gates import ForgetGate, InputGate, check_gates
from exlstm.ops.layer import Layer, contiguous, in_own_kernels
from exlstm.ops.slstm.projection import Projection, as_heads, check_projection, is_in_scan, project_gates
from exlstm.ops.slstm.reference import (
    CELL_ACTIVATIONS,
    CellActivation,
    SLSTMState,
    slstm_recurrent,
    slstm_step,
    zero_state,
)
from exlstm.runtime.availability import cpu_kernel_obstacle
from exlstm.runtime.backend import choose, record
from exlstm.runtime.gpu.limits import gpu_candidate, gpu_limits

__all__ = [
    "CellActivation",
    "ForgetGate",
    "InputGate",
    "Projection",
    "SLSTMState",
    "project_gates",
    "projected_slstm",
    "slstm",
    "slstm_layer",
    "slstm_recurrent",
    "slstm_step",
    "zero_state",
]


def numba_obstacle(x: Tensor) -> str | None:
    """Why the Numba scan cannot run on this input, or None."""
    narrow = wide_dtype(x.dtype) == torch.float32
    return cpu_kernel_obstacle((x,), None if narrow else f"it computes in float32 and the input is {x.dtype}")


def fast_form(backend: str) -> Callable[..., tuple[Tensor, SLSTMState]]:
    """The fast form of this name, imported when it is first needed."""
    if backend in ("triton", "triton_steps"):
        from exlstm.ops.slstm.triton.op import slstm_triton

        return partial(slstm_triton, resident=backend == "triton")
    from exlstm.ops.slstm.numba.op import slstm_numba

    return slstm_numba


def scan_memory(r_HKGV: Tensor) -> int:
    """Bytes of shared memory that the Triton scan takes at most: R, and tiles of numbers of 16 rows of the batch."""
    units = max(16, 1 << (r_HKGV.shape[1] - 1).bit_length())
    tiles = 16 if r_HKGV.dtype == torch.float32 else 12
    return 4 * units * units * r_HKGV.itemsize + tiles * 16 * units * 4


def scan_obstacle(r_HKGV: Tensor | None) -> str | None:
    """Why a multiprocessor of this GPU cannot hold R, or None; for the interpreter, of an H100."""
    if r_HKGV is None:
        return None
    _, here = gpu_limits(r_HKGV.device)
    needed, kind = scan_memory(r_HKGV), str(r_HKGV.dtype).removeprefix("torch.")
    if needed <= here:
        return None
    return (
        f"heads of {r_HKGV.shape[1]} units in {kind} take {needed >> 10} KB of a multiprocessor's shared memory, "
        f"which is {here >> 10} KB here"
    )


def autocast_weights(r_HKGV: Tensor | None) -> Tensor | None:
    """R in autocast's dtype where autocast is on, for products on a GPU, whose sums stay float32."""
    if r_HKGV is None or r_HKGV.dtype != torch.float32 or not torch.is_autocast_enabled(r_HKGV.device.type):
        return r_HKGV
    return r_HKGV.to(torch.get_autocast_dtype(r_HKGV.device.type))


def gpu_candidates(
    tensors: Sequence[Tensor], r_HKGV: Tensor | None, backend: str, cell_activation: CellActivation,
    input_gate: InputGate = "exp", normalize: bool = True,
) -> list[tuple[str, str | None]]:  # fmt: skip
    """Candidates for `choose`: both Triton forms, each with its obstacle."""
    asked_for = "triton" if backend == "triton_steps" else backend
    both = None if cell_activation == "tanh" else f"it has the cell-input activation tanh, not {cell_activation}"
    both = both if input_gate == "exp" else f"it has the input gate exp, not {input_gate}"
    both = both if normalize else "it has the normaliser, and normalize is False"
    scans = gpu_candidate(tensors, asked_for, both or scan_obstacle(autocast_weights(r_HKGV)))
    return scans + [("triton_steps", other) for _, other in gpu_candidate(tensors, asked_for, both)]


def check_cell(
    x: Tensor,
    r_HKGV: Tensor | None,
    H: int,
    V: int,
    input_gate: InputGate,
    forget_gate: ForgetGate,
    cell_activation: CellActivation,
) -> None:
    """ValueError for recurrent weights that do not fit the input, and for options that there are not."""
    if r_HKGV is not None:
        check_like("r", r_HKGV, (H, V, 4, V), x)
    check_gates(input_gate, forget_gate)
    if cell_activation not in CELL_ACTIVATIONS:
        raise ValueError(f"cell_activation is {cell_activation!r}; it must be one of {list(CELL_ACTIVATIONS)}.")


def slstm(
    x_BTHGV: Tensor, r_HKGV: Tensor | None, state: SLSTMState | None = None, /,
    *, reset_BT: Tensor | None = None, lengths_B: Tensor | None = None, input_gate: InputGate = "exp",
    forget_gate: ForgetGate = "sigmoid", cell_activation: CellActivation = "tanh", normalize: bool = True,
    backend: str = "auto",
) -> tuple[Tensor, SLSTMState]:  # fmt: skip
    """A sequence through the sLSTM cell (Beck et al. 2024, arXiv:2405.04517, eqs 8-17 and 34-51).

    x: [B, T, H, 4, V] pre-activations W x + b of the gates i, f, z, o, in any float dtype. r: [H, V, 4, V] recurrent
    weights from h (second axis) to the gates, one block per head; None means no memory mixing. H = 1 is dense.
    state: what came before, None for nothing. reset_BT (bool): clear the row's state before that step.
    lengths_B (int): steps at or beyond a row's length leave its state alone and give h = 0.
    input_gate: "exp", "sigmoid", "softplus", "relu" or "relu2" (the square of relu). As long as a relu has never been
    open, h is a mean of phi(z) as if it had been, or 0 without the normaliser (see `reference`).
    forget_gate: "sigmoid" or "exp". cell_activation: phi, applied to z. normalize: divide c by n; without it
    h = sigmoid(o) c exp(m), c in true units, and n goes on in the state.
    backend: "auto", "numba" (float32 on a CPU), "triton" (a GPU, up to float32; r has to fit into a multiprocessor's
    shared memory: on an H100 heads of up to 128 units in 16 bits or 64 in float32), "triton_steps" (a GPU, up to
    float32, heads of any width, a launch per step), both with the input gate exp, tanh and the normaliser only, or
    "recurrent" (the definition, plain torch).

    Returns h [B, T, H, V] in x's dtype and the state after the last step, float32 or wider. The state's m carries no
    gradient (see `reference`); h, c and n do, in both directions.
    Raises ValueError for shapes that do not fit and for a backend that cannot run.
    """
    B, T, H, G, V = x_BTHGV.shape
    if G != 4 or T < 1:
        raise ValueError(f"x has shape {tuple(x_BTHGV.shape)}; it must be [B, T >= 1, H, 4, V].")
    check_cell(x_BTHGV, r_HKGV, H, V, input_gate, forget_gate, cell_activation)
    reset_BT, lengths_B = checked_rows(x_BTHGV, reset_BT, lengths_B)
    state = checked_state(state, SLSTMState, 4 * [(B, H, V)], x_BTHGV)
    tensors = [x_BTHGV, *state, *([] if r_HKGV is None else [r_HKGV])]
    name = choose("slstm", backend, [
        ("numba", numba_obstacle(x_BTHGV)),
        *gpu_candidates(tensors, r_HKGV, backend, cell_activation, input_gate, normalize),
        ("recurrent", None),
    ], tensors)  # fmt: skip
    if name in ("triton", "triton_steps"):
        r_HKGV = autocast_weights(r_HKGV)  # before autocast is off
    valid_BT = None
    if lengths_B is not None and name != "numba":  # the Numba kernel never reads padding
        valid_BT = length_mask(lengths_B, T)
        x_BTHGV = zero_padding(x_BTHGV, valid_BT)
    with without_autocast(x_BTHGV):
        if name != "recurrent":
            options = {"input_gate": input_gate, "cell_activation": cell_activation, "normalize": normalize}
            more = options if name == "numba" else {}
            return fast_form(name)(
                x_BTHGV, r_HKGV, state, reset_BT=reset_BT, lengths_B=lengths_B, exp_forget=forget_gate == "exp", **more
            )
        if reset_BT is not None and valid_BT is not None:
            reset_BT = reset_BT & valid_BT
        return slstm_recurrent(
            x_BTHGV, r_HKGV, state, reset_BT=reset_BT, valid_BT=valid_BT, input_gate=input_gate,
            forget_gate=forget_gate, cell_activation=cell_activation, normalize=normalize,
        )  # fmt: skip


def projected_slstm(
    x: Projection,
    r_HKGV: Tensor | None,
    state: SLSTMState | None = None,
    /,
    *,
    reset_BT: Tensor | None = None,
    lengths_B: Tensor | None = None,
    input_gate: InputGate = "exp",
    forget_gate: ForgetGate = "sigmoid",
    cell_activation: CellActivation = "tanh",
    normalize: bool = True,
    backend: str = "auto",
) -> tuple[Tensor, SLSTMState]:
    """`slstm` behind the projection of its input, which a CPU computes in the scan.

    x: `Projection(if_BTD, zo_BTD, w_HGVN, b_HGV)`. The rest is as in `slstm`, but for h, which is float32 or wider.
    """
    check_projection(x)
    options: dict[str, Any] = {"input_gate": input_gate, "cell_activation": cell_activation, "normalize": normalize}
    rows: dict[str, Any] = {"reset_BT": reset_BT, "lengths_B": lengths_B}
    if not is_in_scan(x, backend):
        return slstm(project_gates(x), r_HKGV, state, **rows, forget_gate=forget_gate, backend=backend, **options)
    (B, _, _), (H, _, V, _) = x.if_BTD.shape, x.w_HGVN.shape
    check_cell(x.if_BTD, r_HKGV, H, V, input_gate, forget_gate, cell_activation)
    reset_BT, lengths_B = checked_rows(x.if_BTD, reset_BT, lengths_B)
    state = checked_state(state, SLSTMState, 4 * [(B, H, V)], x.if_BTD)
    record("slstm", "numba")
    from exlstm.ops.slstm.numba.projected import projected_slstm_numba

    rows = {"reset_BT": reset_BT, "lengths_B": lengths_B}
    return projected_slstm_numba(x, r_HKGV, state, **rows, exp_forget=forget_gate == "exp", **options)


def slstm_layer(
    x_BTD: Tensor,
    layer: Layer,
    h_BM: Tensor,
    c_BS: Tensor,
    /,
    *,
    reset_BT: Tensor | None = None,
    lengths_B: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor, Tensor]:
    """A sequence through a layer: h of every step [B, T, M], and h and c after the last.

    c: c, n and m of all heads side by side; zeros are an empty memory. The rest is as in `projected_slstm`.
    """
    if reset_BT is not None or lengths_B is not None or not x_BTD.shape[1]:
        reset_BT, lengths_B = checked_rows(x_BTD, reset_BT, lengths_B)
    if in_own_kernels(x_BTD, layer, backend):
        record("slstm", "numba")
        from exlstm.ops.slstm.numba.layer import SLSTM, run_layer

        return run_layer(SLSTM, x_BTD, layer, h_BM, c_BS, reset_BT, lengths_B)
    H, K = layer.heads, layer.r_JK.shape[1]
    x, r_HKGV = as_heads(x_BTD, contiguous(layer))
    state = SLSTMState(*(torch.unflatten(part, 1, (H, K)) for part in (h_BM, *c_BS.chunk(3, dim=1))))
    h_BTHV, after = projected_slstm(x, r_HKGV, state, reset_BT=reset_BT, lengths_B=lengths_B, backend=backend)
    return h_BTHV.flatten(2), after.h_BHV.flatten(1), torch.cat([part.flatten(1) for part in after[1:]], dim=1)
