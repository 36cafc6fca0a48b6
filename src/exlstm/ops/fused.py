"""Recurrences that torch has a fused kernel for: what the LSTM, the GRU and the Elman net share around it.

torch's kernels take neither resets nor lengths: they run from one border to the next, where a row is reset or ends.
They take dense recurrent matrices only, so blocks are placed into one whose other weights are zero. A single step is
the definition, whose products read few rows as linear layers do.

B batch  T time  L steps between two borders  D input width  V hidden width  K hidden width of a head  H heads
G the gates' rows, V of each  N gates and heads
"""

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from exlstm.ops.common import length_mask, upcast, without_autocast, zero_padding
from exlstm.ops.linear import linears
from exlstm.ops.linear.headwise import headwise
from exlstm.ops.products import product
from exlstm.ops.steps import State, cleared, run_steps, selected
from exlstm.runtime.availability import widened_kernel_obstacle
from exlstm.runtime.backend import choose
from exlstm.runtime.tracing import tracer


def borders(T: int, reset_BT: Tensor | None, lengths_B: Tensor | None) -> list[int]:
    """Times at which some row is reset or ends, with 0 and T: the fused kernel runs from one to the next."""
    times = {0, T}
    if reset_BT is not None:
        times |= set(reset_BT.any(0).nonzero()[:, 0].tolist())
    if lengths_B is not None:
        times |= {min(int(n), T) for n in lengths_B.tolist()}
    return sorted(times)


def dense_recurrence(u_GK: Tensor, gates: int) -> Tensor:
    """u_GV: the dense matrix of a block-diagonal U, whose blocks [gates, heads, K, K] lie below one another in u_GK."""
    G, K = u_GK.shape
    if gates * K == G:
        return u_GK  # one head
    # the second axis of each gate's blocks, the head, becomes a row and a column of blocks
    return torch.diag_embed(u_GK.view(gates, -1, K, K).permute(0, 2, 3, 1), dim1=1, dim2=3).reshape(G, G // gates)


def recurrent_product(h_BV: Tensor, u_GK: Tensor) -> Tensor:
    """U h in the dtype of h, for a dense U or the blocks [gates, heads, K, K] of one below one another."""
    (G, K), V = u_GK.shape, h_BV.shape[1]
    if K == V:
        return linears(h_BV, [(u_GK, None, h_BV.dtype)])[0]
    gates, H = G // V, V // K
    blocks_NKK = u_GK.to(h_BV.dtype).view(gates * H, K, K)
    h_NBK = torch.cat([h_BV.view(-1, H, K).transpose(0, 1)] * gates)
    return headwise(h_NBK, blocks_NKK).transpose(0, 1).reshape(-1, G)


def recurrent_gradient(dx_BTGHV: Tensor, past_HBTV: Tensor) -> Tensor:
    """The gradient of U [G, H, V, K]: for every head, the sum over steps of dx times h before the step."""
    G, _, V = dx_BTGHV.shape[2:]
    with without_autocast(dx_BTGHV):
        heads = [
            product(dx_BTGV.flatten(0, 1).flatten(1).T, past_BTV.flatten(0, 1)).view(G, V, -1)
            for dx_BTGV, past_BTV in zip(dx_BTGHV.unbind(3), past_HBTV, strict=True)
        ]
    return torch.stack(heads, dim=1)


def zero_bias(b_G: Tensor) -> Tensor:
    """A second bias, which torch's kernels take."""
    return torch.zeros_like(upcast(b_G))


def from_border_to_border(
    kernel: Callable[[Tensor, list[Tensor], State], tuple[Tensor, State]],
    weights: list[Tensor],
    x_BTD: Tensor,
    state: State,
    reset_BT: Tensor | None,
    lengths_B: Tensor | None,
) -> tuple[Tensor, State]:
    """Outputs and last state of `kernel(x_BLD, weights, state)`, which takes no resets and no lengths."""
    h = []
    for start, end in pairwise(borders(x_BTD.shape[1], reset_BT, lengths_B)):
        before = state if reset_BT is None else cleared(state, reset_BT[:, start])
        h_BLV, after = kernel(x_BTD[:, start:end], weights, before)
        if lengths_B is not None:
            runs_B = start < lengths_B
            after = selected(runs_B, after, state)
            h_BLV = h_BLV.masked_fill(~runs_B[:, None, None], 0)
        state = after
        h.append(h_BLV)
    return torch.cat(h, dim=1), state


def run_fused(
    op: str,
    backend: str,
    x_BTD: Tensor,
    weights: Sequence[Tensor],
    state: State,
    step: Callable[[Tensor, State], tuple[Tensor, State]],
    dense: Callable[[], list[Tensor]],
    kernel: Callable[[Tensor, list[Tensor], State], tuple[Tensor, State]],
    scan: Callable[[Tensor], tuple[Tensor, State]] | None = None,
    *,
    reset_BT: Tensor | None,
    lengths_B: Tensor | None,
) -> tuple[Tensor, State]:
    """A sequence by torch's kernel or by the definition, computed wide: h [B, T, V] in x's dtype, and the state after.

    op: its name in errors. step(x_BD, state): the definition. dense(): the weights as torch's kernel takes them, wide.
    kernel(x_BLD, those, state): the definition of L steps; x is wide. scan(x_BTD): all of it by our kernel for CPUs,
    which is taken before torch's; x is wide.
    Raises ValueError for a backend that cannot run.
    """
    T = x_BTD.shape[1]
    valid_BT = None if lengths_B is None else length_mask(lengths_B, T)
    if valid_BT is not None:
        x_BTD = zero_padding(x_BTD, valid_BT)
    obstacle = single = "a single step needs no kernel" if backend == "auto" and T == 1 else None
    if single is None and (reset_BT is not None or lengths_B is not None) and tracer() is not None:
        obstacle = "it stops where a row is reset or ends, and torch traces this call, without these numbers"
    inputs = x_BTD, *weights, *state
    candidates = [("numba", widened_kernel_obstacle(inputs, single))] if scan is not None else []
    name = choose(op, backend, [*candidates, ("fused", obstacle), ("recurrent", None)], inputs)
    with without_autocast(x_BTD):
        if scan is not None and name == "numba":
            h_BTV, state = scan(upcast(x_BTD))
        elif name == "fused":
            h_BTV, state = from_border_to_border(kernel, dense(), upcast(x_BTD), state, reset_BT, lengths_B)
        else:
            h_BTV, state = run_steps(step, [x_BTD], state, reset_BT=reset_BT, valid_BT=valid_BT)
    return h_BTV.to(x_BTD.dtype), state
