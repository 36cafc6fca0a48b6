"""Linear attention with a decay per channel: the memory of GLA, HGRN2, RWKV-5 and RWKV-6.

`reference` is the definition, `chunkwise` blocks of 16 steps in plain torch, `numba` a loop over steps with the memory
in registers, `triton` blocks of 16 steps on a GPU.

B batch  T time  H heads  K key width  V value width  I either of them, where the decay is
"""

from collections.abc import Callable

from torch import Tensor

from exlstm.ops.arguments import check_like, checked_rows, checked_state
from exlstm.ops.common import row_masks, without_autocast
from exlstm.ops.gated_linear_attention.chunkwise import gated_linear_attention_chunkwise
from exlstm.ops.gated_linear_attention.reference import (
    Axis,
    GatedLinearAttentionState,
    gated_linear_attention_recurrent,
    gated_linear_attention_step,
)
from exlstm.runtime.availability import chunk_obstacle, widened_kernel_obstacle
from exlstm.runtime.backend import choose
from exlstm.runtime.gpu.limits import gpu_candidate
from exlstm.runtime.tracing import has_gradients

__all__ = [
    "Axis",
    "GatedLinearAttentionState",
    "gated_linear_attention",
    "gated_linear_attention_chunkwise",
    "gated_linear_attention_recurrent",
    "gated_linear_attention_step",
]
MAX_KEYS = 256  # of a head in Triton's kernels: S of all keys and some values is in the registers of a program


def gated_linear_attention(
    q_BTHK: Tensor,
    k_BTHK: Tensor,
    v_BTHV: Tensor,
    g_BTHI: Tensor,
    state: GatedLinearAttentionState | None = None,
    /,
    *,
    bonus_HK: Tensor | None = None,
    axis: Axis = "key",
    reset_BT: Tensor | None = None,
    lengths_B: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, GatedLinearAttentionState]:
    """S_t = diag(e^g_t) S_{t-1} + k_t v_t^T and o_t = S_t^T q_t over a sequence (Yang et al. 2023, arXiv:2312.06635).

    q, k: [B, T, H, K] and v: [B, T, H, V] in any float dtype; q is scaled by the caller. g: logarithms of the decays,
    in nats, at most 0, also -inf; [B, T, H, K], or [B, T, H, V] with axis="value": S_{t-1} diag(e^g_t). Expanded axes
    are read as they are. state: S before the first step, None for zeros.
    bonus: [H, K], or None. With one, a step is read before it is written, o_t = S_{t-1}^T q_t + (q_t . (u k_t)) v_t
    (Peng et al. 2024, arXiv:2404.05892).
    reset_BT (bool): S counts as zero before that step. lengths_B (int): steps at or beyond a row's length leave its
    state alone and give 0, whatever is there.
    backend: "auto", "numba" (a CPU, up to float32), "triton" (a GPU, up to float32, axis "key", K up to 256),
    "chunkwise" (any device and dtype), all with a hand-written backward and memory linear in T, or "recurrent" (the
    definition).

    Returns o [B, T, H, V] in q's dtype and the state after the last step, float32 or wider.
    Raises ValueError for shapes that do not fit and for a backend that cannot run.
    """
    inputs = q_BTHK, k_BTHK, v_BTHV, g_BTHI
    reset_BT, lengths_B = checked_rows(q_BTHK, reset_BT, lengths_B)
    state = checked(inputs, state, bonus_HK, axis)
    tensors = (*inputs, state.s_BHKV) if bonus_HK is None else (*inputs, state.s_BHKV, bonus_HK)
    T, name, run = q_BTHK.shape[1], *pick(tensors, backend, axis)
    if name == "numba":
        o_BTHV, s_BHKV = run(*inputs, state.s_BHKV, bonus_HK, axis, reset_BT, lengths_B)
        return o_BTHV, GatedLinearAttentionState(s_BHKV)
    reset_BT, valid_BT = row_masks(reset_BT, lengths_B, T)
    with without_autocast(q_BTHK):
        o_BTHV, s_BHKV = run(*inputs, state.s_BHKV, bonus_HK=bonus_HK, axis=axis, reset_BT=reset_BT, valid_BT=valid_BT)
    return o_BTHV.to(q_BTHK.dtype), GatedLinearAttentionState(s_BHKV)


def pick(tensors: tuple[Tensor, ...], backend: str, axis: Axis) -> tuple[str, Callable[..., tuple[Tensor, Tensor]]]:
    """The form that runs on these tensors, and its name."""
    no_chunk = chunk_obstacle(tensors[0].shape[1], backend)
    has_gradient = has_gradients(tensors)
    candidates = [
        ("numba", widened_kernel_obstacle(tensors)),
        *gpu_candidate(tensors, backend, gpu_kernel_obstacle(tensors, axis) or (no_chunk if has_gradient else None)),
        ("chunkwise", no_chunk),
        ("recurrent", None),
    ]
    name = choose("gated_linear_attention", backend, candidates, tensors)
    if name == "numba":
        from exlstm.ops.gated_linear_attention.numba.op import gated_linear_attention_numba

        return name, gated_linear_attention_numba
    if name == "triton":
        from exlstm.ops.gated_linear_attention.triton.op import gated_linear_attention_triton

        return name, gated_linear_attention_triton
    return name, gated_linear_attention_chunkwise if name == "chunkwise" else gated_linear_attention_recurrent


def gpu_kernel_obstacle(tensors: tuple[Tensor, ...], axis: Axis) -> str | None:
    """What the Triton kernels cannot do, or None."""
    if axis != "key":
        return "its decays are per key channel"
    return None if tensors[0].shape[3] <= MAX_KEYS else f"its heads have up to {MAX_KEYS} keys"


def checked(
    inputs: tuple[Tensor, ...], state: GatedLinearAttentionState | None, bonus_HK: Tensor | None, axis: Axis
) -> GatedLinearAttentionState:
    """The state, zeros if there is none; ValueError for arguments that do not fit one another."""
    q_BTHK, k_BTHK, v_BTHV, g_BTHI = inputs
    (B, T, H, K), V = q_BTHK.shape, v_BTHV.shape[-1]
    if axis not in ("key", "value"):
        raise ValueError(f"axis is {axis!r}; it must be 'key' or 'value'.")
    check_like("k", k_BTHK, (B, T, H, K), q_BTHK)
    check_like("v", v_BTHV, (B, T, H, V), q_BTHK)
    check_like("g", g_BTHI, (B, T, H, K if axis == "key" else V), q_BTHK)
    if bonus_HK is not None:
        check_like("bonus", bonus_HK, (H, K), q_BTHK)
    return checked_state(state, GatedLinearAttentionState, [(B, H, K, V)], q_BTHK)
