"""mLSTM: the matrix memory of xLSTM. `reference` defines it, the other pages compute the same numbers faster."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from exlstm.ops.arguments import check_like, checked_rows, checked_state
from exlstm.ops.common import row_masks, upcast, without_autocast, zero_padding
from exlstm.ops.gates import ForgetGate, InputGate, check_gates, log_input_gate
from exlstm.ops.mlstm.chunkwise import mlstm_chunkwise
from exlstm.ops.mlstm.reference import MLSTMState, mlstm_recurrent, mlstm_step, zero_state
from exlstm.ops.packed import check_borders, packed_index
from exlstm.runtime.availability import chunk_obstacle, widened_kernel_obstacle
from exlstm.runtime.backend import choose
from exlstm.runtime.gpu.limits import gpu_candidate
from exlstm.runtime.tracing import has_gradients

__all__ = [
    "ForgetGate", "InputGate", "MLSTMState", "mlstm", "mlstm_chunkwise", "mlstm_recurrent", "mlstm_step", "zero_state",
]  # fmt: skip
CHUNK = 64  # steps that the forms for a CPU take at once, if they are not told


def pick(
    tensors: tuple[Tensor, ...], backend: str, forget_gate: ForgetGate, chunk_len: int | None, cu_seqlens: Tensor | None
) -> tuple[str, Callable[..., tuple[Tensor, MLSTMState]]]:
    """The form that runs on these q, k, v, i, f, C, n, m, and its name."""
    T = tensors[0].shape[1]
    one_step = T == 1 and cu_seqlens is None and not has_gradients(tensors)
    no_chunk = chunk_obstacle(T, backend) if cu_seqlens is None else None
    no_gate = None if forget_gate == "sigmoid" else f"it has the forget gate sigmoid, not {forget_gate}"
    candidates = [
        ("numba", widened_kernel_obstacle(tensors)),
        *gpu_candidate(tensors, backend, no_gate or (None if one_step else no_chunk)),
        ("chunkwise", no_chunk),
        ("recurrent", None),
    ]
    name = choose("mlstm", backend, candidates, tensors, portable=("chunkwise",))
    run: Callable[..., tuple[Tensor, MLSTMState]] = mlstm_recurrent
    if name == "triton" and one_step:
        from exlstm.ops.mlstm.triton.step_op import mlstm_triton_step

        run = partial(on_triton, mlstm_triton_step)
    elif name == "triton":
        from exlstm.ops.mlstm.triton.op import mlstm_triton

        run = partial(on_triton, partial(mlstm_triton, chunk_len=chunk_len, cu_seqlens=cu_seqlens))
    elif name == "chunkwise":
        run = partial(mlstm_chunkwise, chunk_len=chunk_len or CHUNK)
    elif name == "numba" and one_step:
        from exlstm.ops.mlstm.numba.step import mlstm_numba_step as run
    elif name == "numba":
        from exlstm.ops.mlstm.numba.scan import mlstm_numba

        run = partial(mlstm_numba, chunk_len=chunk_len or CHUNK)
    return name, run


def on_triton(
    run: Callable[..., tuple[Tensor, MLSTMState]], q_BTHK: Tensor, k_BTHK: Tensor, v_BTHV: Tensor, i_BTH: Tensor,
    f_BTH: Tensor, state: MLSTMState, /, *, input_gate: InputGate, forget_gate: ForgetGate, **options: Any,
) -> tuple[Tensor, MLSTMState]:  # fmt: skip
    """Kernels that have the exponential gate and the sigmoid: another one comes to them as an exponent."""
    if input_gate not in ("exp", "sigmoid"):
        i_BTH, input_gate = log_input_gate(upcast(i_BTH), input_gate, -torch.inf), "exp"
    return run(q_BTHK, k_BTHK, v_BTHV, i_BTH, f_BTH, state, input_gate=input_gate, **options)


def mlstm(
    q_BTHK: Tensor, k_BTHK: Tensor, v_BTHV: Tensor, i_BTH: Tensor, f_BTH: Tensor, state: MLSTMState | None = None, /,
    *, reset_BT: Tensor | None = None, lengths_B: Tensor | None = None, cu_seqlens: Tensor | None = None,
    input_gate: InputGate = "exp", forget_gate: ForgetGate = "sigmoid", normalize: bool = True, eps: float = 1e-6,
    chunk_len: int | None = None, backend: str = "auto",
) -> tuple[Tensor, MLSTMState]:  # fmt: skip
    """A sequence through the mLSTM cell (Beck et al. 2024, arXiv:2405.04517, eqs 19-27 and 71-105).

    q, k: [B, T, H, K] and v: [B, T, H, V] in any float dtype; q is scaled by K^-1/2 here. i, f: [B, T, H]
    pre-activations of the gates, in nats. state: what came before, None for nothing.
    reset_BT (bool): clear the row's state before that step. lengths_B (int): steps at or beyond a row's
    length leave its state alone and give h = 0.
    cu_seqlens (int): the inputs are one row, B = 1, of S sequences one after another; [S + 1] borders between them,
    from 0 to T. The state, given and returned, has a row for each. Triton's kernels take them as they are, other
    backends pad them to rows. (Sequences that need no states of their own can as well be cut by reset_BT.)
    input_gate: "exp", "sigmoid", "softplus", "relu" or "relu2" (the square of relu); forget_gate: "sigmoid" or "exp".
    Two sigmoids are mLSTMsig, and have m = 0. normalize: divide by max(|n.q|, exp(-m)) + eps.
    chunk_len: how many steps the chunkwise forms take at once, None for what suits them; changes speed, not numbers.
    backend: "auto", "numba" (float32 on a CPU), "triton" (a GPU, up to float32, sigmoid forget gate; chunk_len becomes
    a power of two from 16 to 256), "chunkwise" (any device and dtype), all with a hand-written backward and memory
    linear in T, or "recurrent" (the definition).

    Returns h [B, T, H, V] in q's dtype and the state after the last step, float32 or wider. The state's m carries
    no gradient (see `reference`); C and n do, in both directions.
    Raises ValueError for shapes that do not fit and for a backend that cannot run.
    """
    inputs: tuple[Tensor, ...] = (q_BTHK, k_BTHK, v_BTHV, i_BTH, f_BTH)
    check_gates(input_gate, forget_gate)
    reset_BT, lengths_B = checked_rows(q_BTHK, reset_BT, lengths_B)
    state = checked(inputs, state, lengths_B, cu_seqlens, chunk_len)
    name, run = pick((*inputs, *state), backend, forget_gate, chunk_len, cu_seqlens)
    if cu_seqlens is not None and name != "triton":
        packed = packed_index(cu_seqlens.to(q_BTHK.device))
        q_SLHK, k_SLHK, v_SLHV, i_SLH, f_SLH = map(packed.unpack, inputs)
        h_SLHV, state = mlstm(
            q_SLHK, k_SLHK, v_SLHV, i_SLH, f_SLH, state,
            reset_BT=None if reset_BT is None else packed.unpack(reset_BT), lengths_B=packed.lengths_S,
            input_gate=input_gate, forget_gate=forget_gate, normalize=normalize, eps=eps, chunk_len=chunk_len,
            backend=backend,
        )  # fmt: skip
        return packed.pack(h_SLHV), state
    reset_BT, valid_BT = row_masks(reset_BT, lengths_B, q_BTHK.shape[1])
    if valid_BT is not None:
        inputs = without_padding(inputs, valid_BT, forget_gate)
    with without_autocast(q_BTHK):
        h_BTHV, state = run(
            *inputs, state,
            reset_BT=reset_BT, input_gate=input_gate, forget_gate=forget_gate, normalize=normalize, eps=eps,
        )  # fmt: skip
    return h_BTHV if valid_BT is None else h_BTHV.masked_fill(~valid_BT[..., None, None], 0), state


def without_padding(inputs: tuple[Tensor, ...], valid_BT: Tensor, forget_gate: ForgetGate) -> tuple[Tensor, ...]:
    """q, k, v, i, f whose steps beyond a row's length write nothing (log i = -inf) and forget nothing (log f = 0)."""
    *qkv, i_BTH, f_BTH = inputs
    i_BTH = i_BTH.masked_fill(~valid_BT[..., None], -torch.inf)
    f_BTH = f_BTH.masked_fill(~valid_BT[..., None], torch.inf if forget_gate == "sigmoid" else 0.0)
    return *(zero_padding(x, valid_BT) for x in qkv), i_BTH, f_BTH


