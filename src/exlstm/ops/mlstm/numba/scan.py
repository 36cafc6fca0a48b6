"""mLSTM over chunks on a CPU: the equations of `chunkwise`, chunk by chunk.

All that a chunk needs stays in the caches of one core, and its products are tiles in the same kernels, which run
without the interpreter lock from the first step to the last; an item is a head of a row of the batch. Saved for the
backward is what `chunkwise` saves: q, k, v, h, the gates, and one state per span.

B batch  T time  H heads  N chunks of a span  R spans  L, S chunk length (target, source)  K key width  V value width
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy import float32, float64
from torch import Tensor

from exlstm.ops.common import detached_contiguous, upcast
from exlstm.ops.derivatives import once_differentiable
from exlstm.ops.gates import ForgetGate, InputGate
from exlstm.ops.mlstm.chunkwise import SPAN_CHUNKS, Options
from exlstm.ops.mlstm.numba.chunk import (
    InputTensors,
    Keys,
    OutputTensors,
    Sizes,
    Values,
    chunk_at,
    chunk_backward,
    chunk_numbers,
    fill_gate_weights,
    grads_at,
    grads_numbers,
    inputs_at,
    mass_backward,
    outputs_at,
    read_chunk,
    read_state,
    update_state,
)
from exlstm.ops.mlstm.numba.rows import scale_rows
from exlstm.ops.mlstm.reference import MLSTMState, log_gates, needs_unit
from exlstm.runtime import capture
from exlstm.runtime.cpu.kernel import F32, F64, kernel
from exlstm.runtime.cpu.launch import launch, microseconds
from exlstm.runtime.cpu.matmul import lower_product
from exlstm.runtime.cpu.memory import LINE_NUMBERS, SIZE, copy, hold, line_of, rows_at, tensor_at
from exlstm.runtime.tracing import has_gradients

START_DTYPES = (torch.float32, torch.float32, torch.float64)  # of C, n and m before a span


class State(NamedTuple):
    """Addresses of the state, updated in place from before the first step to after the last."""

    c_BHKV: F32
    n_BHK: F32
    m_BH: F32


class Starts(NamedTuple):
    """Addresses of the state before every span; R is 0 if no backward will follow."""

    R: int
    c_RBHKV: F32
    n_RBHK: F32
    m_RBH: F64


@kernel()
def forward_scan(first: int, last: int, sizes: Sizes, options: Options, inputs: InputTensors, h_BTHV: F32, state: State,
                 starts: Starts) -> None:  # fmt: skip
    """Forward of some heads of rows: fills h, the state, and the state before every span."""
    B, T, H, K, V, chunk_len = sizes
    m_BH, m_RBH = tensor_at(state.m_BH, B * H, float32), tensor_at(starts.m_RBH, last, float64)
    length, span_len = min(chunk_len, T), SPAN_CHUNKS * chunk_len
    memory = np.empty(chunk_numbers(length, K) + LINE_NUMBERS, float32)
    work = line_of(memory)
    for item in range(first, last):
        b, h, m = item // H, item % H, float64(m_BH[item])
        c, n = state.c_BHKV + SIZE * item * K * V, state.n_BHK + SIZE * item * K
        c_KV, n_K = rows_at(c, K, V, V), tensor_at(n, K, float32)
        for start in range(0, T, chunk_len):
            if starts.R > 0 and start % span_len == 0:
                place = start // span_len * B * H + item
                copy(starts.c_RBHKV + SIZE * place * K * V, c, K * V)
                copy(starts.n_RBHK + SIZE * place * K, n, K)
                m_RBH[place] = m
            L = min(chunk_len, T - start)
            x, w = inputs_at(inputs, sizes, b, h, start, L), chunk_at(work, L, K)
            h_LV = rows_at(h_BTHV + SIZE * ((b * T + start) * H + h) * V, L, V, H * V)
            m = read_chunk(w, x, n_K, m, options)
            lower_product(h_LV, w.p_LS, x.v_LV)
            read_state(w, x, c_KV, h_LV)
            scale_rows(h_LV, w.inverse_L, 1.0, h_LV)
            update_state(w, x, c_KV, n_K)
        m_BH[item] = float32(m)
    hold(memory)


class StateGradients(NamedTuple):
    """Addresses of the state's gradients, updated in place from after the last step to before the first."""

    dc_BHKV: F32
    dn_BHK: F32


