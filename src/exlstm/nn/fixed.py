"""Fixed numbers beside the parameters of a module: decays, random features, gains of one."""

from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor, nn

from exlstm.ops.common import wide_dtype


class FixedNumbers(nn.Module):
    """Numbers that are neither learned nor saved, and that no `module.to(torch.bfloat16)` rounds, as it would a buffer.

    exact: in float64 on the CPU, also where the module is built on another device. Copies in float32 are there before
    the first call, on the CPU, where the module is built and where it is moved: a step that is captured makes none.
    """

    def __init__(self, exact: Tensor) -> None:
        super().__init__()
        self.exact = exact
        self.made: dict[tuple[torch.device, torch.dtype], Tensor] = {}
        for device in (exact.device, torch.empty(0).device):
            self.on(device, torch.float32)

    def on(self, device: torch.device, dtype: torch.dtype) -> Tensor:
        """The numbers on a device and in a dtype; made once for each."""
        if (device, dtype) not in self.made:
            self.made[device, dtype] = self.exact.to(device, dtype)
        return self.made[device, dtype]

    def like(self, x: Tensor) -> Tensor:
        """The numbers on the device of x, in float32, or float64 if x is."""
        return self.on(x.device, wide_dtype(x.dtype))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Makes the numbers where `to`, `cuda` and the like move the module."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.on(fn(torch.empty(0)).device, torch.float32)
        return self
