"""Configurations of the mLSTM's kernels on a GPU: what `exlstm tune` measured there, or else a default.

The default was found by compiling: blocks are as large as registers hold without spilling and shared memory holds
several times over. It has not been timed.

K key width  V value width
"""

from functools import cache
from typing import Any, NamedTuple

import torch

from exlstm.runtime.cache import remembered
from exlstm.runtime.gpu.limits import gpu_limits
from exlstm.runtime.gpu.operator import block_size

MIN_PROGRAMS = 128  # that keep a GPU busy
KERNEL_VERSION = 2  # counts up when kernels change, so that every machine measures again


class Launch(NamedTuple):
    """A kernel's blocks of K and of V, warps of a program, and stages of its pipeline of loads."""

    block_k: int
    block_v: int
    warps: int
    stages: int


class Config(NamedTuple):
    """Steps of a tile, tiles of a chunk of the forward, and each kernel's launch."""

    tile: int
    parts: int
    state: Launch
    output: Launch
    state_gradient: Launch
    gradient: Launch


class Work(NamedTuple):
    """What the configuration of a call depends on: dtype, widths, and whether sequences times heads are few."""

    dtype: torch.dtype
    K: int
    V: int
    few_heads: bool


def work_of(dtype: torch.dtype, K: int, V: int, merged: int) -> Work:
    """The `Work` of a call; merged: sequences times heads."""
    # numbers, also where torch.compile has symbols
    return Work(dtype, int(K), int(V), bool(merged * -(-K // 128) * -(-V // 128) < MIN_PROGRAMS))


@cache
def config_of(work: Work, device: torch.device, chunk_len: int) -> Config:
    """The configuration for this work on this device. chunk_len: 0 for the fastest, else a power of two."""
    name, room = gpu_limits(device)
    if not chunk_len:
        return measured_config(work, name) or default_config(work, room, 128 if work.dtype.itemsize < 4 else 64)
    return default_config(work, room, chunk_len)


def key_of(work: Work, name: str) -> str:
    """The key of a measured configuration in the cache file."""
    import triton

    dtype = str(work.dtype).removeprefix("torch.")
    heads = "few heads" if work.few_heads else "many heads"
    return f"{name}, Triton {triton.__version__}, {dtype}, K {work.K}, V {work.V}, {heads}, edition {KERNEL_VERSION}"


def measured_config(work: Work, name: str) -> Config | None:
    """The configuration measured on a GPU of this name, None if there is none or the file is damaged."""
    found: Any = remembered("mlstm_triton").get(key_of(work, name))
    try:
        tile, parts, *launches = found
        return Config(int(tile), int(parts), *(Launch(*map(int, launch)) for launch in launches))
    except (TypeError, ValueError):
        return None


def default_config(work: Work, room: int, chunk: int) -> Config:
    """The configuration without measurements. room: bytes of shared memory that a program can have."""
    narrow = work.dtype.itemsize < 4
    # 32 where one program's share is small: 64 take 81 KB in float32
    most = 64 if narrow or room >= 96 << 10 else 32
    tile = min(chunk, most)
    small = Launch(block_size(work.K, most), block_size(work.V, most), 4, 2)
    if not narrow or room < 160 << 10:
        return Config(tile, chunk // tile, small, small, small, small)
    state = small if work.few_heads else Launch(block_size(work.K, 128), block_size(work.V, 128), 8, 3)
    return Config(tile, chunk // tile, state, Launch(small.block_k, block_size(work.V, 256), 8, 2), state, small)
