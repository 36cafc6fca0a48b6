"""Search for the fastest configuration of the mLSTM's kernels on a GPU, for `config_of` to find.

Each kernel's launches are timed in turn, the other kernels' unchanged, for each way to cut time into tiles and chunks.
Launches that do not fit on the GPU are passed over.

B batch  T time  H heads  K key width  V value width
"""

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from triton.runtime.errors import OutOfResources, PTXASError
from triton.testing import do_bench

from exlstm.ops.mlstm.triton.config import Config, Launch, config_of, default_config, key_of, work_of
from exlstm.ops.mlstm.triton.op import backward, forward
from exlstm.runtime.cache import remember
from exlstm.runtime.gpu.limits import gpu_limits
from exlstm.runtime.gpu.operator import block_size

CUTS = ((64, 1), (64, 2), (64, 4), (128, 1), (128, 2))  # steps of a tile, tiles of a chunk
BLOCKS = ((64, 64), (64, 128), (128, 128), (64, 256))  # of K and of V, at most
Run = Callable[[Config], object]
Clock = Callable[[Callable[[], object]], float]
# milliseconds, the median on a GPU, its cache cleared before every call
MEDIAN: Clock = partial(do_bench, warmup=10, rep=50, return_mode="median")


def tune(B: int, T: int, H: int, K: int, V: int, dtype: torch.dtype, device: torch.device, *,
         say: Callable[[str], None], clock: Clock = MEDIAN) -> Path | None:  # fmt: skip
    """Finds and caches the fastest configuration. Returns the file, None if there is no place for one.

    say: prints a line for each way to cut time. clock: milliseconds of a call.
    """
    work, (name, room) = work_of(dtype, K, V, B * H), gpu_limits(device)
    forwards, backwards = directions(B, T, H, K, V, dtype, device)
    candidates, best, least = launches(K, V), None, math.inf
    for tile, parts in CUTS:
        config = default_config(work, room, 64)._replace(tile=tile, parts=parts)
        config, ahead = fastest(config, ("state", "output"), forwards, candidates, clock)
        config, back = fastest(config, ("state_gradient", "gradient"), backwards, candidates, clock)
        told = f"{ahead:.3f} ms forward, {back:.3f} ms backward" if ahead + back < math.inf else "do not fit"
        say(f"tiles of {tile}, chunks of {tile * parts}: {told}")
        if ahead + back < least:
            best, least = config, ahead + back
    if best is None:
        raise ValueError(f"no configuration for keys of {K} and values of {V} fits on {name}; use backend='chunkwise'.")
    config_of.cache_clear()
    return remember("mlstm_triton", key_of(work, name), best)


def directions(B: int, T: int, H: int, K: int, V: int, dtype: torch.dtype, device: torch.device) -> tuple[Run, Run]:
    """The forward and the backward of inputs like those of a model, for a configuration."""
    generator = torch.Generator(device).manual_seed(0)
    shapes = (B, T, H, K), (B, T, H, K), (B, T, H, V), (B, T, H), (B, T, H)
    q_BTHK, k_BTHK, v_BTHV, i_BTH, f_BTH = (torch.randn(s, generator=generator, device=device) for s in shapes)
    qkv = q_BTHK.to(dtype), k_BTHK.to(dtype), v_BTHV.to(dtype)
    gates = i_BTH, torch.nn.functional.logsigmoid(f_BTH + 4)
    first = i_BTH.new_zeros(B, H, K, V), i_BTH.new_zeros(B, H, K)

    def ahead(config: Config) -> tuple[Tensor, ...]:
        return forward(*qkv, *gates, *first, i_BTH.new_zeros(B, H), None, None, True, True, 1e-6, 0, config)

    def back(config: Config) -> tuple[Tensor, ...]:
        # planes of gates are in tiles: those of another length would not fit
        if config.tile not in saved:
            saved.clear()
            saved[config.tile] = ahead(config)
        h_BTHV, c, n, _, planes, mass = saved[config.tile]
        return backward(*qkv, *first, None, planes, mass, h_BTHV, qkv[2], c, n, True, 1e-6, 0, config)

    saved: dict[int, tuple[Tensor, ...]] = {}
    return ahead, back


def launches(K: int, V: int) -> list[Launch]:
    """The candidates for each kernel."""
    blocks = {(block_size(K, k), block_size(V, v)) for k, v in BLOCKS}
    return [Launch(k, v, warps, stages) for k, v in sorted(blocks) for warps in (4, 8) for stages in (2, 3)]


def fastest(config: Config, kernels: tuple[str, ...], run: Run, candidates: list[Launch], clock: Clock
            ) -> tuple[Config, float]:  # fmt: skip
    """The configuration with the best launch of each of these kernels, and its time; infinite if none fits."""

    def timed(config: Config) -> float:
        try:
            return clock(partial(run, config))
        except (OutOfResources, PTXASError, torch.OutOfMemoryError):
            return math.inf

    least = timed(config)
    for kernel in kernels:
        for launch in candidates:
            tried = Config(**{**config._asdict(), kernel: launch})
            time = timed(tried)
            if time < least:
                config, least = tried, time
    return config, least
