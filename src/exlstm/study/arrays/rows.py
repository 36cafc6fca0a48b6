"""ArrayRows of real numbers of any lengths, and what is asked of them: a class of each row, or numbers at every step.

N rows  T time  M steps of all rows  D numbers of a step  C targets of a step
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from exlstm.ops.common import length_mask

Floats = NDArray[np.float32]


class ArrayRows(NamedTuple):
    """ArrayRows, 0 beyond their lengths. y: classes [N] in int64, or targets [N, T, C] in float32."""

    x_NTD: Tensor
    lengths_N: Tensor
    y: Tensor

    def taken(self, index: Tensor) -> "ArrayRows":
        """Some of the rows, no longer than the longest of them."""
        lengths_N = self.lengths_N[index]
        longest = int(lengths_N.max())
        y = self.y[index]
        return ArrayRows(self.x_NTD[index, :longest], lengths_N, y if y.ndim == 1 else y[:, :longest])

    def batches(self, size: int) -> Iterator["ArrayRows"]:
        """All rows in their order, so many at a time."""
        for index in torch.split(torch.arange(len(self.x_NTD)), size):
            yield self.taken(index)


def check_finite(name: str, x: NDArray[np.floating], number: int) -> None:
    """ValueError, with the place, for a row [T, D] that is empty or holds what is no finite number."""
    if x.ndim != 2 or not x.size:
        raise ValueError(
            f"series {number} of {name} has shape {x.shape}; give [steps, channels], at least one of each."
        )
    if not np.isfinite(x).all():
        step, channel = (int(place[0]) for place in np.nonzero(~np.isfinite(x)))
        raise ValueError(
            f"series {number} of {name} has {x[step, channel]} at step {step}, channel {channel}; "
            "fill it in, or leave the series out."
        )


def padded(name: str, series: Sequence[Floats], y: NDArray[np.int64]) -> ArrayRows:
    """Series [T, D] of any lengths, and a class of each. ValueError for what is not finite, or does not fit."""
    if not series or len(series) != len(y):
        raise ValueError(f"{name} has {len(series)} series and {len(y)} classes; give one class for each series.")
    for number, one in enumerate(series):
        check_finite(name, one, number)
        if one.shape[1] != series[0].shape[1]:
            raise ValueError(
                f"series {number} of {name} has {one.shape[1]} channels and the first {series[0].shape[1]}; "
                "give every series the same."
            )
    lengths = [len(one) for one in series]
    x_NTD = np.zeros((len(series), max(lengths), series[0].shape[1]), dtype=np.float32)
    for row, one in zip(x_NTD, series, strict=True):
        row[: len(one)] = one
    return ArrayRows(torch.from_numpy(x_NTD), torch.tensor(lengths), torch.from_numpy(y))


def of_equal_length(x_NTD: Tensor, y: Tensor) -> ArrayRows:
    """ArrayRows that all have T steps."""
    return ArrayRows(x_NTD, torch.full((len(x_NTD),), x_NTD.shape[1]), y)


def joined(first: ArrayRows, second: ArrayRows) -> ArrayRows:
    """The rows of both."""
    longest = max(first.x_NTD.shape[1], second.x_NTD.shape[1])

    def longer(x: Tensor) -> Tensor:
        return torch.cat([x, x.new_zeros(len(x), longest - x.shape[1], *x.shape[2:])], dim=1)

    x_NTD = torch.cat([longer(first.x_NTD), longer(second.x_NTD)])
    both = (first.y, second.y) if first.y.ndim == 1 else (longer(first.y), longer(second.y))
    return ArrayRows(x_NTD, torch.cat([first.lengths_N, second.lengths_N]), torch.cat(both))


def standardized(parts: Sequence[ArrayRows]) -> list[ArrayRows]:
    """Parts in deviations from the mean of every channel, both of the first part; a constant channel becomes 0."""
    first_MD = parts[0].x_NTD[_inside(parts[0])].double()
    mean_D, deviation_D = first_MD.mean(0), first_MD.std(0, correction=0)

    def units(part: ArrayRows) -> ArrayRows:
        x_NTD = ((part.x_NTD - mean_D) / deviation_D.where(deviation_D > 0, 1)).float()
        return part._replace(x_NTD=x_NTD.where(_inside(part)[..., None], 0))

    return [units(part) for part in parts]


def _inside(rows: ArrayRows) -> Tensor:
    """True at the steps of rows, false behind them."""
    return length_mask(rows.lengths_N, rows.x_NTD.shape[1])


def held_out(classes_N: NDArray[np.int64], every: int) -> NDArray[np.bool_]:
    """A share of the rows of every class, spread over their order: the first, and every so many behind it.

    A class with a single row keeps it.
    """
    out_N = np.zeros(len(classes_N), dtype=np.bool_)
    for one in np.unique(classes_N):
        (places,) = np.nonzero(classes_N == one)
        if len(places) > 1:
            out_N[places[::every]] = True
    return out_N
