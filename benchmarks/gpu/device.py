"""The GPU: its name, a clock that runs on it, and its speed at copies and matrix products.

On a CPU, where tests run all of this at tiny sizes, the clock is the time that passes.
"""

import gc
import re
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.harness import Clock, Run, rounded, seconds_per_call
from benchmarks.machine import installed
from exlstm.runtime.machine import machine as processor

PACKAGES = ("triton", "mlstm_kernels", "fla-core", "flashrnn", "numpy")
# fields that must be equal for two measurements to be in one file; the host of the card may differ
SAME = ("gpu", "torch", "cudnn", "versions")
FLUSH_BYTES = 1 << 28  # more than any L2 cache
FILLS = 32  # of so many bytes before each call: some milliseconds


def slug(name: str) -> str:
    """A card's name as the name of a folder: "NVIDIA H200" is nvidia-h200."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def machine() -> dict[str, Any]:
    """The card, the host, and versions; on a machine without a card, only what there is."""
    found = processor() | {"versions": {name: installed(name) for name in PACKAGES}}
    if torch.cuda.is_available():
        card = torch.cuda.get_device_properties(0)
        found |= {
            "multiprocessors": card.multi_processor_count,
            "capability": f"{card.major}.{card.minor}",
            "memory_gib": rounded(card.total_memory / 2**30),
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
        }
    return found


def clock_of(device: torch.device) -> Clock:
    """Events around each call. Before it, 256 MB are filled over and over: no input is left in the L2 cache, and while
    the card is busy the host can queue all of the call's kernels, as in a model, whose host runs ahead.
    """
    if device.type != "cuda":
        return seconds_per_call
    return partial(seconds_on_the_card, torch.empty(FLUSH_BYTES, dtype=torch.uint8, device=device))


def seconds_on_the_card(scratch: Tensor, run: Run, calls: int) -> float:
    """The mean over some calls."""
    spans = []
    for _ in range(calls):
        for _ in range(FILLS):
            scratch.zero_()
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        run()
        end.record()
        spans.append((begin, end))
    torch.cuda.synchronize()
    return sum(begin.elapsed_time(end) for begin, end in spans) / calls / 1e3


def ceilings(device: torch.device, clock: Clock, *, tiny: bool = False) -> dict[str, float]:
    """The roofline, measured: GB/s of a copy, bytes read and written, and TFLOP/s of a product of bfloat16 matrices.

    Each is the best of five. Random numbers: products of zeros are faster.
    """
    count, width = (1 << 16, 64) if tiny else (1 << 31, 8192)
    found = {"copy_gb_s": copying(device, clock, count) / 1e9, "gemm_tflops": products(device, clock, width) / 1e12}
    return {name: rounded(value) for name, value in found.items()}


def copying(device: torch.device, clock: Clock, count: int) -> float:
    source = torch.ones(count, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * count / least(clock, lambda: target.copy_(source))


def products(device: torch.device, clock: Clock, width: int) -> float:
    a, b = (torch.randn(width, width, device=device, dtype=torch.bfloat16) for _ in range(2))
    return 2 * width**3 / least(clock, lambda: a @ b)


def least(clock: Clock, run: Run) -> float:
    return [clock(run, 1), min(clock(run, 1) for _ in range(5))][1]


def free(device: torch.device) -> None:
    """Frees the unused memory of the card."""
    if device.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()


def finish(device: torch.device) -> None:
    """Waits for the card, so that its errors are raised here."""
    if device.type == "cuda":
        torch.cuda.synchronize()


@cache
def here() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
