"""Kernels as operators of torch, so that `torch.compile` and `torch.export` see one opaque call.

Operators have no gradients: an autograd Function outside calls one operator forward and another backward, which costs
less per call than gradients registered with an operator.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor

LIBRARY: Any = torch.library.Library("exlstm", "FRAGMENT")  # type: ignore[no-untyped-call]


def operator(schema: str, run: Callable[..., Any], fake: Callable[..., Any]) -> Callable[..., Any]:
    """An operator of this schema, "name(Tensor x, ...) -> ...". fake: returns empty results of the right shapes."""

    @wraps(run)
    def run_on_device(x: Tensor, *others: Any) -> Any:
        # Triton launches on the current GPU, which may not be the tensors' own
        with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]
            return run(x, *others)

    name = schema.partition("(")[0]
    LIBRARY.define(schema)
    LIBRARY.impl(name, run_on_device, "CUDA")
    LIBRARY.impl(name, run, "CPU")  # where Triton's interpreter runs them
    torch.library.register_fake(f"exlstm::{name}", fake, lib=LIBRARY)
    return getattr(torch.ops.exlstm, name).default  # type: ignore[no-any-return]


def block_size(width: int, most: int) -> int:
    """The smallest power of two from 16 on that holds `width` numbers, `most` at the most."""
    return max(16, min(most, 1 << (width - 1).bit_length()))
