"""The delta rule on a GPU, with one decay per head or none: Triton kernels over chunks, with the full gradient.

- systems: the triangular system of every chunk, all at once
- memories: S before every chunk, one after another; a program is a block of V of a head
- outputs: all chunks at once

The backward computes systems and memories again, then the gradients of the memories from behind, then of all inputs at
once. Saved are the inputs alone. Memories at the borders of chunks are stored in the inputs' dtype, in which alone they
enter products, and summed in float32. One step, of either rule and any decay, is one kernel.

B batch  T time  H heads  N chunks of a row  K key width  V value width  G 1 or K
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from exlstm.ops.common import upcast, zero_padding
from exlstm.ops.delta_rule.reference import RuleInputs
from exlstm.ops.delta_rule.triton.backward import gradient_kernel, memory_gradient_kernel, read_gradient_kernel
from exlstm.ops.delta_rule.triton.forward import memory_kernel, output_kernel, system_kernel
from exlstm.ops.delta_rule.triton.step import StepInputs, step_kernel
from exlstm.ops.delta_rule.triton.tiles import Constants, Gates, InputGradients, Written
from exlstm.ops.derivatives import once_differentiable
from exlstm.runtime.gpu.operator import block_size, operator

CHUNK = 64  # steps of a chunk, at most
MAX_KEYS = 256  # of a head; `exlstm.ops.delta_rule` refuses more
MEMORY_NUMEL = 4096  # numbers of S that a program holds


class Tiling(NamedTuple):
    """How the work of a call is cut, for all its kernels."""

    B: int
    T: int
    H: int
    K: int
    V: int
    L: int
    precision: str
    decays: bool
    resets: bool

    @property
    def N(self) -> int:
        """Chunks of a row."""
        return -(-self.T // self.L)

    @property
    def sizes(self) -> tuple[int, int, int]:
        """The arguments `T, N, H`, which every kernel has."""
        return self.T, self.N, self.H

    @property
    def memory_block(self) -> tuple[int, int]:
        """(BK, BV) of a program that holds all keys."""
        BK = block_size(self.K, MAX_KEYS)
        return BK, min(block_size(self.V, 64), max(16, MEMORY_NUMEL // BK))

    @property
    def memory_stages(self) -> int:
        """Chunks that the kernels of memories have loaded or are loading: for wide keys shared memory holds one."""
        return 1 if self.memory_block[0] > 128 else 3

    @property
    def block(self) -> tuple[int, int]:
        """(BK, BV) of a program that takes them in turn."""
        return block_size(self.K, 64), block_size(self.V, 64)

    def constants(self, block: tuple[int, int]) -> Constants:
        """What a kernel is compiled for."""
        numbers = self.L, self.K, self.V, *block, self.precision, self.decays, self.resets
        return Constants(*map(tl.constexpr, numbers))


def tiling_of(q_BTHK: Tensor, v_BTHV: Tensor, g_BTH: Tensor | None, reset_BT: Tensor | None) -> Tiling:
    """The tiling of these inputs."""
    exact = q_BTHK.dtype == torch.float32 and torch.get_float32_matmul_precision() == "highest"
    L = block_size(q_BTHK.shape[1], CHUNK if q_BTHK.dtype.itemsize < 4 else CHUNK // 2)
    flags = g_BTH is not None, reset_BT is not None
    B, T, H, K = q_BTHK.shape
    return Tiling(B, T, H, K, v_BTHV.shape[3], L, "ieee" if exact else "tf32", *flags)


def gates_of(beta_BTH: Tensor, g_BTH: Tensor | None, reset_BT: Tensor | None) -> Gates:
    """`Gates` of these tensors, or of stand-ins."""
    return Gates(beta_BTH, beta_BTH if g_BTH is None else g_BTH, beta_BTH if reset_BT is None else reset_BT)


def memories(
    k_BTHK: Tensor, v_BTHV: Tensor, gates: Gates, s_BHKV: Tensor, tiling: Tiling
) -> tuple[Tensor, Tensor, Written, Tensor, Tensor]:
    """C of every chunk, W, U and W S, S before every chunk, and after the last."""
    B, N, H, L = tiling.B, tiling.N, tiling.H, tiling.L
    inverse = s_BHKV.new_empty(B, N, H, L, L)
    w, u, old = torch.empty_like(k_BTHK), torch.empty_like(v_BTHV), torch.empty_like(v_BTHV)
    system_kernel[B * N, H](
        k_BTHK, v_BTHV, gates, inverse, w, u, *tiling.sizes, tiling.constants(tiling.block), num_warps=4
    )
    chunks = k_BTHK.new_empty(B, N, H, *s_BHKV.shape[2:])
    last_BHKV, block = torch.empty_like(s_BHKV), tiling.memory_block
    memory_kernel[B * H, triton.cdiv(tiling.V, block[1])](
        k_BTHK,
        w,
        u,
        gates,
        s_BHKV,
        old,
        chunks,
        last_BHKV,
        *tiling.sizes,
        tiling.constants(block),
        num_warps=4,
        num_stages=tiling.memory_stages,
    )
    return inverse, w, Written(u, old), chunks, last_BHKV


def forward(
    q_BTHK: Tensor,
    k_BTHK: Tensor,
    v_BTHV: Tensor,
    beta_BTH: Tensor,
    g_BTH: Tensor | None,
    s_BHKV: Tensor,
    reset_BT: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """o, and S after the last step. Everything contiguous."""
    tiling, gates = tiling_of(q_BTHK, v_BTHV, g_BTH, reset_BT), gates_of(beta_BTH, g_BTH, reset_BT)
    _, _, made, chunks, last_BHKV = memories(k_BTHK, v_BTHV, gates, s_BHKV, tiling)
    o_BTHV, block = torch.empty_like(v_BTHV), tiling.block
    output_kernel[tiling.B * tiling.N, tiling.H, triton.cdiv(tiling.V, block[1])](
        q_BTHK, k_BTHK, *made, gates, chunks, o_BTHV, *tiling.sizes, tiling.constants(block), num_warps=4
    )
    return o_BTHV, last_BHKV


def fake_forward(q_BTHK: Tensor, k_BTHK: Tensor, v_BTHV: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    """The shapes of `forward`."""
    return torch.empty_like(v_BTHV), torch.empty_like(others[2])


def backward(
    q_BTHK: Tensor,
    k_BTHK: Tensor,
    v_BTHV: Tensor,
    beta_BTH: Tensor,
    g_BTH: Tensor | None,
    s_BHKV: Tensor,
    reset_BT: Tensor | None,
    do_BTHV: Tensor,
    dlast_BHKV: Tensor,
) -> tuple[Tensor, ...]:
    """The gradients of q, k, v, beta, g (that of beta again without a g) and S. Everything contiguous."""
    tiling, gates = tiling_of(q_BTHK, v_BTHV, g_BTH, reset_BT), gates_of(beta_BTH, g_BTH, reset_BT)
    inverse, w, made, before, _ = memories(k_BTHK, v_BTHV, gates, s_BHKV, tiling)
    dr_BTHV, after = v_BTHV.new_empty(v_BTHV.shape, dtype=torch.float32), torch.empty_like(before)
    block, memory_block, dfirst_BHKV = tiling.block, tiling.memory_block, torch.empty_like(s_BHKV)
    grid = tiling.B * tiling.N, tiling.H
    read_gradient_kernel[*grid, triton.cdiv(tiling.V, block[1])](
        q_BTHK, k_BTHK, do_BTHV, gates, dr_BTHV, *tiling.sizes, tiling.constants(block), num_warps=4
    )
    memory_gradient_kernel[tiling.B * tiling.H, triton.cdiv(tiling.V, memory_block[1])](
        q_BTHK,
        k_BTHK,
        w,
        do_BTHV,
        gates,
        dlast_BHKV,
        dr_BTHV,
        after,
        dfirst_BHKV,
        *tiling.sizes,
        tiling.constants(memory_block),
        num_warps=4,
        num_stages=tiling.memory_stages,
    )
    found = InputGradients(*map(torch.empty_like, (q_BTHK, k_BTHK, v_BTHV)))
    dgates = Gates(torch.empty_like(beta_BTH), torch.empty_like(beta_BTH), beta_BTH)
    gradient_kernel[grid](
        q_BTHK,
        k_BTHK,
        v_BTHV,
        do_BTHV,
        gates,
        inverse,
        made,
        dr_BTHV,
        before,
        after,
        found,
        dgates,
        *tiling.sizes,
        tiling.constants(block),
        num_warps=8,
    )
    return *found, dgates.beta, dgates.g, dfirst_BHKV


def fake_backward(*given: Any) -> tuple[Tensor, ...]:
    """The shapes of `backward`."""
    q_BTHK, k_BTHK, v_BTHV, beta_BTH, _, s_BHKV, *_ = given
    return tuple(map(torch.empty_like, (q_BTHK, k_BTHK, v_BTHV, beta_BTH, beta_BTH, s_BHKV)))


INPUTS = "Tensor q, Tensor k, Tensor v, Tensor beta, Tensor? g, Tensor s, Tensor? reset"
run_forward = operator(f"delta_rule_forward({INPUTS}) -> (Tensor, Tensor)", forward, fake_forward)
run_backward = operator(
    f"delta_rule_backward({INPUTS}, Tensor do, Tensor dlast) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    backward,
    fake_backward,
)


class DeltaRuleChunks(torch.autograd.Function):
    """(q, k, v, beta, g, S, reset) -> (o, S after); beta, g and S float32."""

    @staticmethod
    def forward(ctx: Any, *given: Tensor | None) -> tuple[Tensor, Tensor]:
        given = tuple(None if x is None else x.contiguous() for x in given)
        o_BTHV, last_BHKV = run_forward(*given)
        ctx.save_for_backward(*given)
        return o_BTHV, last_BHKV

    @staticmethod
    @once_differentiable("delta_rule", "triton")
    def backward(ctx: Any, do_BTHV: Tensor, dlast_BHKV: Tensor) -> tuple[Tensor | None, ...]:
        given = ctx.saved_tensors
        *found, dg_BTH, ds_BHKV = run_backward(*given, do_BTHV.contiguous(), dlast_BHKV.contiguous())
        return *found, None if given[4] is None else dg_BTH, ds_BHKV, None


def rule_triton(
    x: RuleInputs, s_BHKV: Tensor, /, *, reset_BT: Tensor | None, valid_BT: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The numbers of `rule_recurrent`, of the delta rule with at most one decay per head."""
    if valid_BT is not None:  # steps that write nothing and forget nothing
        x = x.rebuilt([zero_padding(t, valid_BT) for t in x.tensors])
    # float16 cannot hold what the memory sums up to
    dtype = torch.float32 if x.q_BTHK.dtype == torch.float16 else x.q_BTHK.dtype
    g_BTH = None if x.g_BTHG is None else upcast(x.g_BTHG[..., 0])
    inputs = (t.to(dtype) for t in x[:3])
    assert x.beta_BTH is not None
    o_BTHV, after_BHKV = DeltaRuleChunks.apply(  # type: ignore[no-untyped-call]
        *inputs, upcast(x.beta_BTH), g_BTH, s_BHKV, reset_BT
    )
    return o_BTHV if valid_BT is None else zero_padding(o_BTHV, valid_BT), after_BHKV


