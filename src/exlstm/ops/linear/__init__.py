"""Linear maps y = x W^T + b. Decoding has few rows of x: then reading W is all the work, and `numba` reads it best.

With many rows, under autograd and on other devices it is torch's own. Weights may be quantised; see `formats`.
"""

from collections.abc import Callable, Sequence
from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor
from torch.nn import Parameter, functional

from exlstm.ops.choose import choose
from exlstm.ops.linear.cutover import most_rows
from exlstm.ops.linear.formats import Int4Weight, Int8Weight, Weight, dequantised, to_int4, to_int8

__all__ = ["Int4Weight", "Int8Weight", "Weight", "dequantised", "linear", "linears", "to_int4", "to_int8"]

Map = tuple[Weight, Tensor | None, torch.dtype]  # W [N, K], b [N], dtype of the result
DTYPES = (torch.float32, torch.bfloat16)
STORED = (*DTYPES, torch.int8, torch.uint8)
NAMES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}


def linear(x: Tensor, weight: Weight, bias: Tensor | None = None, /, *, backend: str = "auto") -> Tensor:
    """x W^T + b. x: [..., K]. weight: [N, K] in x's dtype, or quantised. bias: [N] or None. Returns [..., N] like x.

    backend: "auto", "numba" (few rows, no gradient, CPU, float32 or bfloat16) or "torch". Numba sums in float32 and
    rounds once; a row's result does not depend on how many rows there are.
    Raises ValueError for shapes that do not fit and for a backend that cannot run.
    """
    return linears(x, [(weight, bias, x.dtype)], backend=backend)[0]


def linears(x: Tensor, maps: Sequence[Map], /, *, backend: str = "auto") -> list[Tensor]:
    """Several maps of the same x, as one job where that is faster. See `linear`."""
    check_shapes(x, maps)
    obstacle = numba_obstacle(x, maps)
    if obstacle is None and backend == "auto":
        obstacle = too_many_rows(x, maps)
    if choose("linear", backend, candidates(obstacle)) == "torch":
        return [linear_torch(x, *each) for each in maps]
    return kernels()(x if x.is_contiguous() else x.contiguous(), maps)


def check_shapes(x: Tensor, maps: Sequence[Map]) -> None:
    """ValueError unless x and the biases fit the weights: kernels read memory by these numbers."""
    width = x.shape[-1] if x.ndim else 0
    for weight, bias, _ in maps:
        N, K = weight.shape
        if width != K or (bias is not None and (bias.ndim != 1 or bias.shape[0] != N)):
            raise ValueError(
                f"x has shape {tuple(x.shape)} and b {None if bias is None else tuple(bias.shape)}; "
                f"with weights of shape {(N, K)} x must be [..., {K}] and b [{N}]."
            )


@cache
def kernels() -> Callable[[Tensor, Sequence[Map]], list[Tensor]]:
    """The function that runs our kernels, imported when it is first needed."""
    from exlstm.ops.linear.numba import linears_numba

    return linears_numba


@cache
def candidates(obstacle: str | None) -> list[tuple[str, str | None]]:
    """What `choose` asks for; kept, for a token takes a hundred such choices."""
    return [("numba", obstacle), ("torch", None)]


def linear_torch(x: Tensor, weight: Weight, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    """torch's own, in `dtype` from the beginning; quantised weights are expanded first."""
    w_NK = dequantised(weight, dtype)
    return functional.linear(x.to(dtype), w_NK, None if bias is None else bias.to(dtype))


def numba_obstacle(x: Tensor, maps: Sequence[Map]) -> str | None:
    """Why the Numba kernels cannot compute this, or None. Asked a hundred times per token: cheap questions first."""
    if (type(x) is not Tensor and type(x) is not Parameter) or not x.is_cpu or watched():
        return "it takes plain tensors on a CPU, outside of tracing, transforms and autocast"
    if x.dtype not in DTYPES:
        return f"it computes with float32 and bfloat16, and the input is {x.dtype}"
    if x.numel() == 0:
        return "there is nothing to compute"
    gradient = torch.is_grad_enabled()
    if gradient and x.requires_grad:
        return "gradients are needed"
    for weight, bias, dtype in maps:
        if dtype not in DTYPES:
            return f"it computes with float32 and bfloat16, and the result is {dtype}"
        stored = (weight,) if isinstance(weight, Tensor) else weight[:-1] if len(weight) == 4 else weight
        problem = storage_obstacle(stored if bias is None else (*stored, bias), gradient)
        if problem is not None:
            return problem
    return None if has_numba() else "Numba is not installed"


def storage_obstacle(tensors: Sequence[Tensor], gradient: bool) -> str | None:
    """Why the kernels cannot read these weights, or None."""
    for x in tensors:
        if (type(x) is not Tensor and type(x) is not Parameter) or not x.is_cpu:
            return "the weights are not plain tensors on the CPU"
        if x.dtype not in STORED:
            return f"it reads weights in float32 and bfloat16, not {x.dtype}"
        if not x.is_contiguous():
            return "the weights are not contiguous"
        if gradient and x.requires_grad:
            return "gradients are needed"
    return None


def watched() -> bool:
    """Whether somebody traces, transforms, counts or narrows what torch computes: our kernels would be invisible."""
    return (
        torch.compiler.is_compiling()
        or torch.is_autocast_enabled("cpu")
        or torch._C._get_tracing_state() is not None
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._functorch.peek_interpreter_stack() is not None
    )


@cache
def has_numba() -> bool:
    """Whether Numba is installed."""
    return find_spec("numba") is not None


def too_many_rows(x: Tensor, maps: Sequence[Map]) -> str | None:
    """Why torch is faster for so many rows, or None. Measured once on every machine: see `cutover`."""
    rows = x.numel() // x.shape[-1]
    if rows == 1:
        return None
    kind = kind_of(maps[0][0])
    most = most_rows(kind, torch.get_num_threads()) if rows <= LIMIT else LIMIT
    return None if rows <= most else f"from {most + 1} rows on torch is faster with {kind} weights"


LIMIT = 64  # rows; with more torch is faster, and nobody has to measure


def kind_of(weight: Weight) -> str:
    """float32, bfloat16, int8 or int4."""
    if isinstance(weight, Tensor):
        return NAMES[weight.dtype]
    return "int8" if isinstance(weight, Int8Weight) else "int4"
