"""How the mLSTM's kernels cut their work on a GPU.

B batch  T time  H heads  K key width  V value width
"""

from typing import NamedTuple

import torch


class Launch(NamedTuple):
    """Of one kernel: blocks of K and of V, warps of a program, stages of its pipeline of loads."""

    block_k: int
    block_v: int
    warps: int
    stages: int


class Config(NamedTuple):
    """Of all of them: steps of a tile, tiles of a chunk of the forward, and each kernel's launch."""

    tile: int
    parts: int
    state: Launch
    output: Launch
    state_gradient: Launch
    gradient: Launch


def block(width: int, most: int) -> int:
    """A power of two from 16 to `most` that holds `width` numbers, if it can."""
    return max(16, min(most, 1 << (width - 1).bit_length()))


def config_of(dtype: torch.dtype, K: int, V: int, chunk_len: int | None) -> Config:
    """For inputs of this dtype and these widths. chunk_len: None for what is fastest, else a power of two."""
    narrow = dtype.itemsize < 4
    chunk = chunk_len or (128 if narrow else 64)
    tile = min(chunk, 64)
    k, v = block(K, 64), block(V, 64)
    launch = Launch(k, v, 4, 2)
    return Config(tile, chunk // tile, launch, launch._replace(block_v=block(V, 128 if narrow else 64)), launch, launch)
