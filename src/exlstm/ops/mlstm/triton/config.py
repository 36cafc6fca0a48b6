"""How the mLSTM's kernels cut their work on a GPU: what was measured there (`exlstm tune`), or else the rule below.

The rule was made by compiling: blocks are as large as registers hold without spilling them and shared memory holds
several times over. It has not been timed.

K key width  V value width
"""

from functools import cache
from typing import Any, NamedTuple

import torch

from exlstm.runtime.cache import remembered
from exlstm.runtime.gpu.limits import gpu_limits
from exlstm.runtime.gpu.operator import block_size

MIN_PROGRAMS = 128  # programs that keep a GPU busy
KERNEL_VERSION = 2  # counts up when kernels change, so that every machine measures again


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


class Work(NamedTuple):
    """What a configuration is for: the inputs' dtype and widths, and whether sequences and heads are few."""

    dtype: torch.dtype
    K: int
    V: int
    few: bool


def work_of(dtype: torch.dtype, K: int, V: int, merged: int) -> Work:
    """merged: sequences times heads."""
    # numbers, also where torch.compile has symbols
    return Work(dtype, int(K), int(V), bool(merged * -(-K // 128) * -(-V // 128) < MIN_PROGRAMS))


@cache
def config_of(work: Work, device: torch.device, chunk_len: int) -> Config:
    """For this work on this device. chunk_len: 0 for what is fastest, else a power of two."""
    name, room = gpu_limits(device)
    if not chunk_len:
        return measured_config(work, name) or default_config(work, room, 128 if work.dtype.itemsize < 4 else 64)
    return default_config(work, room, chunk_len)


def key_of(work: Work, name: str) -> str:
    """Under which name a measured configuration is kept."""
    import triton

    kind = str(work.dtype).removeprefix("torch.")
    heads = "few heads" if work.few else "many heads"
    return f"{name}, Triton {triton.__version__}, {kind}, K {work.K}, V {work.V}, {heads}, edition {KERNEL_VERSION}"


def measured_config(work: Work, name: str) -> Config | None:
    """What was measured on a GPU of this name, None if nothing was or the file is damaged."""
    found: Any = remembered("mlstm_triton").get(key_of(work, name))
    try:
        tile, parts, *launches = found
        return Config(int(tile), int(parts), *(Launch(*map(int, launch)) for launch in launches))
    except (TypeError, ValueError):
        return None


def default_config(work: Work, room: int, chunk: int) -> Config:
    """room: bytes of shared memory that a program can have."""
    narrow = work.dtype.itemsize < 4
    # 32 where one program's share is small: 64 take 81 KB in float32
    most = 64 if narrow or room >= 96 << 10 else 32
    tile = min(chunk, most)
    small = Launch(block_size(work.K, most), block_size(work.V, most), 4, 2)
    if not narrow or room < 160 << 10:
        return Config(tile, chunk // tile, small, small, small, small)
    state = small if work.few else Launch(block_size(work.K, 128), block_size(work.V, 128), 8, 3)
    return Config(tile, chunk // tile, state, Launch(small.block_k, block_size(work.V, 256), 8, 2), state, small)
