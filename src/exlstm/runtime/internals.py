"""Every private name of torch that exlstm leans on, with the reason, and the version that it was last checked with.

`cpu/internals.py` does the same for Numba, which need not be installed. tests/test_architecture.py keeps such names
out of all other files; tests/runtime/test_internals.py fails where one of them is gone or means something else.
Checked with torch 2.13.0.
"""

from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode

Arguments = ParamSpec("Arguments")
Answer = TypeVar("Answer")

DispatchMode = TorchDispatchMode  # sees every operation of torch that runs inside it

# called in every op of a decoding step, where a public wrapper would cost as much as a small kernel
is_compiling = torch.compiler.is_compiling
innermost_transform = torch._C._functorch.peek_interpreter_stack  # of torch.func; None outside of them
jit_tracing_state = torch._C._get_tracing_state  # of torch.jit.trace
num_dispatch_modes = torch._C._len_torch_dispatch_stack  # fake tensors, counters of operations, our own capture


def in_forward_ad() -> bool:
    """Whether forward-mode derivatives are being taken."""
    return forward_ad._current_level >= 0


def assume_constant(question: Callable[Arguments, Answer]) -> Callable[Arguments, Answer]:
    """Marks a function whose answer torch.compile takes as a constant, without tracing it.

    The mark is that of `torch.compiler.assume_constant_result`, which would load the compiler now.
    """
    vars(question)["_dynamo_marked_constant"] = True
    return question


def scan_over_time(
    step: Callable[[list[torch.Tensor], torch.Tensor], tuple[list[torch.Tensor], torch.Tensor]],
    carry: list[torch.Tensor],
    xs: torch.Tensor,
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """A loop over the first axis that tracers keep as a loop, a prototype of torch: the last carry, and all outputs.

    Imported here, since it loads torch's compiler. The compiler reads the step, and would take the sizes of weights for
    free after loops of other sizes.
    """
    from torch._dynamo import config
    from torch._higher_order_ops.scan import scan

    with config.patch(automatic_dynamic_shapes=False):
        last, ys = scan(step, carry, xs)
    return last, ys


def has_bfloat16_products() -> bool:
    """Whether the CPU has instructions for products in bfloat16."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def has_mkl() -> bool:
    """Whether torch multiplies by MKL. Here, since the public question has no types."""
    return torch._C.has_mkl


def has_onednn_linear() -> bool:
    """Whether torch brings oneDNN's product of plain tensors, which its own compiler calls."""
    return torch._C._has_mkldnn and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def onednn_linear(x_MK: torch.Tensor, w_NK: torch.Tensor, b_N: torch.Tensor | None) -> torch.Tensor:
    """x W^T + b in float32 by oneDNN, without a graph."""
    y_MN: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x_MK, w_NK, b_N, "none", [], "")
    return y_MN


def fills_memory_with_nan() -> bool:
    """Whether `torch.empty` fills floats with NaN: in deterministic mode, as in the tests."""
    fill: bool = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    return torch.are_deterministic_algorithms_enabled() and fill


def is_memory_fill(operation: Any, arguments: Any) -> bool:
    """Whether an operation of torch marks fresh memory with NaN, which `fills_memory_with_nan` asks for."""
    return operation is torch.ops.aten.fill_.Scalar and arguments[1] != arguments[1]


def held_tensors(module: torch.nn.Module) -> tuple[dict[str, Any], dict[str, Any]]:
    """The parameters and the buffers of a module itself, by name: as attributes they cost several times as much."""
    return module._parameters, module._buffers


def version(x: torch.Tensor) -> int:
    """How often a tensor was changed in place."""
    return x._version


def has_hooks(module: torch.nn.Module) -> bool:
    """Whether calls of a module run hooks."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


def numba_is_disabled() -> bool:
    """Whether Numba, which must be installed, was told not to compile. Here, since its other names need a compiler."""
    from numba.core import config

    return bool(vars(config)["DISABLE_JIT"])  # vars: the attribute is made at import, and mypy does not know it
