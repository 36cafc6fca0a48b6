"""Attention within chunks for whole sequences: blocks of as many queries as a chunk has steps, with all keys in reach.

A chunk begins anywhere in a block, for rows begin and are reset anywhere. So the keys of a block are its own steps and
those of one block before it; a mask by positions within chunks says which of them a query sees. Without a state and
resets blocks are chunks, and their own steps are enough. Without chunks there is one block with all keys. torch derives
all gradients; a step of time costs memory for the scores of its block.

B batch  T time  S cached steps  A all keys  P cached steps afterwards  N blocks  L queries of a block  I its keys
K key width  V value width  R distances with a bias
"""

import torch
from torch import Tensor
from torch.nn.functional import pad

from exlstm.ops.chunk_attention.reference import AttentionFunction, ChunkState, attended


def blocks(x_BTK: Tensor, steps: int, before: int) -> Tensor:
    """[B, N, before + steps, K]: every `steps` of time, and `before` of it in front of each, which x begins with."""
    more = -(x_BTK.shape[1] - before) % steps
    return pad(x_BTK, (0, 0, 0, more)).unfold(1, before + steps, steps).mT


def chunk_attention_chunkwise(
    q_BTK: Tensor,
    k_BAK: Tensor,
    v_BAV: Tensor,
    bias_R: Tensor,
    position_BT: Tensor,
    /,
    *,
    chunk: int | None,
    aligned: bool,
    function: AttentionFunction,
) -> Tensor:
    """o_BTV. k, v: of cached and new steps. aligned: all rows begin a chunk, and only then: nothing is cached."""
    T, S = q_BTK.shape[1], k_BAK.shape[1] - q_BTK.shape[1]
    if chunk is None or chunk >= T:
        q_B1LK, k_B1IK, v_B1IV, position_B1L = (x[:, None] for x in (q_BTK, k_BAK, v_BAV, position_BT))
        return attended(q_B1LK, k_B1IK, v_B1IV, bias_R, position_B1L, function)[:, 0]
    before = 0 if aligned else chunk - 1
    # an aligned call has a cache of zeros, which no query sees
    k_BNIK, v_BNIV = (blocks(x[:, S - before :], chunk, before) for x in (k_BAK, v_BAV))
    q_BNLK, position_BNL1 = blocks(q_BTK, chunk, 0), blocks(position_BT[..., None], chunk, 0)
    o_BNLV = attended(q_BNLK, k_BNIK, v_BNIV, bias_R, position_BNL1[..., 0], function)
    return o_BNLV.flatten(1, 2)[:, :T]


def cache_after(
    k_BAK: Tensor,
    v_BAV: Tensor,
    position_BT: Tensor,
    seen_B: Tensor,
    chunk: int | None,
    lengths_B: Tensor | None,
) -> ChunkState:
    """The cache after a call: the last entries of every row's own time."""
    A, T = k_BAK.shape[1], position_BT.shape[1]
    S, size = A - T, A if chunk is None else chunk - 1
    if lengths_B is None:
        next_B, start_B = position_BT[:, -1] + 1, torch.full_like(seen_B, A - size)
    else:
        last_B1 = (lengths_B - 1).clamp(min=0)[:, None]
        next_B = torch.where(lengths_B > 0, position_BT.gather(1, last_B1)[:, 0] + 1, seen_B)
        start_B = S + lengths_B - size
    if chunk is not None:
        next_B = next_B % chunk
    entry_P = torch.arange(size, device=seen_B.device)
    index_BP, unseen_BP = (start_B[:, None] + entry_P).clamp(min=0), entry_P < size - next_B[:, None]
    row_B1 = torch.arange(seen_B.shape[0], device=seen_B.device)[:, None]
    after_k_BPK, after_v_BPV = (x[row_B1, index_BP].masked_fill(unseen_BP[..., None], 0) for x in (k_BAK, v_BAV))
    return ChunkState(after_k_BPK, after_v_BPV, next_B)
