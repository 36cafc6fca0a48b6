"""The delta rule: a memory that is corrected towards what it should have held, and its general form, DPLR.

The memory of DeltaNet, Gated DeltaNet and KDA (`delta_rule`), and of RWKV-7 (`dplr_rule`). `reference` is the
definition, the other pages compute the same numbers faster.

B batch  T time  H heads  K key width  V value width  G 1 or K
"""

from collections.abc import Callable

from torch import Tensor

from exlstm.ops.arguments import check_like, checked_rows, checked_state
from exlstm.ops.common import row_masks, without_autocast
from exlstm.ops.delta_rule.chunkwise import rule_chunkwise
from exlstm.ops.delta_rule.reference import DeltaState, RuleInputs, delta_step, dplr_step, rule_recurrent
from exlstm.runtime.availability import chunk_obstacle, widened_kernel_obstacle
from exlstm.runtime.backend import choose
from exlstm.runtime.gpu.limits import gpu_candidate
from exlstm.runtime.tracing import has_gradients

__all__ = ["DeltaState", "delta_rule", "delta_step", "dplr_rule", "dplr_step"]
MAX_KEYS = 256  # of a head on a GPU: a program holds them all


def delta_rule(
    q_BTHK: Tensor,
    k_BTHK: Tensor,
    v_BTHV: Tensor,
    beta_BTH: Tensor,
    g: Tensor | None = None,
    state: DeltaState | None = None,
    /,
    *,
    reset_BT: Tensor | None = None,
    lengths_B: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, DeltaState]:
    """A sequence through the delta rule (Schlag et al. 2021, arXiv:2102.11174); any T >= 1, also one step.

    q, k: [B, T, H, K] and v: [B, T, H, V] in any float dtype, none of them scaled or normalized here: with keys of
    length 1 and beta from 0 to 2 the memory cannot grow. beta: [B, T, H], the strength of a correction.
    g: logarithms of the decays, at most 0, perhaps -inf: [B, T, H] (Yang et al. 2024, arXiv:2412.06464) or one for each
    key channel, [B, T, H, K] (KDA, arXiv:2510.26692); None: nothing decays. The memory decays first, then it is
    corrected.
    state: what came before, None for nothing. reset_BT (bool): clear the row's memory before that step. lengths_B
    (int): steps at or beyond a row's length leave its memory alone and give 0, whatever is there.
    backend: "auto", "numba" (up to float32 on a CPU), "triton" (a GPU, up to float32, heads of at most 256 keys; one
    decay per head or none, but for single steps), "chunkwise" (any device and dtype), all with a backward in memory
    linear in T, or "recurrent" (the definition).

    Returns o [B, T, H, V] in q's dtype and the state after the last step, float32 or wider.
    Raises ValueError for shapes that do not fit and for a backend that cannot run.
    """
    (B, T, H, K), V = q_BTHK.shape, v_BTHV.shape[-1]
    check_like("k", k_BTHK, (B, T, H, K), q_BTHK)
    check_like("v", v_BTHV, (B, T, H, V), q_BTHK)
    check_like("beta", beta_BTH, (B, T, H), q_BTHK)
    if g is not None:
        check_like("g", g, (B, T, H) if g.ndim == 3 else (B, T, H, K), q_BTHK)
        g = g[..., None] if g.ndim == 3 else g
    x = RuleInputs(q_BTHK, k_BTHK, v_BTHV, beta_BTH, None, None, g)
    return run("delta_rule", x, state, reset_BT, lengths_B, backend)


def dplr_rule(
    q_BTHK: Tensor,
    k_BTHK: Tensor,
    v_BTHV: Tensor,
    a_BTHK: Tensor,
    b_BTHK: Tensor,
    g_BTHK: Tensor,
    state: DeltaState | None = None,
    /,
    *,
    reset_BT: Tensor | None = None,
    lengths_B: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, DeltaState]:
    """A sequence through S = diag(e^g) S + b (S^T a)^T + k v^T, o = S^T q (RWKV-7, Peng et al. 2025, arXiv:2503.14456).

    a reads the memory before it decays. RWKV-7 has a of length 1 and b = -a times a rate from 0 to 1 in each channel.
    Everything else is as in `delta_rule`.
    """
    (B, T, H, K), V = q_BTHK.shape, v_BTHV.shape[-1]
    check_like("v", v_BTHV, (B, T, H, V), q_BTHK)
    for name, given in {"k": k_BTHK, "a": a_BTHK, "b": b_BTHK, "g": g_BTHK}.items():
        check_like(name, given, (B, T, H, K), q_BTHK)
    x = RuleInputs(q_BTHK, k_BTHK, v_BTHV, None, a_BTHK, b_BTHK, g_BTHK)
    return run("dplr_rule", x, state, reset_BT, lengths_B, backend)


def run(
    op: str, x: RuleInputs, state: DeltaState | None, reset_BT: Tensor | None, lengths_B: Tensor | None, backend: str
) -> tuple[Tensor, DeltaState]:
    """Either rule, by the backend of the caller's choice."""
    (B, T, H, K), V, dtype = x.q_BTHK.shape, x.v_BTHV.shape[-1], x.q_BTHK.dtype
    reset_BT, lengths_B = checked_rows(x.q_BTHK, reset_BT, lengths_B)
    state = checked_state(state, DeltaState, [(B, H, K, V)], x.q_BTHK)
    tensors = *x.tensors, state.s_BHKV
    one_step = T == 1 and not has_gradients(tensors)
    no_chunk = chunk_obstacle(T, backend)
    candidates = [
        ("numba", widened_kernel_obstacle(tensors)),
        *gpu_candidate(tensors, backend, triton_obstacle(x, one_step) or (None if one_step else no_chunk)),
        ("chunkwise", no_chunk),
        ("recurrent", None),
    ]
    name = choose(op, backend, candidates, tensors)
    if name == "numba":
        from exlstm.ops.delta_rule.numba.op import rule_numba

        o_BTHV, after_BHKV = rule_numba(x, state.s_BHKV, reset_BT, lengths_B)
        return o_BTHV.to(dtype), DeltaState(after_BHKV)
    reset_BT, valid_BT = row_masks(reset_BT, lengths_B, T)
    form: Callable[..., tuple[Tensor, Tensor]] = rule_chunkwise if name == "chunkwise" else rule_recurrent
    if name == "triton":
        from exlstm.ops.delta_rule.triton.op import rule_triton, rule_triton_step

        form = rule_triton_step if one_step else rule_triton
    with without_autocast(x.q_BTHK):
        o_BTHV, after_BHKV = form(x, state.s_BHKV, reset_BT=reset_BT, valid_BT=valid_BT)
    return o_BTHV.to(dtype), DeltaState(after_BHKV)


def triton_obstacle(x: RuleInputs, one_step: bool) -> str | None:
    """Why the kernels for a GPU cannot run on these shapes, or None."""
    if x.q_BTHK.shape[3] > MAX_KEYS:
        return f"a head has {x.q_BTHK.shape[3]} keys, and it holds {MAX_KEYS}"
    if one_step or (x.a_BTHK is None and (x.g_BTHG is None or x.g_BTHG.shape[3] == 1)):
        return None
    return "it has one decay per head, and no decays of channels nor the general form"
