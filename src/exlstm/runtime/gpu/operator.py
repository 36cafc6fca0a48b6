"""Kernels as operators of torch, so that `torch.compile` and `torch.export` see one call and need not look inside.

Gradients are not theirs: an autograd Function outside calls one operator forwards and another backwards, which costs
less per call than gradients registered with an operator.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor

LIBRARY: Any = torch.library.Library("exlstm", "FRAGMENT")  # type: ignore[no-untyped-call]


def operator(schema: str, run: Callable[..., Any], fake: Callable[..., Any]) -> Callable[..., Any]:
    """An operator of this schema, "name(Tensor x, ...) -> ...". fake: makes its results without any numbers."""

    @wraps(run)
    def run_there(x: Tensor, *others: Any) -> Any:
        # Triton launches on the current GPU, which need not be the one that has the tensors
        with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]
            return run(x, *others)

    name = schema.partition("(")[0]
    LIBRARY.define(schema)
    LIBRARY.impl(name, run_there, "CUDA")
    LIBRARY.impl(name, run, "CPU")  # where Triton's interpreter runs them
    torch.library.register_fake(f"exlstm::{name}", fake, lib=LIBRARY)
    return getattr(torch.ops.exlstm, name).default  # type: ignore[no-any-return]


def block_size(width: int, most: int) -> int:
    """Of a kernel for GPUs: a power of two from 16 to `most` that holds `width` numbers, if it can."""
    return max(16, min(most, 1 << (width - 1).bit_length()))
