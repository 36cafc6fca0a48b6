"""Finds the fastest configuration of the mLSTM's kernels on a GPU, by trying, and keeps it for `triton_config`.

Kernels are tried one after another, the others as the rule has them, for each way to cut time into tiles and chunks.
A launch that does not fit on the GPU is passed over.

B batch  T time  H heads  K key width  V value width
"""

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from triton.runtime.errors import OutOfResources, PTXASError

from exlstm.ops.mlstm.triton.config import Config, Launch, config_of, default_config, key_of, work_of
from exlstm.ops.mlstm.triton.op import backward, forward
from exlstm.runtime.cache import remember
from exlstm.runtime.gpu.limits import gpu_limits
from exlstm.runtime.gpu.operator import block_size

CUTS = ((64, 1), (64, 2), (64, 4), (128, 1), (128, 2))  # steps of a tile, tiles of a chunk
FORWARD, BACKWARD = ("state", "output"), ("state_gradient", "gradient")
Clock = Callable[[Callable[[], object]], float]


def milliseconds(run: Callable[[], object]) -> float:
    """The median on a GPU, its cache cleared before every call."""
    from triton.testing import do_bench

    found: float = do_bench(run, warmup=10, rep=50, return_mode="median")
    return found


def tune(B: int, T: int, H: int, K: int, V: int, dtype: torch.dtype, device: torch.device, *,
         say: Callable[[str], None], clock: Clock = milliseconds) -> Path | None:  # fmt: skip
    """Tries and keeps. Returns the file, None if there is no place for one.

    say: is told of every way to cut time. clock: milliseconds of a call.
    """
    work, (name, room) = work_of(dtype, K, V, B * H), gpu_limits(device)
    forwards, backwards = problem(B, T, H, K, V, dtype, device)
    candidates, best, least = launches(K, V), None, math.inf
    for tile, parts in CUTS:
        config = default_config(work, room, 64)._replace(tile=tile, parts=parts)
        config, there = improved(config, FORWARD, candidates, forwards, clock)
        config, back = improved(config, BACKWARD, candidates, backwards, clock)
        told = f"{there:.3f} ms forward, {back:.3f} ms backward" if there + back < math.inf else "do not fit"
        say(f"tiles of {tile}, chunks of {tile * parts}: {told}")
        if there + back < least:
            best, least = config, there + back
    if best is None:
        raise ValueError(f"no configuration for keys of {K} and values of {V} fits on {name}; use backend='chunkwise'.")
    config_of.cache_clear()
    return remember("mlstm_triton", key_of(work, name), best)


def problem(B: int, T: int, H: int, K: int, V: int, dtype: torch.dtype, device: torch.device
            ) -> tuple[Callable[[Config], object], Callable[[Config], object]]:  # fmt: skip
    """Both directions of work like a model's, for a configuration."""
    generator = torch.Generator(device).manual_seed(0)

    def normal(*shape: int, kind: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(shape, generator=generator, device=device).to(kind)

    q_BTHK, k_BTHK, v_BTHV = (normal(B, T, H, width, kind=dtype) for width in (K, K, V))
    log_f_BTH = torch.nn.functional.logsigmoid(normal(B, T, H) + 4)
    state = normal(B, H, K, V) * 0, normal(B, H, K) * 0, normal(B, H) * 0
    inputs = q_BTHK, k_BTHK, v_BTHV, normal(B, T, H), log_f_BTH, *state

    def there(config: Config) -> tuple[Tensor, ...]:
        return forward(*inputs, None, None, True, True, 1e-6, 0, config)

    def back(config: Config) -> tuple[Tensor, ...]:
        # planes of gates are in tiles: those of another configuration would not fit
        if config.tile not in made:
            made.clear()
            made[config.tile] = there(config)
        h_BTHV, c, n, _, planes, mass = made[config.tile]
        return backward(*inputs[:3], *state[:2], None, planes, mass, h_BTHV, v_BTHV, c, n, True, 1e-6, 0, config)

    made: dict[int, tuple[Tensor, ...]] = {}
    return there, back


def improved(config: Config, names: tuple[str, ...], candidates: list[Launch], run: Callable[[Config], object],
             clock: Clock) -> tuple[Config, float]:  # fmt: skip
    """With the best launch of each of these kernels, and the time that it takes."""
    least = timed(partial(run, config), clock)
    for name in names:
        for launch in candidates:
            tried = Config(**{**config._asdict(), name: launch})
            time = timed(partial(run, tried), clock)
            if time < least:
                config, least = tried, time
    return config, least


def launches(K: int, V: int) -> list[Launch]:
    """What is tried of each kernel."""
    blocks = {(block_size(K, k), block_size(V, v)) for k, v in ((64, 64), (64, 128), (128, 128), (64, 256))}
    return [Launch(k, v, warps, stages) for k, v in sorted(blocks) for warps in (4, 8) for stages in (2, 3)]


def timed(run: Callable[[], object], clock: Clock) -> float:
    """Milliseconds; infinite for what does not fit."""
    try:
        return clock(run)
    except (OutOfResources, PTXASError, torch.OutOfMemoryError):
        return math.inf
