"""The causal convolution in plain torch: W shifted multiply-adds.

A grouped Conv1d would be one call, and its backward on a CPU is about ten times slower.

B batch  T time  S past (W - 1 steps)  A all steps (S + T)  D channels  W window
"""

from typing import NamedTuple

import torch
from torch import Tensor

from exlstm.ops.common import length_mask, upcast, zero_padding


class ConvState(NamedTuple):
    """The last W - 1 inputs, oldest first; zero where nothing has been seen."""

    past_BSD: Tensor


def causal_conv_torch(
    x_BTD: Tensor, w_DW: Tensor, b_D: Tensor | None, state: ConvState, /,
    *, reset_BT: Tensor | None, lengths_B: Tensor | None,
) -> tuple[Tensor, ConvState]:  # fmt: skip
    """The definition, before any activation."""
    T, S = x_BTD.shape[1], w_DW.shape[1] - 1
    valid_BT = None if lengths_B is None else length_mask(lengths_B, T)
    if valid_BT is not None:
        x_BTD = zero_padding(x_BTD, valid_BT)
    seen_BAD = torch.cat([state.past_BSD.to(x_BTD.dtype), x_BTD], dim=1)
    if T == 1 and reset_BT is None and lengths_B is None:
        # the whole window at once: two small operations, not two for every tap
        y_B1D = (seen_BAD * w_DW.mT).sum(1, keepdim=True)
        return y_B1D if b_D is None else y_B1D + b_D, ConvState(upcast(seen_BAD[:, 1:]))
    segment_BA = None
    if reset_BT is not None:
        segment_BA = torch.nn.functional.pad(reset_BT.long().cumsum(1), (S, 0))
    y_BTD = seen_BAD[:, S:] * w_DW[:, S]
    if b_D is not None:
        y_BTD = b_D + y_BTD
    for tap in range(S):
        shifted_BTD = seen_BAD[:, tap : tap + T]
        if segment_BA is not None:
            cut_BT = segment_BA[:, tap : tap + T] != segment_BA[:, S:]
            shifted_BTD = shifted_BTD.masked_fill(cut_BT[..., None], 0)
        y_BTD = torch.addcmul(y_BTD, shifted_BTD, w_DW[:, tap])
    if valid_BT is not None:
        y_BTD = zero_padding(y_BTD, valid_BT)
    return y_BTD, ConvState(upcast(last_steps(seen_BAD, segment_BA, S, lengths_B)))


def last_steps(seen_BAD: Tensor, segment_BA: Tensor | None, S: int, lengths_B: Tensor | None) -> Tensor:
    """The S inputs before each row's end, zero where a reset has cut them off."""
    B, seen, D = seen_BAD.shape
    if lengths_B is None and segment_BA is None:
        return seen_BAD[:, seen - S :]
    ends_B = torch.full((B,), seen - S, device=seen_BAD.device) if lengths_B is None else lengths_B
    index_BS = ends_B[:, None] + torch.arange(S, device=seen_BAD.device)
    past_BSD = seen_BAD.gather(1, index_BS[..., None].expand(B, S, D))
    if segment_BA is None:
        return past_BSD
    # the step before the end is entry S - 1 + lengths of the padded time axis; with length 0 it lies in the old past
    last_B1 = segment_BA.gather(1, (ends_B + S - 1).clamp(min=0)[:, None])
    return past_BSD.masked_fill((segment_BA.gather(1, index_BS) != last_B1)[..., None], 0)
