"""mLSTM: the matrix memory of xLSTM. `reference` defines it, the other pages compute the same numbers faster."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from exlstm.ops.choose import choose
from exlstm.ops.mlstm.chunkwise import mlstm_chunkwise
from exlstm.ops.mlstm.reference import InputGate, MLSTMState, mlstm_recurrent, mlstm_step, zero_state
from exlstm.ops.shared import check_rows, exactly, gpu_candidate, has_numba, inside

__all__ = ["InputGate", "MLSTMState", "mlstm", "mlstm_chunkwise", "mlstm_recurrent", "mlstm_step", "zero_state"]


def numba_obstacle(tensors: tuple[Tensor, ...], one_step: bool) -> str | None:
    """Why the Numba forms cannot run on these q, k, v, i, f, C, n, m, or None. One step needs no matrix products."""
    device = tensors[0].device.type
    if device != "cpu":
        return f"the tensors are on {device}, Numba runs on the CPU"
    if any(x.dtype is torch.float64 for x in tensors):
        return "it computes in float32 and there is float64 in the input"
    if not has_numba():
        return "Numba is not installed"
    if one_step:
        return None
    from exlstm.ops.numba_blas import obstacle

    return obstacle()


def pick(tensors: tuple[Tensor, ...], backend: str, chunk_len: int) -> Callable[..., tuple[Tensor, MLSTMState]]:
    """The form that runs on these q, k, v, i, f, C, n, m."""
    T = tensors[0].shape[1]
    one_step = T == 1 and not (torch.is_grad_enabled() and any(x.requires_grad for x in tensors))
    no_chunk = "a single step needs no chunk" if T == 1 and backend == "auto" else None
    candidates = [
        ("numba", numba_obstacle(tensors, one_step)),
        *gpu_candidate(tensors, backend, no_chunk),
        ("chunkwise", no_chunk),
        ("recurrent", None),
    ]
    name = choose("mlstm", backend, candidates)
    if name == "recurrent":
        return mlstm_recurrent
    if name == "triton":
        from exlstm.ops.mlstm.triton import mlstm_triton

        return partial(mlstm_triton, chunk_len=chunk_len)
    if name == "chunkwise":
        return partial(mlstm_chunkwise, chunk_len=chunk_len)
    if one_step:
        from exlstm.ops.mlstm.numba_step import mlstm_numba_step

        return mlstm_numba_step
    from exlstm.ops.mlstm.numba_chunkwise import mlstm_numba

    return partial(mlstm_numba, chunk_len=chunk_len)


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
    backend: "auto", "numba" (float32 on a CPU), "triton" (a GPU, up to float32; chunk_len becomes a power of two from
    16 to 256), "chunkwise" (any device and dtype), all with a hand-written backward and memory linear in T, or
    "recurrent" (the definition).

    Returns h [B, T, H, V] in q's dtype and the state after the last step, float32 or wider. The state's m carries
    no gradient (see `reference`); C and n do, in both directions.
    Raises ValueError for shapes that do not fit and for a backend that cannot run.
    """
    (B, T, H, K), V = q_BTHK.shape, v_BTHV.shape[-1]
    given, needed = (k_BTHK, v_BTHV, i_BTH, f_BTH), ((B, T, H, K), (B, T, H, V), (B, T, H), (B, T, H))
    for name, x, shape in zip("kvif", given, needed, strict=True):
        if x.shape != shape:
            raise ValueError(f"{name} has shape {tuple(x.shape)}; with q {tuple(q_BTHK.shape)} it must be {shape}.")
    if T < 1 or chunk_len < 1:
        raise ValueError(f"the sequence has {T} steps and chunk_len is {chunk_len}; both must be at least 1.")
    if input_gate not in ("exp", "sigmoid"):
        raise ValueError(f"input_gate is {input_gate!r}; it must be 'exp' or 'sigmoid'.")
    check_rows("reset_BT", reset_BT, (B, T))
    check_rows("lengths_B", lengths_B, (B,))
    state = zero_state(k_BTHK, v_BTHV) if state is None else state
    for name, x, shape in zip(state._fields, state, ((B, H, K, V), (B, H, K), (B, H)), strict=True):
        if x.shape != shape:
            check_rows(f"{name} of the state", x, shape)
    valid_BT = None if lengths_B is None else inside(lengths_B, T)
    if valid_BT is not None:
        # a step that writes nothing (log i = -inf) and forgets nothing (log f = 0)
        i_BTH = i_BTH.masked_fill(~valid_BT[..., None], -torch.inf)
        f_BTH = f_BTH.masked_fill(~valid_BT[..., None], torch.inf)
        # and whatever is there, perhaps NaN, meets nothing else in a product
        q_BTHK, k_BTHK, v_BTHV = (x.masked_fill(~valid_BT[..., None, None], 0) for x in (q_BTHK, k_BTHK, v_BTHV))
        reset_BT = None if reset_BT is None else reset_BT & valid_BT
    run = pick((q_BTHK, k_BTHK, v_BTHV, i_BTH, f_BTH, *state), backend, chunk_len)
    with exactly(q_BTHK):
        h_BTHV, state = run(
            q_BTHK, k_BTHK, v_BTHV, i_BTH, f_BTH, state,
            reset_BT=reset_BT, input_gate=input_gate, normalize=normalize, eps=eps,
        )  # fmt: skip
    if valid_BT is not None:
        h_BTHV = h_BTHV.masked_fill(~valid_BT[..., None, None], 0)
    return h_BTHV, state
