"""Whether torch traces or transforms a call, and which forms of an op that leaves.

Tracing: `torch.compile`, `torch.export`, fake tensors, counters of operations, tensors of other classes. What is not an
operation of torch is lost there, and a tensor need not have numbers: a kernel that reads memory by its address cannot
run. Transforms: `torch.func`, forward-mode derivatives, `torch.jit.trace`. They cannot go through a backward that is
written by hand either.
"""

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import Parameter

from exlstm.runtime.availability import taken_as_given
from exlstm.runtime.capture import recording

TRACED = "torch traces this call or its tensors, and its kernels are not operations of torch"
TRANSFORMED = "torch.func, forward-mode AD or torch.jit.trace transforms this call, and it is no plain torch"
KERNELS = frozenset({"numba"})  # backends that neither can run
FUNCTIONS = frozenset({"chunkwise", "fused", "triton", "triton_steps"})  # backends that cannot be transformed


# asked in every op of a decoding step, where a name costs less than a path
is_compiling, transform_in_force = torch.compiler.is_compiling, torch._C._functorch.peek_interpreter_stack
jit_state, modes = torch._C._get_tracing_state, torch._C._len_torch_dispatch_stack


def tracer(tensors: Iterable[Tensor | None] = ()) -> str | None:
    """TRANSFORMED, TRACED or None: what watches a call on these tensors."""
    if is_compiling():
        return TRANSFORMED if compiling_a_transform() else TRACED
    if transform_in_force() is not None or jit_state() is not None or forward_ad._current_level >= 0:
        return TRANSFORMED
    # recording a step is a mode, too
    if modes() and modes() > (recording() is not None):
        return TRACED
    for x in tensors:
        if type(x) is not Tensor and type(x) is not Parameter and x is not None:
            return TRACED
    return None


@taken_as_given
def compiling_a_transform() -> bool:
    """Whether a compiler is inside a transform of torch.func."""
    return transform_in_force() is not None


def hidden(backend: str, watch: str) -> str | None:
    """Why a backend cannot run while `watch`, an answer of `tracer`, holds, or None."""
    return watch if backend in KERNELS or (watch is TRANSFORMED and backend in FUNCTIONS) else None


def watched() -> bool:
    """Whether torch traces, transforms or narrows what is computed: then kernels of ours stay out of it."""
    return tracer() is not None or torch.is_autocast_enabled("cpu")
