"""A decoding step, recorded once and then done again and again without the interpreter.

`record` runs a function and writes down every kernel of ours that it calls, and the few things that torch does
between them: sums, products, activations, the rows of an embedding. Anything else is not known here: then the function
is refused, and whoever asked goes on without a recording. A `Program` does all of it in one call.

N numbers in a row  M rows  D width of the embedding
"""

from array import array
from collections.abc import Callable, Sequence
from itertools import pairwise
from math import erf, prod, sqrt
from typing import Any, TypeVar

import numpy as np
import torch
from numpy import float32, float64
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from exlstm.ops.linear.numba.op import BFLOAT16, FLOAT32, Plan, number, write
from exlstm.runtime.addresses import address
from exlstm.runtime.capture import NotRecordable, Tape, recorded_on
from exlstm.runtime.cpu.bfloat16 import read_numbers, write_numbers
from exlstm.runtime.cpu.jit import helper
from exlstm.runtime.cpu.jobs import address_of
from exlstm.runtime.cpu.loops import Array
from exlstm.runtime.cpu.math import sigmoid, tanh
from exlstm.runtime.cpu.memory import double_as_long, double_at, long_at
from exlstm.runtime.cpu.player import Player

ADD, MULTIPLY, SCALE, DIVIDE, TANH, SIGMOID, SILU, GELU = range(8)
AXES = 5  # of what is copied, at most
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


@helper()
def combine(code: int, x_N: Array, y_N: Array, factor: float) -> None:
    """A sum or a product, in place."""
    number = float32(factor)
    if code == ADD:
        for j in range(x_N.size):
            x_N[j] += y_N[j]
    elif code == MULTIPLY:
        for j in range(x_N.size):
            x_N[j] *= y_N[j]
    elif code == SCALE:
        for j in range(x_N.size):
            x_N[j] *= number
    elif code == DIVIDE:
        for j in range(x_N.size):
            x_N[j] /= number


def pointwise_piece(a: int, m: int) -> None:
    """Row m of what torch would compute: code, numbers in a row, factor; then address, step, dtype of x, y and out."""
    code, N = long_at(a), long_at(a + 8)
    x_N, y_N = np.empty(N, float32), np.empty(N, float32)
    read_numbers(long_at(a + 24) + m * long_at(a + 32), long_at(a + 40) != 0, x_N)
    if code <= MULTIPLY:
        read_numbers(long_at(a + 48) + m * long_at(a + 56), long_at(a + 64) != 0, y_N)
    combine(code, x_N, y_N, double_at(a + 16))
    activate(code, x_N)
    write_numbers(x_N, long_at(a + 72) + m * long_at(a + 80), long_at(a + 88) != 0)


def copy_piece(a: int, _piece: int) -> None:
    """From where, to where, dtypes; sizes of the axes, bytes between numbers there and here."""
    x, out, short_x, short_out = long_at(a), long_at(a + 8), long_at(a + 16) != 0, long_at(a + 24) != 0
    sizes, steps, to = a + 32, a + 32 + 8 * AXES, a + 32 + 16 * AXES
    N, step, to_step = long_at(sizes + 32), long_at(steps + 32), long_at(to + 32)
    for i in range(long_at(sizes)):
        for j in range(long_at(sizes + 8)):
            for k in range(long_at(sizes + 16)):
                for m in range(long_at(sizes + 24)):
                    here = (
                        x
                        + i * long_at(steps)
                        + j * long_at(steps + 8)
                        + k * long_at(steps + 16)
                        + m * long_at(steps + 24)
                    )
                    there = out + i * long_at(to) + j * long_at(to + 8) + k * long_at(to + 16) + m * long_at(to + 24)
                    for n in range(N):
                        write(BFLOAT16 if short_out else FLOAT32, there + n * to_step, 0,
                              number(BFLOAT16 if short_x else FLOAT32, here + n * step, 0))  # fmt: skip


def rows_piece(a: int, m: int) -> None:
    """Row number token[m] of an embedding: address of the tokens, D, embedding, out, dtype."""
    D, short = long_at(a + 8), long_at(a + 32) != 0
    size, x_D = 2 if short else 4, np.empty(D, float32)
    read_numbers(long_at(a + 16) + size * D * long_at(long_at(a) + 8 * m), short, x_D)
    write_numbers(x_D, long_at(a + 24) + size * D * m, short)


def strides(x: Tensor, shape: torch.Size) -> list[int]:
    """Bytes from number to number along every axis of `shape`, to which x is broadcast."""
    if x.dtype not in DTYPES or not x.is_cpu:
        raise NotRecordable(f"a tensor of {x.dtype} on {x.device}")
    try:
        return [step * x.itemsize for step in x.expand(shape).stride()]
    except RuntimeError:
        raise NotRecordable(f"shapes {tuple(x.shape)} and {tuple(shape)}") from None


