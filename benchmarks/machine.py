"""The machine of a measurement, and its speed at matrix products and at reading memory."""

import subprocess
import time
from collections.abc import Callable
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import ROOT
from benchmarks.harness import rounded
from exlstm.runtime.machine import machine as processor

PACKAGES = ("numpy", "numba", "xlstm", "mlstm_kernels", "transformers", "fla-core")
INSTRUCTIONS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")
# code on which results depend; changes elsewhere, such as new results, do not make a measurement stale
CODE = (
    "src",
    "benchmarks",
    "tests/accuracy.py",
    "tests/peers.py",
    "pyproject.toml",
    ":!benchmarks/results",
    ":!benchmarks/limits.md",
    ":!benchmarks/gpu/limits.md",
)


def machine() -> dict[str, Any]:
    """Processor, instructions that matter here, memory, and versions."""
    return processor() | {
        "instructions": instructions(),
        "torch_capability": torch.backends.cpu.get_cpu_capability(),
        "memory_gib": memory_gib(),
        "versions": {name: installed(name) for name in PACKAGES},
    }


def installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def instructions() -> list[str]:
    """The vector and matrix instructions of the processor that linear algebra uses; empty where they are not told."""
    path = Path("/proc/cpuinfo")
    line = next((x for x in path.read_text().splitlines() if x.startswith("flags")), "") if path.exists() else ""
    return [name for name in INSTRUCTIONS if name in line.split()]


def has_bfloat16() -> bool:
    """Whether products of bfloat16 matrices have instructions here; without them torch's are many times slower."""
    return {"avx512_bf16", "amx_bf16"} & set(instructions()) != set()


def memory_gib() -> float | None:
    path = Path("/proc/meminfo")
    if not path.exists():
        return None
    return rounded(int(path.read_text().split("MemTotal:")[1].split()[0]) / 2**20)


def commit() -> str | None:
    """The commit of the checkout, "+changes" if the code that is measured differs from it; None without git."""
    head = git("rev-parse", "HEAD")
    return head if head is None else head + ("+changes" if git("status", "--porcelain", "--", *CODE) else "")


def git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=False)
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def speed() -> dict[str, float]:
    """GFLOP/s of float32 matrix products and GB/s of reading memory, right now; about half a second.

    Measured before and after each measurement; the better of the two counts.
    """
    threads = torch.get_num_threads()
    found = {"sgemm_gflops": rounded(sgemm())}
    for count in sorted({1, threads}):
        torch.set_num_threads(count)
        found[f"stream_gb_s_{count}"] = rounded(stream())
    torch.set_num_threads(threads)
    return found


@cache
def matrices() -> tuple[Tensor, Tensor, Tensor]:
    n = 1024
    return torch.randn(n, n), torch.randn(n, n), torch.empty(n, n)


@cache
def long_vector() -> Tensor:
    """256 MB, which no cache holds; allocated once, because fresh pages are slow."""
    return torch.ones(1 << 26)


def sgemm() -> float:
    a, b, out = matrices()
    return 2 * len(a) ** 3 / best(lambda: torch.mm(a, b, out=out), 9) / 1e9


def stream() -> float:
    """Reading, as a sum and as a matrix-vector product: the faster of the two."""
    x = long_vector()
    matrix, vector = x.view(-1, 4096), torch.ones(4096)
    return x.nbytes / min(best(x.sum, 4), best(lambda: torch.mv(matrix, vector), 4)) / 1e9


def best(run: Callable[[], object], times: int) -> float:
    def once() -> float:
        began = time.perf_counter()
        run()
        return time.perf_counter() - began

    return min(once() for _ in range(times))