@kernel()
def backward_scan(first: int, last: int, sizes: Sizes, options: Options, inputs: InputTensors, h_BTHV: F32,
                  dh_BTHV: F32, starts: Starts, dstate: StateGradients, outputs: OutputTensors) -> None:  # fmt: skip
    """Backward of some heads of rows: fills the gradients of the inputs and of the state."""
    B, T, H, K, V, chunk_len = sizes
    length, span_len = min(chunk_len, T), SPAN_CHUNKS * chunk_len
    N, spans = min(SPAN_CHUNKS, -(-T // chunk_len)), -(-T // span_len)
    m_RBH, m_N = tensor_at(starts.m_RBH, spans * B * H, float64), np.empty(N, float64)
    numbers = chunk_numbers(length, K) + grads_numbers(length, K, V) + N * K * (V + 1)
    memory = np.empty(numbers + LINE_NUMBERS, float32)
    work = line_of(memory)
    grads = work + SIZE * chunk_numbers(length, K)
    c_NKV = grads + SIZE * grads_numbers(length, K, V)
    n_NK = c_NKV + SIZE * N * K * V
    for item in range(first, last):
        b, h = item // H, item % H
        dc_KV = rows_at(dstate.dc_BHKV + SIZE * item * K * V, K, V, V)
        dn_K = tensor_at(dstate.dn_BHK + SIZE * item * K, K, float32)
        for span in range(spans - 1, -1, -1):
            begin, place = span * span_len, span * B * H + item
            chunks = min(N, -(-(T - begin) // chunk_len))
            copy(c_NKV, starts.c_RBHKV + SIZE * place * K * V, K * V)
            copy(n_NK, starts.n_RBHK + SIZE * place * K, K)
            m_N[0] = m_RBH[place]
            for n in range(1, chunks):  # recomputes the states within the span
                c, n_at, start = c_NKV + SIZE * n * K * V, n_NK + SIZE * n * K, begin + (n - 1) * chunk_len
                x, w = inputs_at(inputs, sizes, b, h, start, chunk_len), chunk_at(work, chunk_len, K)
                m_N[n] = fill_gate_weights(w, x, m_N[n - 1], options)
                copy(c, c - SIZE * K * V, K * V)
                copy(n_at, n_at - SIZE * K, K)
                update_state(w, x, rows_at(c, K, V, V), tensor_at(n_at, K, float32))
            for n in range(chunks - 1, -1, -1):
                start = begin + n * chunk_len
                L = min(chunk_len, T - start)
                x, w, g = inputs_at(inputs, sizes, b, h, start, L), chunk_at(work, L, K), grads_at(grads, L, K, V)
                c_KV, n_K = rows_at(c_NKV + SIZE * n * K * V, K, V, V), tensor_at(n_NK + SIZE * n * K, K, float32)
                here = SIZE * ((b * T + start) * H + h) * V
                read_chunk(w, x, n_K, m_N[n], options)
                h_LV, dh_LV = rows_at(h_BTHV + here, L, V, H * V), rows_at(dh_BTHV + here, L, V, H * V)
                mass_backward(w, g, h_LV, dh_LV, options.normalize)
                chunk_backward(w, g, x, c_KV, n_K, dc_KV, dn_K, outputs_at(outputs, sizes, b, h, start, L))
    hold(memory)


def sizes_of(q_BTHK: Tensor, v_BTHV: Tensor, chunk_len: int) -> Sizes:
    """The `Sizes` of these inputs."""
    B, T, H, K = q_BTHK.shape
    return Sizes(B, T, H, K, v_BTHV.shape[3], chunk_len)


def in_rows(x_BTHK: Tensor) -> Tensor:
    """`x` if each of its steps is a contiguous row, else a copy."""
    return x_BTHK if x_BTHK.stride(3) == 1 else x_BTHK.contiguous()


def tensors_of(
    log_i_BTH: Tensor, log_f_BTH: Tensor, reset_BT: Tensor, q_BTHK: Tensor, k_BTHK: Tensor, v_BTHV: Tensor
) -> InputTensors:
    """The inputs with their strides, as the kernels read them: they may be slices, and shared by heads."""
    q, k, v = (tuple(SIZE * step for step in x.stride()[:3]) for x in (q_BTHK, k_BTHK, v_BTHV))
    return InputTensors(log_i_BTH, log_f_BTH, reset_BT, Keys(q_BTHK, *q), Keys(k_BTHK, *k), Values(v_BTHV, *v))


def cost_of(sizes: Sizes, products: int) -> float:
    """The cost of `products` products of every chunk with its keys or values."""
    steps = sizes.B * sizes.T * sizes.H
    return microseconds(flops=products * steps * (sizes.K + sizes.V) * min(sizes.chunk_len, sizes.T))


def writable_copies(*tensors: Tensor) -> list[Tensor]:
    """Contiguous copies that may be written to, in torch's memory, which is aligned.

    NumPy copies: after a parallel copy torch's threads spin for milliseconds on the cores that the kernels need.
    """
    capture.refuse("the mLSTM over chunks")
    copies = [torch.empty(x.shape, dtype=x.dtype) for x in tensors]
    for x, made in zip(tensors, copies, strict=True):
        np.copyto(made.numpy(), x.detach().numpy())
    return copies


class Chunkwise(torch.autograd.Function):
    """(log i, log f, q, k, v, C, n, m) -> (h, C, n, m); everything float32. saves_residuals: a backward will follow."""

    @staticmethod
    def forward(ctx: Any, log_i_BTH: Tensor, log_f_BTH: Tensor, q_BTHK: Tensor, k_BTHK: Tensor, v_BTHV: Tensor,
                c_BHKV: Tensor, n_BHK: Tensor, m_BH: Tensor, reset_BT: Tensor, chunk_len: int, options: Options,
                saves_residuals: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
        gates = detached_contiguous(log_i_BTH, log_f_BTH)
        qkv = [in_rows(x.detach()) for x in (q_BTHK, k_BTHK, v_BTHV)]
        inputs, state = [*gates, reset_BT, *qkv], writable_copies(c_BHKV, n_BHK, m_BH)
        B, T, H, _ = q_BTHK.shape
        R = -(-T // (SPAN_CHUNKS * chunk_len)) if saves_residuals else 0
        # m is rounded at the very end only: C is in its unit, and another unit would be another C
        starts = [x.new_empty(R, *x.shape, dtype=dtype) for x, dtype in zip(state, START_DTYPES, strict=True)]
        h_BTHV = torch.empty(v_BTHV.shape)
        sizes = sizes_of(q_BTHK, v_BTHV, chunk_len)
        launch(
            forward_scan, B * H, sizes, options, tensors_of(*inputs), h_BTHV, State(*state), Starts(R, *starts),
            cost=cost_of(sizes, 4),
        )  # fmt: skip
        ctx.save_for_backward(*inputs, h_BTHV, *starts)
        ctx.chunk_len, ctx.options = chunk_len, options
        ctx.mark_non_differentiable(state[2])
        c_BHKV, n_BHK, m_BH = state
        return h_BTHV, c_BHKV, n_BHK, m_BH

    @staticmethod
    @once_differentiable("mlstm", "numba")
    def backward(ctx: Any, dh_BTHV: Tensor, dc_BHKV: Tensor, dn_BHK: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors  # asked for once: checkpointing refuses a second time
        inputs, (h_BTHV, *starts) = saved[:6], saved[6:]
        log_i_BTH, log_f_BTH, _, *qkv = inputs
        sizes, R = sizes_of(qkv[0], qkv[2], ctx.chunk_len), len(starts[0])
        dstate = writable_copies(dc_BHKV, dn_BHK)
        grads = [torch.empty(x.shape) for x in (*qkv, log_i_BTH, log_f_BTH)]
        (dh_BTHV,) = detached_contiguous(dh_BTHV)
        launch(
            backward_scan, sizes.B * sizes.H, sizes, ctx.options, tensors_of(*inputs), h_BTHV, dh_BTHV,
            Starts(R, *starts), StateGradients(*dstate), OutputTensors(*grads), cost=cost_of(sizes, 12),
        )  # fmt: skip
        return *grads[3:], *grads[:3], *dstate, None, None, None, None, None


def mlstm_numba(
    q_BTHK: Tensor, k_BTHK: Tensor, v_BTHV: Tensor, i_BTH: Tensor, f_BTH: Tensor, state: MLSTMState, /,
    *, reset_BT: Tensor | None = None, input_gate: InputGate = "exp", forget_gate: ForgetGate = "sigmoid",
    normalize: bool = True, eps: float = 1e-6, chunk_len: int = 64,
) -> tuple[Tensor, MLSTMState]:  # fmt: skip
    """The same numbers as `mlstm_chunkwise`, in float32 on a CPU."""
    inputs = (*log_gates(i_BTH, f_BTH, input_gate, forget_gate), upcast(q_BTHK), upcast(k_BTHK), upcast(v_BTHV), *state)
    reset_BT = torch.zeros(q_BTHK.shape[:2], dtype=torch.bool) if reset_BT is None else reset_BT.contiguous()
    options = Options(stabilize=needs_unit(input_gate, forget_gate), normalize=normalize, eps=eps)
    needs_backward = has_gradients(inputs)
    h_BTHV, *after = Chunkwise.apply(*inputs, reset_BT, chunk_len, options, needs_backward)  # type: ignore[no-untyped-call]
    return h_BTHV.to(q_BTHK.dtype), MLSTMState(*after)