def in_rows(tensors: Sequence[Tensor], shape: torch.Size) -> tuple[int, int, list[int]]:
    """Rows, numbers in each, and for every tensor the bytes from one row to the next.

    NotRecordable if the tensors are not all of them rows of neighbours, at equal distances.
    """
    every = [strides(x, shape) for x in tensors]
    for cut in range(len(shape) + 1):
        longer = [axis for axis in range(cut) if shape[axis] > 1]
        if all(rows_of(steps, x.itemsize, shape, cut, longer) for steps, x in zip(every, tensors, strict=True)):
            apart = [steps[longer[-1]] if longer else 0 for steps in every]
            return prod(shape[:cut]), prod(shape[cut:]), apart
    raise NotRecordable(f"tensors of strides {[x.stride() for x in tensors]}")


def rows_of(steps: list[int], size: int, shape: torch.Size, cut: int, longer: list[int]) -> bool:
    """Whether numbers are neighbours along the axes from `cut` on, and all rows before it at equal distances."""
    for axis in reversed(range(cut, len(shape))):
        if shape[axis] > 1 and steps[axis] != size:
            return False
        size *= shape[axis]
    return all(steps[a] == steps[b] * shape[b] for a, b in pairwise(longer))


def record(step: Callable[[], Result]) -> tuple[Tape, Result]:
    """Runs `step`, without gradients; what it did, and what it returned. NotRecordable if that cannot be done again."""
    tape = Tape()
    with torch.no_grad(), recorded_on(tape), Recording(tape):
        result = step()
    return tape, result


