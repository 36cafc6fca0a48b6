"""What several ops need: wide numbers, and steps that only some rows of a batch take.

B batch  T time
"""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """float32, or wider if `dtype` is: the precision of gates, states and sums."""
    return torch.promote_types(dtype, torch.float32)


def wide(x: Tensor) -> Tensor:
    """`x` in float32 or wider: sums of log gates do not survive bfloat16."""
    return x.to(wide_dtype(x.dtype))


def inside(lengths_B: Tensor, steps: int) -> Tensor:
    """valid_BT: True where step t belongs to row b, that is t < lengths_B[b]."""
    return torch.arange(steps, device=lengths_B.device) < lengths_B[:, None]


def exactly(x: Tensor) -> AbstractContextManager[object]:
    """A context in which autocast does not narrow what an op computes wide on purpose."""
    # to switch off what is off takes as long as an op on a small model's token
    off = not torch.is_autocast_enabled(x.device.type)
    return nullcontext() if off else torch.autocast(x.device.type, enabled=False)


def like(mask: Tensor, x: Tensor) -> Tensor:
    """`mask` with trailing axes of size one, so that it broadcasts against `x` from the left."""
    return mask.reshape(mask.shape + (1,) * (x.ndim - mask.ndim))


def blank(x: Tensor, valid_BT: Tensor) -> Tensor:
    """`x` [B, T, ...] with zeros where valid_BT is False: what was there, perhaps NaN, meets nothing in a product."""
    return x.masked_fill(like(~valid_BT, x), 0)


def contiguous(*tensors: Tensor) -> list[Tensor]:
    """As kernels want them: without their graph, their numbers in order."""
    return [x.detach().contiguous() for x in tensors]
