"""Whether torch traces or transforms a call, and which backends of an op that excludes.

Tracing: `torch.compile`, `torch.export`, fake tensors, counters of operations, tensors of other classes. What is not an
operation of torch is lost there, and a tensor need not have numbers: a kernel that reads memory by its address cannot
run. Transforms: `torch.func`, forward-mode derivatives, `torch.jit.trace`. They cannot go through a backward that is
written by hand either.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor
from torch.nn import Parameter

from exlstm.runtime.capture import active
from exlstm.runtime.internals import (
    assume_constant,
    in_forward_ad,
    innermost_transform,
    is_compiling,
    jit_tracing_state,
    num_dispatch_modes,
)

TRACED = "torch traces this call or its tensors, and its kernels are not operations of torch"
TRANSFORMED = "torch.func, forward-mode AD or torch.jit.trace transforms this call, and it is no plain torch"
PORTABLE = "the graph is for other runtimes, which know the operations of the definition"
KERNELS = frozenset({"numba"})  # backends that tracing and transforms exclude
FUNCTIONS = frozenset({"chunkwise", "fft", "fused", "triton", "triton_steps"})  # backends that transforms exclude


CHUNKS = frozenset({"chunkwise", "fft", "fused"})  # backends that a portable graph has where an op says so
_portable: ContextVar[bool] = ContextVar("exlstm_portable_graph", default=False)


@contextmanager
def portable_graph() -> Iterator[None]:
    """A context for traces of graphs that other runtimes run: plain operations, and float32 where ours is float64."""
    token = _portable.set(True)
    try:
        yield
    finally:
        _portable.reset(token)


@assume_constant
def is_portable() -> bool:
    """Whether a graph for other runtimes is traced."""
    return _portable.get()


def tracer(tensors: Iterable[Tensor | None] = ()) -> str | None:
    """How torch traces or transforms a call on these tensors: TRANSFORMED, TRACED or None."""
    if is_compiling():
        return TRANSFORMED if compiling_a_transform() else TRACED
    if innermost_transform() is not None or jit_tracing_state() is not None or in_forward_ad():
        return TRANSFORMED
    if num_dispatch_modes() and other_dispatch_modes():
        return TRACED
    for x in tensors:
        if type(x) is not Tensor and type(x) is not Parameter and x is not None:
            return TRACED
    return None


def has_gradients(tensors: Iterable[Tensor | None]) -> bool:
    """Whether torch records a call on these tensors for a backward."""
    return torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)


def other_dispatch_modes() -> bool:
    """Whether a dispatch mode of torch is active beside the one that captures a step."""
    return num_dispatch_modes() > (1 if active() is not None else 0)


@assume_constant
def compiling_a_transform() -> bool:
    """Whether a compiler is inside a transform of torch.func."""
    return innermost_transform() is not None


def tracing_obstacle(backend: str, tracing: str, portable: Iterable[str] = ()) -> str | None:
    """Why a backend cannot run, or None. tracing: the answer of `tracer`. portable: backends of plain operations."""
    if backend in CHUNKS and backend not in portable and is_portable():
        return PORTABLE
    return tracing if backend in KERNELS or (tracing is TRANSFORMED and backend in FUNCTIONS) else None


def is_traced_or_autocast() -> bool:
    """True under tracing, transforms or CPU autocast: kernels that read memory by address must not run then."""
    return tracer() is not None or torch.is_autocast_enabled("cpu")
