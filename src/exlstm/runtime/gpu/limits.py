"""Limits of a GPU for Triton's kernels, and obstacles to running them."""

from collections.abc import Sequence

import torch
from torch import Tensor

from exlstm.runtime.availability import has_triton
from exlstm.runtime.internals import assume_constant


@assume_constant
def is_interpreted() -> bool:
    """Whether Triton interprets its kernels, on a CPU, instead of compiling them: for tests."""
    import triton

    return bool(triton.knobs.runtime.interpret)


@assume_constant
def gpu_limits(device: torch.device) -> tuple[str, int]:
    """The name of a GPU, and the bytes of shared memory that a program of a kernel can have; an H100's elsewhere."""
    if device.type != "cuda":
        return "interpreter", 227 << 10
    properties = torch.cuda.get_device_properties(device)
    # some builds of torch lack the property; every GPU has 48 KB
    return properties.name, getattr(properties, "shared_memory_per_block_optin", 48 << 10)


def gpu_obstacle(tensors: Sequence[Tensor], asked_for: bool) -> str | None:
    """Why Triton's kernels cannot run on these tensors, or None. Its interpreter runs only when asked for by name."""
    device = tensors[0].device.type
    if not has_triton():
        return "Triton is not installed"
    if device != "cuda" and not (asked_for and device == "cpu" and is_interpreted()):
        return f"the tensors are on {device}, Triton runs on GPUs"
    if any(x.dtype is torch.float64 for x in tensors):
        return "it computes in float32 and there is float64 in the input"
    return None


def gpu_candidate(tensors: Sequence[Tensor], backend: str, other: str | None) -> list[tuple[str, str | None]]:
    """Triton as a candidate for `choose`; none on a CPU, unless it is asked for by name.

    other: another obstacle.
    """
    if tensors[0].is_cpu and backend != "triton":
        return []
    return [("triton", other or gpu_obstacle(tensors, backend == "triton"))]
