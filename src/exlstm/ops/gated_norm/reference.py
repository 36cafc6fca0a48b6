"""The gated norm in plain torch: every head is normalized, and the result is gated.

B batch  T time  H heads  V head width  E heads merged (H V)
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import silu

from exlstm.ops.norm import Norm, head_norm

GateActivation = Literal["silu", "sigmoid"]


class NormOptions(NamedTuple):
    """NormOptions of the norm and the gate. gate_first: the gate is inside the norm."""

    activation: GateActivation = "silu"
    norm: Norm = "layer"
    gate_first: bool = False
    eps: float = 1e-5


def gated_norm_torch(
    h_BTHV: Tensor, gain_E: Tensor, z_BTE: Tensor, skip_E: Tensor | None, c_BTE: Tensor | None,
    bias_E: Tensor | None, options: NormOptions,
) -> Tensor:  # fmt: skip
    """The definition."""
    heads = h_BTHV.shape[2:]
    gain_HV, bias_HV = gain_E.view(heads), None if bias_E is None else bias_E.view(heads)
    gate_BTE = (silu if options.activation == "silu" else torch.sigmoid)(z_BTE)
    if options.gate_first:
        h_BTHV = h_BTHV * gate_BTE.view(h_BTHV.shape)
    y_BTE = head_norm(h_BTHV, gain_HV, options.eps, bias_HV, norm=options.norm).flatten(2)
    if skip_E is not None and c_BTE is not None:
        y_BTE = torch.addcmul(y_BTE, skip_E.to(y_BTE.dtype), c_BTE)
    return y_BTE if options.gate_first else y_BTE * gate_BTE
