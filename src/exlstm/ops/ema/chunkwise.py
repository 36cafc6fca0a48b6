"""Damped moving averages by chunks of L steps: the products of `ops.lti.chunkwise`, with real numbers.

B batch  T time  E channels  Z averages of a channel  K powers (L + 1)
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from exlstm.ops.ema.reference import EMAState, EMAWeights
from exlstm.ops.lti.chunkwise import LTIChunks, Powers
from exlstm.ops.lti.columns import columns_of


def ema_chunkwise(
    u_BTE: Tensor,
    weights: EMAWeights,
    state: Sequence[Tensor],
    /,
    *,
    reset_BT: Tensor | None,
    lengths_B: Tensor | None,
) -> tuple[Tensor, EMAState]:
    """The numbers of `ema_recurrent`, within the rows' lengths; beyond them u must be zero, without resets."""
    factor_EZ, weight_EZ, skip_E = weights
    powers_EKZ: Tensor = Powers.apply(factor_EZ, columns_of(1, u_BTE.shape[1], None).L)  # type: ignore[no-untyped-call]
    read_EKZ = weight_EZ[:, None] * powers_EKZ
    call: Any = LTIChunks.apply
    y_BTE, h_BEZ = call(u_BTE, state[0], read_EKZ[:, :-1].sum(-1), powers_EKZ, read_EKZ[:, 1:], reset_BT, lengths_B)
    return torch.addcmul(y_BTE, skip_E, u_BTE), EMAState(h_BEZ)
