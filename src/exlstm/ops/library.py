"""Kernels as operators of torch, so that `torch.compile` and `torch.export` see one call and need not look inside.

Gradients are not theirs: an autograd Function outside calls one operator forwards and another backwards, which costs
less per call than gradients registered with an operator.
"""

from collections.abc import Callable
from typing import Any

import torch

LIBRARY: Any = torch.library.Library("exlstm", "FRAGMENT")  # type: ignore[no-untyped-call]


def operator(schema: str, run: Callable[..., Any], fake: Callable[..., Any]) -> Callable[..., Any]:
    """An operator of this schema, "name(Tensor x, ...) -> ...". fake: makes its results without any numbers."""
    name = schema.partition("(")[0]
    LIBRARY.define(schema)
    # CPU is where Triton's interpreter runs them
    for device in ("CUDA", "CPU"):
        LIBRARY.impl(name, run, device)
    torch.library.register_fake(f"exlstm::{name}", fake, lib=LIBRARY)
    return getattr(torch.ops.exlstm, name).default  # type: ignore[no-any-return]
