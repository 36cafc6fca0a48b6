"""Linear maps y = x W^T + b. Decoding has few rows of x: then reading W is most of the work, and `numba` reads it best.

With hundreds of rows, under autograd and on other devices it is torch's own; see `exlstm.ops.products`. Weights may be
quantised, see `formats`; then `numba` computes any number of rows.
"""

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import Parameter

from exlstm.ops import products
from exlstm.ops.linear.formats import Int4Weight, Int8Weight, Weight, dequantised, in_parts, to_int4, to_int8
from exlstm.runtime.availability import bfloat16_is_emulated, no_numba
from exlstm.runtime.backend import choose
from exlstm.runtime.tracing import is_traced_or_autocast

if TYPE_CHECKING:
    from exlstm.ops.linear.numba.op import Plan

__all__ = ["Int4Weight", "Int8Weight", "Prepared", "Weight", "dequantised", "linear", "linears", "to_int4", "to_int8"]

Map = tuple[Weight, Tensor | None, torch.dtype]  # W [N, K], b [N], dtype of the result
DTYPES = (torch.float32, torch.bfloat16)
STORED = (*DTYPES, torch.int8, torch.uint8)


def linear(x: Tensor, weight: Weight, bias: Tensor | None = None, /, *, backend: str = "auto") -> Tensor:
    """x W^T + b. x: [..., K]. weight: [N, K] in x's dtype, or quantised. bias: [N] or None. Returns [..., N] like x.

    backend: "auto", "numba" (no gradient, CPU, float32 or bfloat16) or "torch". Numba sums in float32 and rounds once.
    A row's result does not depend on the other rows, and on how many there are only by two orders of the sum: that of
    up to 8 rows, 10 with weights of fewer bits, and that of more.
    Raises ValueError for shapes that do not fit and for a backend that cannot run.
    """
    return linears(x, [(weight, bias, x.dtype)], backend=backend)[0]


def linears(x: Tensor, maps: Sequence[Map], /, *, backend: str = "auto") -> list[Tensor]:
    """Several maps of the same x, as one job where that is faster. See `linear`."""
    check_shapes(x, maps)
    obstacle = input_obstacle(x) or weights_obstacle(maps, torch.is_grad_enabled())
    if obstacle is None and backend == "auto":
        obstacle = too_many_rows(x, maps)
    if choose("linear", backend, [("numba", obstacle), ("torch", None)]) == "torch":
        return [linear_torch(x, *each) for each in maps]
    return kernels()(maps).run(x if x.is_contiguous() else x.contiguous())


class Prepared:
    """Maps that meet many x, as a layer's do in decoding: what does not depend on x is worked out once.

    For use without gradients, as long as `current`.
    """

    def __init__(self, maps: Sequence[Map], tensors: Sequence[Tensor | None]) -> None:
        self.maps, self.tensors, self.columns = maps, tensors, maps[0][0].shape[1]
        self.places = [x if x is None else place(x) for x in tensors]
        self.obstacle = weights_obstacle(maps, gradient=False)
        self.plan: Plan | None = None

    def current(self, tensors: Sequence[Tensor | None]) -> bool:
        """Whether these are the tensors that the maps were made of, and still where and what they were."""
        if len(tensors) != len(self.tensors):
            return False
        for x, y, before in zip(tensors, self.tensors, self.places, strict=True):
            if x is not y or (x is not None and place(x) != before):
                return False
        return True

    def __call__(self, x: Tensor) -> list[Tensor]:
        """`linears(x, maps)`"""
        if x.shape[-1:] != (self.columns,) or self.plan is None:
            check_shapes(x, self.maps)
        obstacle = self.obstacle or input_obstacle(x) or too_many_rows(x, self.maps)
        if choose("linear", "auto", [("numba", obstacle), ("torch", None)]) == "torch":
            return [linear_torch(x, *each) for each in self.maps]
        if self.plan is None:
            self.plan = kernels()(self.maps)
        return self.plan.run(x if x.is_contiguous() else x.contiguous())


def place(x: Tensor) -> tuple[object, ...]:
    """What has to stay the same if a kernel is to find x."""
    return x.data_ptr(), x.dtype, x.shape, x.is_contiguous()


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
def kernels() -> "type[Plan]":
    """What runs our kernels, imported when it is first needed."""
    from exlstm.ops.linear.numba.op import Plan

    return Plan


