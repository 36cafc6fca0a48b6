"""Linear attention with a decay per key channel on a GPU: Triton kernels over blocks of 16 steps.

- scores: the pairs within all blocks
- states: S before every tile, a tile after another
- outputs: all tiles at once

The backward computes S again, before every block, then its gradients from the last block to the first, then those of
the inputs, all blocks at once. Saved are the inputs and the scores, 16 numbers per step. States are stored in the
inputs' dtype, in which alone they enter products, and summed in float32.

B batch  T time  H heads  M rows and heads merged  N tiles of a row  P time in whole tiles  K key width  V value width
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from exlstm.ops.common import upcast, zero_padding
from exlstm.ops.derivatives import once_differentiable
from exlstm.ops.gated_linear_attention.chunkwise import read_before_writing
from exlstm.ops.gated_linear_attention.triton.backward import gradient_kernel, state_gradient_kernel
from exlstm.ops.gated_linear_attention.triton.forward import output_kernel, score_kernel, state_kernel
from exlstm.ops.gated_linear_attention.triton.step import Vectors, step_kernel
from exlstm.ops.gated_linear_attention.triton.tiles import BLOCK, Constants
from exlstm.runtime.gpu.operator import block_size, operator
from exlstm.runtime.gpu.tiles import rows
from exlstm.runtime.tracing import has_gradients

STEPS = BLOCK.value
PARTS = 4  # blocks of a tile, forward
MIN_PROGRAMS = 512  # of a step: some for each of the hundred or so multiprocessors of a large GPU


def without_gaps(x: Tensor) -> Tensor:
    """`x` with a last axis of stride 1."""
    return x if x.stride(-1) == 1 else x.contiguous()


def constants(q_BTHK: Tensor, v_BTHV: Tensor, most_k: int, most_v: int, resets: bool) -> Constants:
    """What a kernel is compiled for; blocks of most_k and most_v channels at the most."""
    K, V = q_BTHK.shape[3], v_BTHV.shape[3]
    exact = q_BTHK.dtype == torch.float32 and torch.get_float32_matmul_precision() == "highest"
    numbers = K, V, block_size(K, most_k), block_size(V, most_v), resets, "ieee" if exact else "tf32"
    return Constants(*map(tl.constexpr, numbers))


def tiles_of(T: int, parts: int) -> int:
    """Tiles of `parts` blocks that cover T steps."""
    return int(-(-T // (STEPS * parts)))


def states(inputs: tuple[Tensor, ...], s_BHKV: Tensor, reset_BT: Tensor | None, parts: int) -> tuple[Tensor, Tensor]:
    """S before every tile of `parts` blocks, [M, N, K, V], and after the last."""
    q_BTHK, k_BTHK, v_BTHV, g_BTHK = inputs
    (B, T, H, K), V = q_BTHK.shape, v_BTHV.shape[3]
    N, const = tiles_of(T, parts), constants(q_BTHK, v_BTHV, 64, 64, reset_BT is not None)
    tiles_MNKV, last_BHKV = q_BTHK.new_empty(B * H, N, K, V), torch.empty_like(s_BHKV)
    state_kernel[B * H, triton.cdiv(K, const.BK.value), triton.cdiv(V, const.BV.value)](
        rows(k_BTHK),
        rows(v_BTHV),
        rows(g_BTHK),
        s_BHKV if reset_BT is None else reset_BT,
        s_BHKV,
        tiles_MNKV,
        last_BHKV,
        T,
        N,
        H,
        const,
        TILE=STEPS * parts,
        num_stages=2,  # with three, float32 takes 112 KB of shared memory, more than some GPUs have; so 64
    )
    return tiles_MNKV, last_BHKV


def forward(
    q_BTHK: Tensor, k_BTHK: Tensor, v_BTHV: Tensor, g_BTHK: Tensor, s_BHKV: Tensor, reset_BT: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """o, S after the last step, and the scores [M, P, 16]."""
    q_BTHK, k_BTHK, v_BTHV, g_BTHK = inputs = tuple(map(without_gaps, (q_BTHK, k_BTHK, v_BTHV, g_BTHK)))
    (B, T, H, K), V, resets = q_BTHK.shape, v_BTHV.shape[3], reset_BT is not None
    N, reset = tiles_of(T, PARTS), s_BHKV if reset_BT is None else reset_BT
    o_BTHV, _, scores = fake_forward(q_BTHK, k_BTHK, v_BTHV, g_BTHK, s_BHKV, reset_BT)
    score_kernel[N * PARTS, B * H](
        rows(q_BTHK),
        rows(k_BTHK),
        rows(g_BTHK),
        reset,
        scores,
        T,
        N * PARTS,
        H,
        constants(q_BTHK, v_BTHV, 64, 16, resets),
    )
    tiles_MNKV, last_BHKV = states(inputs, s_BHKV, reset_BT, PARTS)
    const = constants(q_BTHK, v_BTHV, 256, 64 if K <= 128 else 32, resets)
    output_kernel[N, triton.cdiv(V, const.BV.value), B * H](
        *map(rows, inputs), reset, scores, tiles_MNKV, rows(o_BTHV), T, N, H, const, PARTS=PARTS
    )
    return o_BTHV, last_BHKV, scores


def fake_forward(
    q_BTHK: Tensor, k_BTHK: Tensor, v_BTHV: Tensor, g_BTHK: Tensor, s_BHKV: Tensor, reset_BT: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """The shapes of `forward`."""
    B, T, H, _ = q_BTHK.shape
    scores = s_BHKV.new_empty(B * H, tiles_of(T, PARTS) * PARTS * STEPS, STEPS)
    return q_BTHK.new_empty(v_BTHV.shape), torch.empty_like(s_BHKV), scores


def backward(
    q_BTHK: Tensor,
    k_BTHK: Tensor,
    v_BTHV: Tensor,
    g_BTHK: Tensor,
    s_BHKV: Tensor,
    reset_BT: Tensor | None,
    scores: Tensor,
    do_BTHV: Tensor,
    ds_BHKV: Tensor,
) -> tuple[Tensor, ...]:
    """The gradients of q, k, v, g and S."""
    inputs = tuple(map(without_gaps, (q_BTHK, k_BTHK, v_BTHV, g_BTHK)))
    do_BTHV, (B, T, H, K), V = without_gaps(do_BTHV), q_BTHK.shape, v_BTHV.shape[3]
    reset = s_BHKV if reset_BT is None else reset_BT
    before, _ = states(inputs, s_BHKV, reset_BT, 1)
    # the last tile may have blocks beyond the end, which have no states
    N, scores = before.shape[1], scores[:, : before.shape[1] * STEPS].contiguous()
    const = constants(q_BTHK, v_BTHV, 64, 64, reset_BT is not None)
    after, first_BHKV = torch.empty_like(before), torch.empty_like(s_BHKV)
    state_gradient_kernel[B * H, triton.cdiv(K, const.BK.value), triton.cdiv(V, const.BV.value)](
        rows(inputs[0]), rows(do_BTHV), rows(inputs[3]), reset, ds_BHKV.contiguous(), after, first_BHKV, T, N, H, const
    )
    found = [x.new_empty(x.shape) for x in inputs]
    gradient_kernel[N, B * H](
        *map(rows, (*inputs[:3], do_BTHV, inputs[3])), reset, scores, before, after, *map(rows, found), T, N, H, const
    )
    return *found, first_BHKV


def fake_backward(
    q_BTHK: Tensor, k_BTHK: Tensor, v_BTHV: Tensor, g_BTHK: Tensor, s_BHKV: Tensor, *_: Any
) -> tuple[Tensor, ...]:
    """The shapes of `backward`."""
    return *(x.new_empty(x.shape) for x in (q_BTHK, k_BTHK, v_BTHV, g_BTHK)), torch.empty_like(s_BHKV)


def step(
    q_BTHK: Tensor,
    k_BTHK: Tensor,
    v_BTHV: Tensor,
    g_BTHK: Tensor,
    s_BHKV: Tensor,
    bonus_HK: Tensor | None,
    reset_BT: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """o and S after one step."""
    B, H, K, V = s_BHKV.shape
    s_BHKV = s_BHKV.contiguous()
    o_BTHV, after_BHKV = fake_step(q_BTHK, k_BTHK, v_BTHV, g_BTHK, s_BHKV)
    BV = block_size(V, 64)
    while BV > 16 and B * H * triton.cdiv(V, BV) < MIN_PROGRAMS:
        BV //= 2
    bonus, reset = q_BTHK[0, 0] if bonus_HK is None else bonus_HK, s_BHKV if reset_BT is None else reset_BT
    vectors = (Vectors(x, x.stride(0), x.stride(2), x.stride(3)) for x in (q_BTHK, k_BTHK, v_BTHV, g_BTHK))
    step_kernel[B * H * triton.cdiv(V, BV),](
        *vectors,
        Vectors(bonus, 0, *bonus.stride()),
        reset,
        reset.stride(0),
        s_BHKV,
        after_BHKV,
        o_BTHV,
        H,
        K=K,
        V=V,
        BK=min(4096 // BV, block_size(K, 256)),
        BV=BV,
        BONUS=bonus_HK is not None,
        RESETS=reset_BT is not None,
    )
    return o_BTHV, after_BHKV


def fake_step(
    q_BTHK: Tensor, k_BTHK: Tensor, v_BTHV: Tensor, g_BTHK: Tensor, s_BHKV: Tensor, *_: Any
) -> tuple[Tensor, Tensor]:
    """The shapes of `step`."""
    return q_BTHK.new_empty(v_BTHV.shape), s_BHKV.new_empty(s_BHKV.shape)


INPUTS = "Tensor q, Tensor k, Tensor v, Tensor g, Tensor s"
run_forward = operator(
    f"gated_linear_attention_forward({INPUTS}, Tensor? reset) -> (Tensor, Tensor, Tensor)", forward, fake_forward
)
run_backward = operator(
    f"gated_linear_attention_backward({INPUTS}, Tensor? reset, Tensor scores, Tensor do_, Tensor ds) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    backward,
    fake_backward,
)
run_step = operator(
    f"gated_linear_attention_step({INPUTS}, Tensor? bonus, Tensor? reset) -> (Tensor, Tensor)", step, fake_step
)


class Tiles(torch.autograd.Function):
    """(q, k, v, g, S) -> (o, S); g and S float32: every step is read after it is written."""

    @staticmethod
    def forward(
        ctx: Any,
        q_BTHK: Tensor,
        k_BTHK: Tensor,
        v_BTHV: Tensor,
        g_BTHK: Tensor,
        s_BHKV: Tensor,
        reset_BT: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        o_BTHV, last_BHKV, scores = run_forward(q_BTHK, k_BTHK, v_BTHV, g_BTHK, s_BHKV, reset_BT)
        ctx.save_for_backward(q_BTHK, k_BTHK, v_BTHV, g_BTHK, s_BHKV, reset_BT, scores)
        return o_BTHV, last_BHKV

    @staticmethod
    @once_differentiable("gated_linear_attention", "triton")
    def backward(ctx: Any, do_BTHV: Tensor, ds_BHKV: Tensor) -> tuple[Tensor | None, ...]:
        return *run_backward(*ctx.saved_tensors, do_BTHV, ds_BHKV), None


def gated_linear_attention_triton(
    q_BTHK: Tensor,
    k_BTHK: Tensor,
    v_BTHV: Tensor,
    g_BTHK: Tensor,
    s_BHKV: Tensor,
    /,
    *,
    bonus_HK: Tensor | None,
    axis: str,
    reset_BT: Tensor | None,
    valid_BT: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The numbers of `gated_linear_attention_recurrent`, for decays per key channel. axis: "key"."""
    assert axis == "key"
    # one dtype for products; float16 cannot hold what the memory sums up to
    narrow = {x.dtype for x in (q_BTHK, k_BTHK, v_BTHV)} == {torch.bfloat16}
    dtype = torch.bfloat16 if narrow else torch.float32
    q_BTHK, k_BTHK, v_BTHV = (x.to(dtype) for x in (q_BTHK, k_BTHK, v_BTHV))
    inputs = q_BTHK, k_BTHK, v_BTHV, upcast(g_BTHK)
    if valid_BT is not None:
        inputs = tuple(zero_padding(x, valid_BT) for x in inputs)  # type: ignore[assignment]
    floats = (*inputs, s_BHKV) if bonus_HK is None else (*inputs, s_BHKV, bonus_HK)
    needs_backward = has_gradients(floats)
    reset_BT = None if reset_BT is None else reset_BT.contiguous()

    def run(*x: Tensor | None) -> tuple[Tensor, Tensor]:
        q, k, v, g, s, reset = x
        found: tuple[Tensor, Tensor] = Tiles.apply(q, k, v, g, s, reset)  # type: ignore[no-untyped-call]
        return found

    if q_BTHK.shape[1] == 1 and not needs_backward:
        o_BTHV, s_BHKV = run_step(*inputs, s_BHKV, bonus_HK, reset_BT)
    elif bonus_HK is None:
        o_BTHV, s_BHKV = run(*inputs, s_BHKV.contiguous(), reset_BT)
    else:
        o_BTHV, s_BHKV = read_before_writing(run, *inputs, s_BHKV.contiguous(), bonus_HK, reset_BT)
    return o_BTHV if valid_BT is None else zero_padding(o_BTHV, valid_BT), s_BHKV
