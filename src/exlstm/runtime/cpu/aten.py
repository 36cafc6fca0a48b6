"""Operations of torch in a captured decoding step, as nodes of its graph.

`capture_step` runs a function in a dispatch mode. Sums, products, activations, copies and the rows of an embedding
become launches of the kernels below; any other operation of torch ends the capture, and its name is the reason.

N numbers in a row  M rows  C classes (rows of the embedding)  D its width
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from math import erf, pi, prod, sqrt
from typing import Any, TypeVar

import numpy as np
import torch
from numpy import float32, float64
from torch import Tensor

from exlstm.runtime.availability import bfloat16_is_emulated
from exlstm.runtime.capture import Graph, Node, NotCapturable, capturing
from exlstm.runtime.cpu.bfloat16 import Array, copy_number, read_numbers, write_numbers
from exlstm.runtime.cpu.jit import helper
from exlstm.runtime.cpu.kernel import I64, Constants, ConstantTable, Floats, Kernel, Strided, kernel
from exlstm.runtime.cpu.math import exp, log_sigmoid, sigmoid, tanh, where
from exlstm.runtime.cpu.memory import long_at
from exlstm.runtime.internals import DispatchMode, is_memory_fill

ADD, SUBTRACT, MULTIPLY = range(3)  # two tensors
SHIFT, SCALE, DIVIDE, SUBTRACT_FROM = range(3, 7)  # a tensor and a number
TANH, SIGMOID, SILU, GELU, GELU_TANH, EXP, RELU, SQUARE, SOFTPLUS, LOG_SIGMOID = range(7, 17)
RECIPROCAL = 17
AXES = 5  # of a copied tensor, at most
DTYPES = (torch.float32, torch.bfloat16)
Result = TypeVar("Result")
aten = torch.ops.aten


@helper()
def activate(code: int, x_N: Array) -> None:
    """An activation, in place."""
    if code == TANH:
        for j in range(x_N.size):
            x_N[j] = tanh(x_N[j])
    elif code == SIGMOID:
        for j in range(x_N.size):
            x_N[j] = sigmoid(x_N[j])
    elif code == SILU:
        for j in range(x_N.size):
            x_N[j] *= sigmoid(x_N[j])
    elif code == GELU:
        for j in range(x_N.size):
            x = float64(x_N[j])
            x_N[j] = float32(0.5 * x * (1.0 + erf(x * sqrt(0.5))))
    elif code == GELU_TANH:
        twice, cubic = float32(2.0 * sqrt(2.0 / pi)), float32(0.044715)
        for j in range(x_N.size):
            y = x_N[j]
            x_N[j] = y * sigmoid(twice * (y + cubic * y * y * y))  # (1 + tanh(u)) / 2 loses digits far below zero
    elif code == EXP:
        for j in range(x_N.size):
            x_N[j] = exp(x_N[j])
    elif code == RELU:
        for j in range(x_N.size):
            x_N[j] = where(x_N[j] < float32(0.0), float32(0.0), x_N[j])
    elif code == SQUARE:
        for j in range(x_N.size):
            x_N[j] *= x_N[j]
    elif code == SOFTPLUS:
        for j in range(x_N.size):
            x_N[j] = -log_sigmoid(-x_N[j])
    elif code == LOG_SIGMOID:
        for j in range(x_N.size):
            x_N[j] = log_sigmoid(x_N[j])
    elif code == RECIPROCAL:
        for j in range(x_N.size):
            x_N[j] = float32(1.0) / x_N[j]


@helper()
def combine(code: int, x_N: Array, y_N: Array, factor: float) -> None:
    """A sum or a product, of two tensors or of one and a number, in place."""
    number = float32(factor)
    if code == ADD:
        for j in range(x_N.size):
            x_N[j] += y_N[j]
    elif code == SUBTRACT:
        for j in range(x_N.size):
            x_N[j] -= y_N[j]
    elif code == MULTIPLY:
        for j in range(x_N.size):
            x_N[j] *= y_N[j]
    elif code == SHIFT:
        for j in range(x_N.size):
            x_N[j] += number
    elif code == SUBTRACT_FROM:
        for j in range(x_N.size):
            x_N[j] = number - x_N[j]
    elif code == SCALE:
        for j in range(x_N.size):
            x_N[j] *= number
    elif code == DIVIDE:
        for j in range(x_N.size):
            x_N[j] /= number


@kernel()
def pointwise(first: int, last: int, code: int, N: int, factor: float, x: Strided, x_step: int, x_bf16: bool,
              y: Strided, y_step: int, y_bf16: bool, out: Strided, out_step: int, out_bf16: bool) -> None:  # fmt: skip
    """Rows of out = f(x, y) or f(x, factor); rows begin `*_step` bytes after one another."""
    x_N, y_N = np.empty(N, float32), np.empty(N, float32)
    for m in range(first, last):
        read_numbers(x + m * x_step, x_bf16, x_N)
        if code <= MULTIPLY:
            read_numbers(y + m * y_step, y_bf16, y_N)
        combine(code, x_N, y_N, factor)
        activate(code, x_N)
        write_numbers(x_N, out + m * out_step, out_bf16)


@kernel()
def copy_strided(
    first: int, last: int, axes: Constants, x: Strided, x_bf16: bool, out: Strided, out_bf16: bool
) -> None:
    """out = x. axes: the sizes, then the bytes from number to number of x, then of out, AXES of each."""
    steps, to = axes + 8 * AXES, axes + 16 * AXES
    N, step, to_step = long_at(axes + 32), long_at(steps + 32), long_at(to + 32)
    for i in range(first, last):
        for j in range(long_at(axes + 8)):
            for k in range(long_at(axes + 16)):
                for m in range(long_at(axes + 24)):
                    here = (
                        x
                        + i * long_at(steps)
                        + j * long_at(steps + 8)
                        + k * long_at(steps + 16)
                        + m * long_at(steps + 24)
                    )
                    there = out + i * long_at(to) + j * long_at(to + 8) + k * long_at(to + 16) + m * long_at(to + 24)
                    for n in range(N):
                        copy_number(here + n * step, x_bf16, there + n * to_step, out_bf16)


@kernel()
def embedding_rows(
    first: int, last: int, M: int, C: int, D: int, tokens_M: I64, weight_CD: Floats, out_MD: Floats, bf16: bool
) -> None:
    """Rows of the embedding, one per token."""
    size, x_D = 2 if bf16 else 4, np.empty(D, float32)
    for m in range(first, last):
        read_numbers(weight_CD + size * D * long_at(tokens_M + 8 * m), bf16, x_D)
        write_numbers(x_D, out_MD + size * D * m, bf16)


def strides(x: Tensor, shape: torch.Size) -> list[int]:
    """Bytes from number to number along every axis of `shape`, to which x is broadcast."""
    if x.dtype not in DTYPES or not x.is_cpu:
        raise NotCapturable(f"a tensor of {x.dtype} on {x.device}")
    try:
        return [step * x.itemsize for step in x.expand(shape).stride()]
    except RuntimeError:
        raise NotCapturable(f"shapes {tuple(x.shape)} and {tuple(shape)}") from None


def in_rows(tensors: Sequence[Tensor], shape: torch.Size) -> tuple[int, int, list[int]]:
    """Rows, numbers in each, and for every tensor the bytes from one row to the next.

    NotCapturable unless every tensor is contiguous rows at equal distances.
    """
    all_strides = [strides(x, shape) for x in tensors]
    for cut in range(len(shape) + 1):
        longer = [axis for axis in range(cut) if shape[axis] > 1]
        if all(are_rows(steps, x.itemsize, shape, cut, longer) for steps, x in zip(all_strides, tensors, strict=True)):
            apart = [steps[longer[-1]] if longer else 0 for steps in all_strides]
            return prod(shape[:cut]), prod(shape[cut:]), apart
    raise NotCapturable(f"tensors of strides {[x.stride() for x in tensors]}")


def are_rows(steps: list[int], size: int, shape: torch.Size, cut: int, longer: list[int]) -> bool:
    """Whether numbers are contiguous along the axes from `cut` on, and all rows before it at equal distances."""
    for axis in reversed(range(cut, len(shape))):
        if shape[axis] > 1 and steps[axis] != size:
            return False
        size *= shape[axis]
    return all(steps[a] == steps[b] * shape[b] for a, b in pairwise(longer))


def capture_step(step: Callable[[], Result]) -> tuple[Graph, Result]:
    """Runs `step` without gradients: its graph, and what it returned. NotCapturable if it cannot be replayed."""
    graph = Graph()
    bfloat16_is_emulated()  # an operation of torch, which is run once a process: not inside of a capture
    with torch.no_grad(), capturing(graph), TorchCapture(graph):
        result = step()
    return graph, result


class TorchCapture(DispatchMode):  # type: ignore[no-untyped-call]
    """Adds the operations of torch that run inside to a graph."""

    def __init__(self, graph: Graph) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.graph = graph

    def __torch_dispatch__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func in POINTWISE:
            code, *operands = POINTWISE[func](*args, **(kwargs or {}))
            self.pointwise(out, code, *operands)
        elif func in SPECIAL:
            SPECIAL[func](self, out, *args)
        elif func not in NEED_NO_NODE and not is_constant(func, out, args) and not is_view(func, out, args):
            raise NotCapturable(str(func))
        return out

    def add_node(self, kernel: Kernel, items: int, *arguments: Any) -> None:
        """Adds a node for an operation that torch has run."""
        kernel.checked(arguments)
        flat = kernel.flat(arguments)
        self.graph.nodes.append(Node(kernel, items, tuple(flat), False))

    def pointwise(self, out: Tensor, code: int, x: Tensor, y: Tensor | float | None = None) -> None:
        """A pointwise operation by its code; x and y are broadcast."""
        tensors = [x, y if isinstance(y, Tensor) else x, out]
        M, N, apart = in_rows(tensors, out.shape)
        operands = [
            each for t, step in zip(tensors, apart, strict=True) for each in (t, step, t.dtype is torch.bfloat16)
        ]
        factor = 0.0 if y is None or isinstance(y, Tensor) else float(y)
        if M * N:
            self.add_node(pointwise, M, code, N, factor, *operands)

    def copy(self, out: Tensor, x: Tensor) -> None:
        """out = x, whatever the strides."""
        if out.ndim > AXES:
            raise NotCapturable(f"a copy of {out.ndim} axes")
        missing = AXES - out.ndim
        steps = [[*[0] * missing, *strides(t, out.shape)] for t in (x, out)]
        axes = ConstantTable([*[1] * missing, *out.shape, *steps[0], *steps[1]])
        if out.numel():
            operands = [each for t in (x, out) for each in (t, t.dtype is torch.bfloat16)]
            self.add_node(copy_strided, 1 if missing else out.shape[0], axes, *operands)

    def concatenate(self, out: Tensor, parts: Sequence[Tensor], axis: int = 0) -> None:
        """out = cat(parts)"""
        start = 0
        for part in parts:
            self.copy(out.narrow(axis, start, part.shape[axis]), part)
            start += part.shape[axis]

    def stack(self, out: Tensor, parts: Sequence[Tensor], axis: int = 0) -> None:
        """out = stack(parts)"""
        for place, part in enumerate(parts):
            self.copy(out.select(axis, place), part)

    def embedding(self, out: Tensor, weight: Tensor, tokens: Tensor) -> None:
        """Rows of the embedding."""
        if weight.dtype not in DTYPES or tokens.dtype is not torch.int64 or not tokens.is_contiguous():
            raise NotCapturable("an embedding of other dtypes")
        count = tokens.numel()
        self.add_node(embedding_rows, count, count, *weight.shape, tokens, weight, out, weight.dtype is torch.bfloat16)


def add(x: Tensor, y: Any, *, alpha: float = 1) -> tuple[Any, ...]:
    """x + alpha y"""
    if alpha != 1 or (isinstance(y, Tensor) and not y.ndim):
        raise NotCapturable("a sum with a scaled tensor or one of no axes")
    return (ADD if isinstance(y, Tensor) else SHIFT), x, y


def subtract(x: Tensor, y: Any, *, alpha: float = 1) -> tuple[Any, ...]:
    """x - alpha y"""
    if alpha != 1 or (isinstance(y, Tensor) and not y.ndim):
        raise NotCapturable("a difference with a scaled tensor or one of no axes")
    return (SUBTRACT, x, y) if isinstance(y, Tensor) else (SHIFT, x, -y)


def subtract_from(x: Tensor, y: float, alpha: float = 1) -> tuple[Any, ...]:
    """y - alpha x"""
    if alpha != 1:
        raise NotCapturable("a difference with a scaled tensor")
    return SUBTRACT_FROM, x, y


def multiply(x: Tensor, y: Any) -> tuple[Any, ...]:
    """x y"""
    return (MULTIPLY if isinstance(y, Tensor) and y.ndim else SCALE), x, y


def divide(x: Tensor, y: Any) -> tuple[Any, ...]:
    """x / y"""
    if isinstance(y, Tensor):
        raise NotCapturable("a quotient of tensors")
    return DIVIDE, x, y


def power(x: Tensor, exponent: float) -> tuple[Any, ...]:
    """x squared."""
    if exponent != 2:
        raise NotCapturable(f"the power {exponent}")
    return SQUARE, x


def gelu(x: Tensor, *, approximate: str = "none") -> tuple[Any, ...]:
    """The GELU, exact or by tanh."""
    return (GELU if approximate == "none" else GELU_TANH), x


def softplus(x: Tensor, beta: float = 1, threshold: float = 20) -> tuple[Any, ...]:
    """log(1 + e^x)"""
    if (beta, threshold) != (1, 20):
        raise NotCapturable("a softplus of another slope or threshold")
    return SOFTPLUS, x


def unary(code: int) -> Callable[..., tuple[Any, ...]]:
    """A pointwise operation of one tensor."""
    return lambda x, *_, **__: (code, x)


POINTWISE: dict[Any, Callable[..., tuple[Any, ...]]] = {
    aten.add.Tensor: add,
    aten.add_.Tensor: add,
    aten.mul.Tensor: multiply,
    aten.mul_.Tensor: multiply,
    aten.div.Tensor: divide,
    aten.div_.Tensor: divide,
    aten.sub.Tensor: subtract,
    aten.rsub.Scalar: subtract_from,
    aten.neg.default: lambda x: (SCALE, x, -1.0),
    aten.pow.Tensor_Scalar: power,
    aten.gelu.default: gelu,
    aten.softplus.default: softplus,
    aten.exp.default: unary(EXP),
    aten.relu.default: unary(RELU),
    aten.tanh.default: unary(TANH),
    aten.tanh_.default: unary(TANH),
    aten.sigmoid.default: unary(SIGMOID),
    aten.silu.default: unary(SILU),
    aten.reciprocal.default: unary(RECIPROCAL),
}
SPECIAL: dict[Any, Callable[..., None]] = {
    aten.log_sigmoid_forward.default: lambda self, out, x: self.pointwise(out[0], LOG_SIGMOID, x),
    aten.clone.default: TorchCapture.copy,
    aten._to_copy.default: TorchCapture.copy,
    aten.cat.default: TorchCapture.concatenate,
    aten.stack.default: TorchCapture.stack,
    aten.embedding.default: lambda self, out, weight, tokens, *_: self.embedding(out, weight, tokens),
}
NEED_NO_NODE = {  # allocations, and a query about dtypes
    aten.empty.memory_format,
    aten.empty_like.default,
    aten.new_empty.default,
    aten.empty_strided.default,
    aten.promote_types.default,
}


def is_constant(func: Any, out: Any, args: Sequence[Any]) -> bool:
    """Whether an operation makes integers, which no kernel changes, or marks memory as uninitialized."""
    if func is aten.full.default:
        return not out.is_floating_point()
    return is_memory_fill(func, args)


def is_view(func: Any, out: Any, args: Sequence[Any]) -> bool:
    """Whether an operation returns views of its first argument."""
    outs = out if isinstance(out, (list, tuple)) else [out]
    if func._schema.is_mutable or not args or not isinstance(args[0], Tensor):
        return False
    memory = args[0].untyped_storage().data_ptr()
    return all(isinstance(x, Tensor) and x.untyped_storage().data_ptr() == memory for x in outs)
