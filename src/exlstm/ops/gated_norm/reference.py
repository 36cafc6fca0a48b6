"""The gated norm in plain torch: every head is normalized, and the result is gated.

B batch  T time  H heads  V head width  E heads merged (H V)
"""

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import silu

from exlstm.ops.norm import head_norm

GateActivation = Literal["silu", "sigmoid"]


def gated_norm_torch(
    h_BTHV: Tensor, gain_E: Tensor, z_BTE: Tensor, skip_E: Tensor | None, c_BTE: Tensor | None,
    bias_E: Tensor | None, activation: GateActivation, eps: float,
) -> Tensor:  # fmt: skip
    """The definition."""
    heads = h_BTHV.shape[2:]
    bias_HV = None if bias_E is None else bias_E.view(heads)
    y_BTE = head_norm(h_BTHV, gain_E.view(heads), eps, bias_HV).flatten(2)
    if skip_E is not None and c_BTE is not None:
        y_BTE = torch.addcmul(y_BTE, skip_E.to(y_BTE.dtype), c_BTE)
    return y_BTE * (silu if activation == "silu" else torch.sigmoid)(z_BTE)