def step(
    q_BTHK: Tensor,
    k_BTHK: Tensor,
    v_BTHV: Tensor,
    beta_BTH: Tensor | None,
    a_BTHK: Tensor | None,
    b_BTHK: Tensor | None,
    g_BTHG: Tensor | None,
    s_BHKV: Tensor,
    reset_BT: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """o and S after one step. Everything contiguous."""
    B, H, K, V = s_BHKV.shape
    o_BTHV, after_BHKV = torch.empty_like(v_BTHV), torch.empty_like(s_BHKV)
    given = (q_BTHK, k_BTHK, v_BTHV, beta_BTH, a_BTHK, b_BTHK, g_BTHG, reset_BT)
    inputs = StepInputs(*(q_BTHK if x is None else x for x in given))
    BK = block_size(K, MAX_KEYS)
    BV = min(block_size(V, 64), max(16, MEMORY_NUMEL // BK))
    decays = 0 if g_BTHG is None else 1 if g_BTHG.shape[3] == 1 else 2
    step_kernel[B * H * triton.cdiv(V, BV),](
        inputs,
        s_BHKV,
        after_BHKV,
        o_BTHV,
        H,
        K=K,
        V=V,
        BK=BK,
        BV=BV,
        GENERAL=a_BTHK is not None,
        DECAYS=decays,
        RESETS=reset_BT is not None,
    )
    return o_BTHV, after_BHKV


def fake_step(*given: Any) -> tuple[Tensor, Tensor]:
    """The shapes of `step`."""
    return torch.empty_like(given[2]), torch.empty_like(given[7])


run_step = operator(
    "delta_rule_step(Tensor q, Tensor k, Tensor v, Tensor? beta, Tensor? a, Tensor? b, Tensor? g, Tensor s, "
    "Tensor? reset) -> (Tensor, Tensor)",
    step,
    fake_step,
)


def rule_triton_step(
    x: RuleInputs, s_BHKV: Tensor, /, *, reset_BT: Tensor | None, valid_BT: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The numbers of `rule_recurrent` for T = 1, without gradients; o is in the dtype of v."""
    given = (None if t is None else t.contiguous() for t in (*x, s_BHKV, reset_BT))
    o_BTHV, after_BHKV = run_step(*given)
    if valid_BT is None:
        return o_BTHV, after_BHKV
    after_BHKV = torch.where(valid_BT[:, :, None, None], after_BHKV, s_BHKV)
    return zero_padding(o_BTHV, valid_BT), after_BHKV
