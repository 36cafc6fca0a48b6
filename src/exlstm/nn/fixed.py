"""Fixed numbers beside the parameters of a module: decays, random features, gains of one."""

import torch
from torch import Tensor

from exlstm.ops.common import wide_dtype


class FixedNumbers:
    """Numbers that are neither learned nor saved, and that no `module.to(torch.bfloat16)` rounds, as it would a buffer.

    exact: in float64 on the CPU, also where the module is built on another device.
    """

    def __init__(self, exact: Tensor) -> None:
        self.exact = exact
        # what decoding on a CPU reads is there before a step is captured
        self.made = {(exact.device, torch.float32): exact.float()}

    def like(self, x: Tensor) -> Tensor:
        """The numbers on the device of x, in float32, or float64 if x is; made once for each."""
        key = x.device, wide_dtype(x.dtype)
        if key not in self.made:
            self.made[key] = self.exact.to(*key)
        return self.made[key]
