"""Nearest-neighbour search, the paper's motivation for exponential gates (Beck et al. 2024, section 2 and figure 2).

A row is a query vector, then vectors with values; the answer is the value of the vector nearest to the query so far.
Each time a nearer vector comes, the stored value has to be revised. `nearest_neighbours` is the paper's version, with
real numbers and a squared error. The task `nearest_neighbour` has directions and values as tokens.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from exlstm.data.packing import IGNORE
from exlstm.data.tasks.contract import Ints, Numbers, SplitName, numbers_for, prefix_task

_DIRECTIONS, _VALUES = 64, 16


class RealBatch(NamedTuple):
    """Rows of real numbers, float32. Row b has `lengths_B[b]` steps, the rest is 0. Targets count where `asked_BT`."""

    inputs_BTD: Tensor
    targets_BT: Tensor
    asked_BT: Tensor
    reset_BT: Tensor
    lengths_B: Tensor


def nearest_neighbours(
    *, seed: int, split: SplitName, first: int, size: int, min_length: int = 2, max_length: int = 64
) -> RealBatch:
    """Rows first .. first + size - 1 of a split. A step is (x, y, value); the first is the query, with value 0.

    Vectors are on the unit circle, values in [0, 1), lengths (in steps) uniform. The target of every later step is
    the value of the nearest vector so far. Sines may differ in their last digit between machines, targets do not.
    Raises ValueError for lengths below 2 or in the wrong order.
    """
    if not 2 <= min_length <= max_length:
        raise ValueError(
            f"min_length={min_length} and max_length={max_length} hold no rows; use at least 2 steps and "
            "min_length <= max_length."
        )
    numbers = numbers_for("nearest_neighbours", seed=seed, split=split, first=first, size=size)
    lengths_B = min_length + numbers.below("length", max_length - min_length + 1, 1)[:, 0]
    T = int(lengths_B.max())
    turns, values = numbers.uniform("turns", T), numbers.uniform("values", T)
    values[:, 0] = 0
    apart = np.abs(turns[:, 1:] - turns[:, :1])
    nearest = 1 + _first_minimum(np.minimum(apart, 1 - apart))
    targets = np.concatenate([np.zeros((size, 1)), np.take_along_axis(values, nearest, axis=1)], axis=1)
    inputs = np.stack([np.cos(2 * np.pi * turns), np.sin(2 * np.pi * turns), values], axis=-1)
    valid = np.arange(T) < lengths_B[:, None]
    asked_BT = torch.from_numpy(valid & (np.arange(T) > 0))
    inputs_BTD = torch.from_numpy(np.where(valid[:, :, None], inputs, 0)).float()
    targets_BT = torch.from_numpy(targets).float().where(asked_BT, 0)
    reset_BT = torch.zeros_like(asked_BT)
    reset_BT[:, 0] = True
    return RealBatch(inputs_BTD, targets_BT, asked_BT, reset_BT, torch.from_numpy(lengths_B))


def _first_minimum(distances: NDArray[Any]) -> Ints:
    """The index of the smallest number so far, the first of equals."""
    smallest = np.minimum.accumulate(distances, axis=1)
    new = np.diff(smallest, axis=1, prepend=np.inf) < 0
    return np.maximum.accumulate(np.where(new, np.arange(distances.shape[1]), 0), axis=1)


def _symbols(numbers: Numbers, T: int) -> Ints:
    directions = 1 + numbers.below("directions", _DIRECTIONS, T)
    values = 1 + _DIRECTIONS + numbers.below("values", _VALUES, T)
    place = np.arange(T)
    return np.where((place == 0) | (place % 2 == 1), directions, values)


def _labels(tokens_BT: Ints) -> Ints:
    """The value of the direction nearest to the first token so far, the first of equals.

    d20 d50 v3 d22 v9 d10 v1 | v9      64 directions around the circle = 1 to 64, 16 values = 65 to 80
    """
    count = (tokens_BT.shape[1] - 1) // 2
    directions, values = tokens_BT[:, 1 : 2 * count : 2], tokens_BT[:, 2 : 2 * count + 1 : 2]
    apart = np.abs(directions - tokens_BT[:, :1])
    nearest = _first_minimum(np.minimum(apart, _DIRECTIONS - apart))
    labels_BT = np.full_like(tokens_BT, IGNORE)
    labels_BT[:, 2 : 2 * count + 1 : 2] = np.take_along_axis(values, nearest, axis=1)
    return labels_BT


nearest_neighbour = prefix_task(
    name="nearest_neighbour",
    vocab_size=1 + _DIRECTIONS + _VALUES,
    chance=1 / _VALUES,
    shortest=4,
    stride=2,
    symbols=_symbols,
    labels=_labels,
)
