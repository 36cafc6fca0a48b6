"""Packed sequences as padded rows and back, with one copy each way, also of gradients.

torch's own functions copy step by step, and their backward takes as long as the memory itself.

B rows, sorted by length  T steps  N steps of all rows  D width
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence


class Places(NamedTuple):
    """Where the steps of a packed sequence are in padded rows: place_N in [B T], and the lengths of the rows."""

    place_N: Tensor
    lengths_B: Tensor


def places_of(packed: PackedSequence) -> Places:
    """The places, on the device of the data."""
    rows_T = packed.batch_sizes.to(packed.data.device)
    B, T = int(packed.batch_sizes[0]), len(rows_T)
    is_there_TB = torch.arange(B, device=rows_T.device) < rows_T[:, None]
    step_N, row_N = is_there_TB.nonzero(as_tuple=True)
    return Places(row_N * T + step_N, is_there_TB.sum(0))


def padded(data_ND: Tensor, places: Places, steps: int) -> Tensor:
    """[N, D] -> [B, T, D], with zeros behind the end of a row."""
    rows, shape = len(places.lengths_B), data_ND.shape[1:]
    return data_ND.new_zeros(rows * steps, *shape).index_copy(0, places.place_N, data_ND).view(rows, steps, *shape)


def gathered(x_BTD: Tensor, places: Places) -> Tensor:
    """The inverse of `padded`."""
    return x_BTD.flatten(0, 1).index_select(0, places.place_N)
