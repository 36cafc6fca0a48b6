"""The split of the ETT data (Zhou et al. 2021): 12 months for training, 4 for validation, 4 for the test.

The hourly files ETTh1.csv and ETTh2.csv have 17,420 hours of seven channels; months count 30 days. Values are
standardized by mean and deviation of the training part. Every window counts, the last incomplete batch too.

N windows  T steps  C channels
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from exlstm.data.series.tables import read_table
from exlstm.data.tasks.contract import SplitName

MONTH = 30 * 24
BORDERS: dict[SplitName, tuple[int, int]] = {
    "train": (0, 12 * MONTH),
    "validation": (12 * MONTH, 16 * MONTH),
    "test": (16 * MONTH, 20 * MONTH),
}
Floats = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class ETT:
    """Standardized values [T, C] of the 20 months, the names of the channels, and their mean and deviation."""

    names: tuple[str, ...]
    values_TC: Floats
    mean_C: NDArray[np.float64]
    deviation_C: NDArray[np.float64]

    def windows(self, split: SplitName, *, context: int, horizon: int) -> tuple[Floats, Floats]:
        """All windows of a part as views: contexts [N, T, C] and what follows them [N, horizon, C].

        Contexts of validation and test reach back into the part before, as published results have it; what follows
        never leaves its part. Raises ValueError for windows that do not fit.
        """
        low, high = BORDERS[split]
        begin = max(0, low - context)
        if context < 1 or horizon < 1 or begin + context + horizon > high or (low and low < context):
            raise ValueError(
                f"context={context} and horizon={horizon} do not fit the {high - low} hours of {split}; use fewer."
            )
        both = sliding_window_view(self.values_TC[begin:high], context + horizon, axis=0).transpose(0, 2, 1)
        return both[:, :context], both[:, context:]


def read_ett(file: str | Path) -> ETT:
    """The first 20 months of an hourly ETT file. ValueError for a file that is shorter, has gaps, or no dates."""
    table = read_table(file)
    hours = BORDERS["test"][1]
    if len(table.values_TC) < hours:
        raise ValueError(f"{file} has {len(table.values_TC)} rows and the split needs {hours}; give ETTh1.csv.")
    if table.times is None:
        raise ValueError(f"{file} has no column of dates; give ETTh1.csv as it is published.")
    values = table.values_TC[:hours]
    if np.isnan(values).any():
        raise ValueError(f"row {int(np.isnan(values).any(1).argmax()) + 1} of {file} has no number; give ETTh1.csv.")
    steps = {(after - before).total_seconds() for before, after in zip(table.times, table.times[1:hours], strict=False)}
    if steps != {3600.0}:
        raise ValueError(f"{file} has rows that are {max(steps) / 3600:g} hours apart; give an hourly file.")
    first, last = BORDERS["train"]
    mean_C, deviation_C = values[first:last].mean(0), values[first:last].std(0)
    if not (deviation_C > 0).all():
        raise ValueError(f"channel {table.names[int(deviation_C.argmin())]} of {file} is constant; leave it out.")
    scaled = ((values - mean_C) / deviation_C).astype(np.float32)
    return ETT(names=table.names, values_TC=scaled, mean_C=mean_C, deviation_C=deviation_C)