def linear_torch(x: Tensor, weight: Weight, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    """torch's own, in `dtype` from the beginning; quantised weights are expanded first."""
    computed = torch.get_autocast_dtype("cpu") if x.is_cpu and torch.is_autocast_enabled("cpu") else dtype
    if computed is torch.bfloat16 and x.is_cpu and bfloat16_is_emulated():
        return linear_emulated(x, weight, bias)
    w_NK = dequantised(weight, dtype)
    return products.linear(x.to(dtype), w_NK, None if bias is None else bias.to(dtype))


def linear_emulated(x: Tensor, weight: Weight, bias: Tensor | None) -> Tensor:
    """What a CPU with instructions for bfloat16 would return, which has inputs and the result rounded to it and sums in
    float32, through a product in float32: without them it is much faster than torch's own emulation."""  # fmt: skip
    x = x.bfloat16().float()
    with torch.autocast("cpu", enabled=False):
        # in parts: widened as a whole a large matrix might not fit, and would leave the cache
        parts = [products.linear(x, dequantised(part).bfloat16().float()) for part in in_parts(weight)]
        y = parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)
        return (y if bias is None else y + bias.bfloat16().float()).bfloat16()


def input_obstacle(x: Tensor) -> str | None:
    """Why the Numba kernels cannot compute with this x, or None. Asked a hundred times per token."""
    if (type(x) is not Tensor and type(x) is not Parameter) or not x.is_cpu or is_traced_or_autocast():
        return "it takes plain tensors on a CPU, outside of tracing, transforms and autocast"
    if x.dtype not in DTYPES:
        return f"it computes with float32 and bfloat16, and the input is {x.dtype}"
    if x.numel() == 0:
        return "there is nothing to compute"
    return "it has no gradients, and they are needed" if x.requires_grad and torch.is_grad_enabled() else None


def weights_obstacle(maps: Sequence[Map], gradient: bool) -> str | None:
    """Why the Numba kernels cannot compute these maps, or None."""
    for weight, bias, dtype in maps:
        if dtype not in DTYPES:
            return f"it computes with float32 and bfloat16, and the result is {dtype}"
        stored = (weight,) if isinstance(weight, Tensor) else weight[:-1] if len(weight) == 4 else weight
        problem = storage_obstacle(stored if bias is None else (*stored, bias), gradient)
        if problem is not None:
            return problem
    return no_numba()


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
            return "it has no gradients, and they are needed"
    return None


# Up to so many rows the Numba kernels run; only these are played in decoding. In float32 on a processor of AMD with
# AVX-512, from 256 x 1024 on and for 16 to 128 rows, they are 1.8 to 2.7 times as fast as MKL on one thread and 1.6 to
# 3.9 times on two, and 0.9 to 1.4 and 1.0 to 1.9 times as fast as oneDNN. At 64 x 256 a call takes some microseconds
# longer up to 32 rows, which a replay does not. With instructions for bfloat16 torch takes 1.1 times as long at 8 rows
# and 0.85 times at 16, where ours are still replayed in decoding; without them both multiply in float32. Integers are
# expanded by torch first: at 4096 x 4096 ours takes a sixth of its time for 64 rows, two thirds for 512, as long for
# 2,048. A rule and not a measurement: both forms round differently, and a clock chooses anew in each process.
MOST_ROWS = {"float32": 128, "bfloat16": 16}


def too_many_rows(x: Tensor, maps: Sequence[Map]) -> str | None:
    """Why torch is faster for so many rows, or None."""
    rows = x.numel() // x.shape[-1]
    if rows <= MOST_ROWS["bfloat16"] or not isinstance(maps[0][0], Tensor):
        return None
    plain = all(isinstance(weight, Tensor) and weight.dtype is dtype is torch.float32 for weight, _, dtype in maps)
    kind = "float32" if plain or bfloat16_is_emulated() else "bfloat16"
    return None if rows <= MOST_ROWS[kind] else f"from {MOST_ROWS[kind] + 1} rows on torch is faster in {kind}"
