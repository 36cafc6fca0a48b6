"""What this machine offers: packages and instructions, and what keeps CPU kernels from running.

GPUs are in `gpu/limits.py`.
"""

import platform
import sys
from collections.abc import Iterable
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from exlstm.runtime.internals import (
    assume_constant,
    has_bfloat16_products,
    has_mkl,
    has_onednn_linear,
    numba_is_disabled,
)
from exlstm.runtime.tracing import has_gradients


@cache
def installed(package: str) -> bool:
    """Whether a package is installed; cached, for the search takes longer than a small op."""
    return find_spec(package) is not None


@cache
def missing_numba() -> str | None:
    """The answer of `no_numba`, cached."""
    if not installed("numba"):
        return "Numba is not installed"
    return "Numba's compiler is switched off by NUMBA_DISABLE_JIT" if numba_is_disabled() else None


@assume_constant
def no_numba() -> str | None:
    """Why there is no Numba to compile kernels with, or None."""
    return missing_numba()


def cpu_kernel_obstacle(
    tensors: Iterable[Tensor | None], other: str | None = None, *, float32_only: bool = False
) -> str | None:
    """Why Numba's kernels cannot run on these tensors, or None.

    other: an obstacle of the op itself. float32_only: the kernels read these tensors as they are.
    """
    for x in tensors:
        if x is None:
            continue
        if x.device.type != "cpu":
            return f"the tensors are on {x.device.type}, Numba runs on the CPU"
        if float32_only and x.dtype is not torch.float32:
            return f"it computes in float32 and there is {str(x.dtype).removeprefix('torch.')} in the input"
    return other or no_numba()


def widened_kernel_obstacle(tensors: Iterable[Tensor | None], other: str | None = None) -> str | None:
    """Why kernels that read tensors widened to float32 cannot run on these, or None. other: an obstacle of the op."""
    given = [x for x in tensors if x is not None]
    if other is None and torch.float64 in {x.dtype for x in given}:
        other = "it computes in float32 and there is float64 in the input"
    return cpu_kernel_obstacle(given, other)


def single_step_obstacle(tensors: Iterable[Tensor], steps: int) -> str | None:
    """Why a kernel of single steps without a backward cannot run, or None."""
    if steps > 1:
        return "it takes one step at a time"
    return "gradients are wanted, which it does not have" if has_gradients(tensors) else None


def chunk_obstacle(steps: int, backend: str) -> str | None:
    """Why a form over chunks is not chosen, or None: by name it takes a single step, too."""
    return "a single step needs no chunk" if steps == 1 and backend == "auto" else None


@cache
def mkl_is_slow() -> bool:
    """Whether oneDNN is there, and torch multiplies by MKL on a processor of AMD with AVX-512.

    MKL takes vectors of half the width there.
    """
    avx512 = torch.backends.cpu.get_cpu_capability() == "AVX512"
    return avx512 and has_mkl() and has_onednn_linear() and made_by_amd()


def made_by_amd() -> bool:
    """Whether the processor is AMD's, by what the system says of it."""
    about = Path("/proc/cpuinfo").read_text() if sys.platform == "linux" else platform.processor()
    return "AuthenticAMD" in about


@assume_constant
def has_triton() -> bool:
    """Whether Triton is installed; torch for NVIDIA and AMD GPUs brings it along."""
    return installed("triton")


@cache
def has_bfloat16() -> bool:
    """The opposite of `bfloat16_is_emulated`, cached."""
    return has_bfloat16_products()


@assume_constant
def bfloat16_is_emulated() -> bool:
    """Whether this CPU has no instructions for products in bfloat16; torch then takes about a hundred times as long."""
    return not has_bfloat16()
