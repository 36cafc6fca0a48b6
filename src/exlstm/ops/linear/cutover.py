"""Up to how many rows of x our kernels beat torch's: measured once on a machine, and kept in the user's cache folder.

With one row both read W once and ours does so faster. With many, torch's matrix product is better; in between it
depends on the processor (and for bfloat16 on whether it has instructions for it). A decision takes some 100 ms, is made
once for each kind of weights and number of threads, and holds for the process even where it cannot be written down.
"""

import math
import time
from collections.abc import Callable
from functools import cache
from threading import Lock

import torch

from exlstm.ops.kept import remember, remembered

ROWS = (2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
SIZE = 1024  # outputs and inputs of the matrix that is tried
REPEATS = 7
EDITION = 3  # counts up when one side becomes faster, so that every machine measures again
lock = Lock()


def most_rows(kind: str, threads: int) -> int:
    """Up to so many rows of x the Numba kernels are faster. kind: float32, bfloat16, int8 or int4."""
    with lock:
        return decided(kind, threads)


@cache
def decided(kind: str, threads: int) -> int:
    """From the file, or measured and written there."""
    key = f"{kind}, {threads} threads, {machine()}, edition {EDITION}"
    found = remembered("linear").get(key)
    if isinstance(found, int) and (found == 1 or found in ROWS):
        return found
    most = measured(kind)
    remember("linear", key, most)
    return most


@cache
def machine() -> str:
    """What a decision depends on besides the kind of weights."""
    from llvmlite import binding  # type: ignore[import-untyped]
    from numba import __version__ as numba_version

    return f"{binding.get_host_cpu_name()}, torch {torch.__version__}, Numba {numba_version}"


@torch.inference_mode()
def measured(kind: str) -> int:
    """Tries more and more rows until torch wins."""
    from exlstm.ops import linear
    from exlstm.ops.linear.numba import Plan

    dtype = torch.bfloat16 if kind == "bfloat16" else torch.float32
    w_NK = torch.full((SIZE, SIZE), 0.5, dtype=dtype)
    weight: linear.Weight = w_NK
    if kind in ("int8", "int4"):
        weight = linear.to_int8(w_NK) if kind == "int8" else linear.to_int4(w_NK)
    most = 1
    for rows in ROWS:
        x_MK = torch.full((rows, SIZE), 0.5, dtype=dtype)
        ours, theirs = shortest(
            lambda: Plan([(weight, None, dtype)]).run(x_MK),  # noqa: B023 - called here
            lambda: linear.linear_torch(x_MK, weight, None, dtype),  # noqa: B023
        )
        if theirs < ours:
            break
        most = rows
    return most


def shortest(*works: Callable[[], object]) -> list[float]:
    """The shortest time of each after a first call. In turn, for what disturbs a machine disturbs whoever runs then."""
    for work in works:
        work()
    best = [math.inf] * len(works)
    for _ in range(REPEATS):
        for number, work in enumerate(works):
            began = time.perf_counter()
            work()
            best[number] = min(best[number], time.perf_counter() - began)
    return best
