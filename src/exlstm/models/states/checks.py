"""Checks of numbers in a state that came from outside: finite, normal, and counts that index nothing beyond it.

B rows  S cached steps
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from exlstm.mixers.state import LMState, leaves
from exlstm.ops.attention import AttentionState, WindowState
from exlstm.ops.chunk_attention import ChunkState, WholeState
from exlstm.ops.long_conv import LongConvState
from exlstm.ops.positions import PositionState

COUNTING = (AttentionState, WindowState, ChunkState, WholeState, LongConvState, PositionState)  # hold whole numbers
# denormal numbers below these make arithmetic many times slower; float16 is computed wide, where its own are normal
SMALLEST = {dtype: torch.finfo(dtype).tiny for dtype in (torch.float32, torch.float64, torch.bfloat16)}


def settle_numbers(name: str, x: Tensor) -> None:
    """Sets denormal numbers of a new tensor to zero, in place. ValueError for NaN, infinity, and bools beyond 0 and 1.

    x: not empty, in memory of its own.
    """
    if x.dtype is torch.bool:
        if int(x.view(torch.uint8).amax()) > 1:
            raise ValueError(f"{name} holds bytes that are neither 0 nor 1")
        return
    if not x.is_floating_point():
        return
    size = x.abs()
    least, most = (float(end) for end in torch.aminmax(size))
    if not most < torch.inf:
        raise ValueError(f"{name} holds NaN or infinity")
    if least < SMALLEST.get(x.dtype, 0.0):
        x.masked_fill_((size < SMALLEST[x.dtype]) & (size > 0), 0)


def check_counting(state: LMState, counts: Sequence[int]) -> None:
    """ValueError unless positions and numbers of cached steps are those of rows that have read `counts` tokens."""
    counts_B = torch.tensor(counts)
    for node in leaves(state, COUNTING):
        if not _agrees(node, counts_B):
            raise ValueError(f"a {type(node).__name__} in it does not fit its counts, {list(counts)}")


def _agrees(node: object, counts_B: Tensor) -> bool:
    if isinstance(node, AttentionState):
        return torch.equal(node.next_B, counts_B) and _each_once(node.position_BS, counts_B)
    if isinstance(node, WindowState | PositionState):
        return torch.equal(node.next_B, counts_B)
    if isinstance(node, ChunkState):
        return torch.equal(node.seen_B, counts_B % (node.past_k_BSK.shape[1] + 1))
    if isinstance(node, WholeState):
        return torch.equal(node.seen_B, counts_B) and int(counts_B.max()) <= node.k_BSK.shape[1]
    assert isinstance(node, LongConvState)
    return torch.equal(node.seen_B, counts_B.clamp(max=node.u_BSE.shape[1]))


def _each_once(position_BS: Tensor, counts_B: Tensor) -> bool:
    """True if a row's positions are 0, 1, ... up to its count, in order, with -1 between them."""
    stored_BS = position_BS >= 0
    wanted_BS = torch.where(stored_BS, stored_BS.long().cumsum(1) - 1, -1)
    return torch.equal(position_BS, wanted_BS) and torch.equal(stored_BS.sum(1), counts_B)
