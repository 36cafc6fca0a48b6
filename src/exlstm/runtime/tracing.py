"""Whether torch traces or transforms a call, and which forms of an op that leaves.

Tracing: `torch.compile`, `torch.export`, fake tensors, counters of operations, tensors of other classes. What is not an
operation of torch is lost there, and a tensor need not have numbers: a kernel that reads memory by its address cannot
run. Transforms: `torch.func`, forward-mode derivatives, `torch.jit.trace`. They cannot go through a backward that is
written by hand either.
"""

from collections.abc import Iterable

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
KERNELS = frozenset({"numba"})  # backends that neither can run
FUNCTIONS = frozenset({"chunkwise", "fused", "triton", "triton_steps"})  # backends that cannot be transformed


def tracer(tensors: Iterable[Tensor | None] = ()) -> str | None:
    """TRANSFORMED, TRACED or None: what watches a call on these tensors."""
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


def other_dispatch_modes() -> bool:
    """Whether a dispatch mode of torch is active beside the one that captures a step."""
    return num_dispatch_modes() > (1 if active() is not None else 0)


@assume_constant
def compiling_a_transform() -> bool:
    """Whether a compiler is inside a transform of torch.func."""
    return innermost_transform() is not None


def hidden(backend: str, watch: str) -> str | None:
    """Why a backend cannot run while `watch`, an answer of `tracer`, holds, or None."""
    return watch if backend in KERNELS or (watch is TRANSFORMED and backend in FUNCTIONS) else None


def watched() -> bool:
    """Whether torch traces, transforms or narrows what is computed: then kernels of ours stay out of it."""
    return tracer() is not None or torch.is_autocast_enabled("cpu")