def checked(inputs: tuple[Tensor, ...], state: MLSTMState | None, lengths_B: Tensor | None, cu_seqlens: Tensor | None,
            chunk_len: int | None) -> MLSTMState:  # fmt: skip
    """The state, zero if there is none; ValueError for arguments of `mlstm` that do not fit one another."""
    q_BTHK, k_BTHK, v_BTHV, *_ = inputs
    (B, T, H, K), V = q_BTHK.shape, v_BTHV.shape[-1]
    needed = (B, T, H, K), (B, T, H, V), (B, T, H), (B, T, H)
    for name, x, shape in zip("kvif", inputs[1:], needed, strict=True):
        check_like(name, x, shape, q_BTHK)
    if chunk_len is not None and chunk_len < 1:
        raise ValueError(f"chunk_len is {chunk_len}; it must be at least 1.")
    if cu_seqlens is not None:
        check_borders(cu_seqlens, B, T)
        if lengths_B is not None:
            raise ValueError("lengths_B and cu_seqlens are both given; cu_seqlens already says how long sequences are.")
    S = B if cu_seqlens is None else len(cu_seqlens) - 1
    if state is None:
        return zero_state(*(x.expand(S, -1, -1, -1) for x in (q_BTHK, v_BTHV)))
    return checked_state(state, MLSTMState, ((S, H, K, V), (S, H, K), (S, H)), q_BTHK)
