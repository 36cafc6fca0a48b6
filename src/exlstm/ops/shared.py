"""What several ops need: wide numbers, and steps that only some rows of a batch take.

B batch  T time
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from importlib.util import find_spec
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

Arguments = ParamSpec("Arguments")
Answer = TypeVar("Answer")


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """float32, or wider if `dtype` is: the precision of gates, states and sums."""
    return torch.promote_types(dtype, torch.float32)


def wide(x: Tensor) -> Tensor:
    """`x` in float32 or wider: sums of log gates do not survive bfloat16."""
    return x.to(wide_dtype(x.dtype))


def inside(lengths_B: Tensor, steps: int) -> Tensor:
    """valid_BT: True where step t belongs to row b, that is t < lengths_B[b]."""
    return torch.arange(steps, device=lengths_B.device) < lengths_B[:, None]


def exactly(x: Tensor) -> AbstractContextManager[object]:
    """A context in which autocast does not narrow what an op computes wide on purpose."""
    # to switch off what is off takes as long as an op on a small model's token
    off = not torch.is_autocast_enabled(x.device.type)
    return nullcontext() if off else torch.autocast(x.device.type, enabled=False)


def taken_as_given(question: Callable[Arguments, Answer]) -> Callable[Arguments, Answer]:
    """torch.compile takes the answer as it is and does not look for reasons.

    It is what `torch.compiler.assume_constant_result` does, which would load the compiler now.
    """
    vars(question)["_dynamo_marked_constant"] = True
    return question


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


@taken_as_given
def no_numba() -> str | None:
    """Why there is no Numba to compile kernels with, or None."""
    return missing_numba()


@taken_as_given
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


@taken_as_given
def interpreted() -> bool:
    """Whether Triton was told to interpret its kernels, on a CPU, instead of compiling them: for tests."""
    import triton

    return bool(triton.knobs.runtime.interpret)


@taken_as_given
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
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


@taken_as_given
def bfloat16_is_emulated() -> bool:
    """Whether this CPU has no instructions for products in bfloat16; torch then takes about a hundred times as long."""
    return not has_bfloat16()


def block(width: int, most: int) -> int:
    """Of a kernel for GPUs: a power of two from 16 to `most` that holds `width` numbers, if it can."""
    return max(16, min(most, 1 << (width - 1).bit_length()))


def like(mask: Tensor, x: Tensor) -> Tensor:
    """`mask` with trailing axes of size one, so that it broadcasts against `x` from the left."""
    return mask.reshape(mask.shape + (1,) * (x.ndim - mask.ndim))


def address(x: Tensor | None, count: int, dtype: torch.dtype = torch.float32, *, gaps: bool = False) -> int:
    """Where a CPU kernel finds the `count` numbers of `x`; 0 for None.

    gaps: the numbers of the last axis are neighbours, and the kernel is told the distances of the others. A kernel
    knows nothing else of a tensor, so what it would misread raises ValueError here. An address keeps nothing alive.
    """
    if x is None:
        return 0
    in_order = x.is_contiguous() or (gaps and x.stride(-1) == 1)
    if x.dtype is not dtype or not in_order or x.numel() != count or not x.is_cpu:
        raise ValueError(
            f"a kernel was given {x.dtype} of shape {tuple(x.shape)} and strides {x.stride()} on {x.device}; "
            f"it reads {count} neighbouring numbers of {dtype} on a CPU."
        )
    return x.data_ptr()


def addresses(count: int, *tensors: Tensor | None, dtype: torch.dtype = torch.float32) -> tuple[int, ...]:
    """`address` of several tensors of so many numbers each."""
    return tuple(address(x, count, dtype) for x in tensors)


def blank(x: Tensor, valid_BT: Tensor) -> Tensor:
    """`x` [B, T, ...] with zeros where valid_BT is False: what was there, perhaps NaN, meets nothing in a product."""
    return x.masked_fill(like(~valid_BT, x), 0)


def contiguous(*tensors: Tensor) -> list[Tensor]:
    """As kernels want them: without their graph, their numbers in order."""
    return [x.detach().contiguous() for x in tensors]
