"""What this machine offers: packages, instructions, and whether kernels for CPUs and GPUs can run on some tensors."""

from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

from exlstm.runtime.internals import assume_constant, has_bfloat16_products


@cache
def installed(package: str) -> bool:
    """Whether a package is there; looked up once, for the search takes longer than a small op."""
    return find_spec(package) is not None


@cache
def missing_numba() -> str | None:
    """What `no_numba` answers; looked up once."""
    if not installed("numba"):
        return "Numba is not installed"
    from numba.core import config

    off = vars(config)["DISABLE_JIT"]  # an attribute that is made at import, and that no type tells of
    return "Numba's compiler is switched off by NUMBA_DISABLE_JIT" if off else None


@assume_constant
def no_numba() -> str | None:
    """Why there is no Numba to compile kernels with, or None."""
    return missing_numba()


@assume_constant
def has_triton() -> bool:
    """Whether Triton is installed; torch for NVIDIA and AMD GPUs brings it along."""
    return installed("triton")


def gpu_obstacle(tensors: Sequence[Tensor], asked_for: bool) -> str | None:
    """Why Triton's kernels cannot run on these tensors, or None. Its interpreter runs only when asked for by name."""
    device = tensors[0].device.type
    if not has_triton():
        return "Triton is not installed"
    if device != "cuda" and not (asked_for and device == "cpu" and interpreted()):
        return f"the tensors are on {device}, Triton runs on GPUs"
    if any(x.dtype is torch.float64 for x in tensors):
        return "it computes in float32 and there is float64 in the input"
    return None


def gpu_candidate(tensors: Sequence[Tensor], backend: str, other: str | None) -> list[tuple[str, str | None]]:
    """What `choose` is told of Triton; nothing on a CPU, where nobody expects it, unless it is asked for by name.

    other: what else is in its way.
    """
    if tensors[0].is_cpu and backend != "triton":
        return []
    return [("triton", other or gpu_obstacle(tensors, backend == "triton"))]


@assume_constant
def interpreted() -> bool:
    """Whether Triton was told to interpret its kernels, on a CPU, instead of compiling them: for tests."""
    import triton

    return bool(triton.knobs.runtime.interpret)


@assume_constant
def graphics(device: torch.device) -> tuple[str, int]:
    """The name of a GPU, and the bytes of shared memory that a program of a kernel can have; an H100's elsewhere."""
    if device.type != "cuda":
        return "interpreter", 227 << 10
    properties = torch.cuda.get_device_properties(device)
    # not every build of torch says how much there is; 48 KB is what every GPU has
    return properties.name, getattr(properties, "shared_memory_per_block_optin", 48 << 10)


@cache
def has_bfloat16() -> bool:
    """What `bfloat16_is_emulated` denies; looked up once."""
    return has_bfloat16_products()


@assume_constant
def bfloat16_is_emulated() -> bool:
    """Whether this CPU has no instructions for products in bfloat16; torch then takes about a hundred times as long."""
    return not has_bfloat16()