class Recording(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Writes down on `tape` what runs inside."""

    def __init__(self, tape: Tape) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.tape = tape

    def __torch_dispatch__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.tape.keep(out)
        if func in POINTWISE:
            code, *operands = POINTWISE[func](*args, **(kwargs or {}))
            self.pointwise(out, code, *operands)
        elif func in SPECIAL:
            SPECIAL[func](self, out, *args)
        elif func not in HARMLESS and not is_constant(func, out, args) and not is_view(func, out, args):
            raise NotRecordable(str(func))
        return out

    def pointwise(self, out: Tensor, code: int, x: Tensor, y: Tensor | float | None = None) -> None:
        """One of the codes above; x and y are broadcast."""
        tensors = [x, y if isinstance(y, Tensor) else x, out]
        M, N, apart = in_rows(tensors, out.shape)
        places = [
            number
            for t, step in zip(tensors, apart, strict=True)
            for number in (t.data_ptr(), step, t.dtype is torch.bfloat16)
        ]
        factor = double_as_long(0.0 if y is None or isinstance(y, Tensor) else float(y))
        if M * N:
            self.tape.add(pointwise_piece, code, N, factor, *places, pieces=M)

    def copy(self, out: Tensor, x: Tensor) -> None:
        """out = x, whatever the strides."""
        shape = [*[1] * (AXES - out.ndim), *out.shape]
        if out.ndim > AXES:
            raise NotRecordable(f"a copy of {out.ndim} axes")
        steps = [[*[0] * (AXES - out.ndim), *strides(t, out.shape)] for t in (x, out)]
        shorts = [t.dtype is torch.bfloat16 for t in (x, out)]
        self.tape.add(copy_piece, x.data_ptr(), out.data_ptr(), *shorts, *shape, *steps[0], *steps[1])

    def joined(self, out: Tensor, parts: Sequence[Tensor], axis: int = 0) -> None:
        """out = cat(parts)"""
        start = 0
        for part in parts:
            self.copy(out.narrow(axis, start, part.shape[axis]), part)
            start += part.shape[axis]

    def batched_product(self, out_HMJ: Tensor, x_HMK: Tensor, w_HKJ: Tensor) -> None:
        """For every head a product, as linear maps of a few rows are computed."""
        w_HJK, x = w_HKJ.mT, self.tape.keep(torch.empty(x_HMK.shape, dtype=x_HMK.dtype))
        if w_HJK.dtype not in DTYPES or not w_HJK[0].is_contiguous():
            raise NotRecordable("a product with other matrices")
        self.copy(x, x_HMK)
        for out_MJ, x_MK, w_JK in zip(out_HMJ, x, w_HJK, strict=True):
            (y_MJ,) = self.tape.keep(Plan([(w_JK, None, out_MJ.dtype)]).run(x_MK))
            self.copy(out_MJ, y_MJ)

    def embedding(self, out: Tensor, weight: Tensor, tokens: Tensor) -> None:
        """Rows of the embedding."""
        if weight.dtype not in DTYPES or tokens.dtype is not torch.int64 or not tokens.is_contiguous():
            raise NotRecordable("an embedding of other dtypes")
        (C, D), dtype, count = weight.shape, weight.dtype, tokens.numel()
        table, rows = address(weight, C * D, dtype), address(out, count * D, dtype)
        places = address(tokens, count, torch.int64), D, table, rows, dtype is torch.bfloat16
        self.tape.add(rows_piece, *places, pieces=count)


def summed(x: Tensor, y: Any, *, alpha: float = 1) -> tuple[Any, ...]:
    """x + alpha y"""
    if alpha != 1 or not isinstance(y, Tensor):
        raise NotRecordable("a sum with a number")
    return ADD, x, y


def multiplied(x: Tensor, y: Any) -> tuple[Any, ...]:
    """x y"""
    return (MULTIPLY if isinstance(y, Tensor) and y.ndim else SCALE), x, y


def divided(x: Tensor, y: Any) -> tuple[Any, ...]:
    """x / y"""
    if isinstance(y, Tensor):
        raise NotRecordable("a quotient of tensors")
    return DIVIDE, x, y


def gelu(x: Tensor, *, approximate: str = "none") -> tuple[Any, ...]:
    """The exact one."""
    if approximate != "none":
        raise NotRecordable("an approximate gelu")
    return GELU, x


def one(code: int) -> Callable[..., tuple[Any, ...]]:
    """An operation of one tensor."""
    return lambda x, *_, **__: (code, x)


POINTWISE: dict[Any, Callable[..., tuple[Any, ...]]] = {
    aten.add.Tensor: summed,
    aten.add_.Tensor: summed,
    aten.mul.Tensor: multiplied,
    aten.mul_.Tensor: multiplied,
    aten.div.Tensor: divided,
    aten.div_.Tensor: divided,
    aten.gelu.default: gelu,
    aten.tanh.default: one(TANH),
    aten.tanh_.default: one(TANH),
    aten.sigmoid.default: one(SIGMOID),
    aten.silu.default: one(SILU),
}
SPECIAL: dict[Any, Callable[..., None]] = {
    aten.clone.default: Recording.copy,
    aten._to_copy.default: Recording.copy,
    aten.cat.default: Recording.joined,
    aten.bmm.default: Recording.batched_product,
    aten.embedding.default: lambda self, out, weight, tokens, *_: self.embedding(out, weight, tokens),
}
HARMLESS = {  # memory, which is kept, and a question about dtypes
    aten.empty.memory_format,
    aten.empty_like.default,
    aten.new_empty.default,
    aten.empty_strided.default,
    aten.promote_types.default,
}


def is_constant(func: Any, out: Any, args: Sequence[Any]) -> bool:
    """Whether an operation makes whole numbers, which nothing here changes, or marks memory as not written."""
    if func is aten.full.default:
        return not out.is_floating_point()
    return func is aten.fill_.Scalar and args[1] != args[1]


def is_view(func: Any, out: Any, args: Sequence[Any]) -> bool:
    """Whether an operation only looks at its first argument in another way."""
    outs = out if isinstance(out, (list, tuple)) else [out]
    if func._schema.is_mutable or not args or not isinstance(args[0], Tensor):
        return False
    memory = args[0].untyped_storage().data_ptr()
    return all(isinstance(x, Tensor) and x.untyped_storage().data_ptr() == memory for x in outs)


class Program:
    """What a tape holds, ready to be played: with every state that goes in, and the one that comes out.

    states: pairs of what the recorded step read and wrote.

    A step reads one set of buffers and writes the other; the next one reads what the last wrote. So there are two
    tables, which differ in nothing but these addresses.
    """

    def __init__(self, tape: Tape, states: Sequence[tuple[Tensor, Tensor]]) -> None:
        swapped = {}
        for before, after in states:
            if after.data_ptr() == before.data_ptr():
                continue
            if after.shape != before.shape or after.dtype != before.dtype or not after.is_contiguous():
                raise NotRecordable(f"a state of shape {tuple(before.shape)} that becomes {tuple(after.shape)}")
            swapped[before.data_ptr()] = after.data_ptr()
            swapped[after.data_ptr()] = before.data_ptr()
        self.tape, self.count, self.turn, self.player = tape, len(tape.entries), 0, Player()
        self.arguments = [
            [array("q", [names.get(x, x) for x in entry.arguments]) for entry in tape.entries]
            for names in ({}, swapped)
        ]
        self.tables = [
            array("q", [
                number
                for entry, arguments in zip(tape.entries, every, strict=True)
                for number in (address_of(entry.kernel), arguments.buffer_info()[0], entry.pieces, entry.shared)
            ])
            for every in self.arguments
        ]  # fmt: skip

    def play(self) -> None:
        """One step, from the buffers that were written last to the others. The first is the recorded one again."""
        table = self.tables[self.turn].buffer_info()[0]
        self.turn = 1 - self.turn
        self.player.play(table, self.count, torch.get_num_threads())
