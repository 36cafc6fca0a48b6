"""Rain and runoff of a simulated catchment: two linear reservoirs, a fast and a slow one.

    S' = share * rain - S / K        runoff = S / K, summed over both

Rain comes in storms of exponential sizes, more of them in one half of the year. A day is solved exactly, so that water
is neither lost nor made: rain = runoff + what the reservoirs gain.

B catchments  T days
"""

from typing import NamedTuple

import numpy as np

from exlstm.data.series.dynamics import Floats, normals
from exlstm.data.tasks.contract import SplitName, numbers_for

SHARES = (0.6, 0.4)  # of the rain, by reservoir
DAYS = (2.0, 40.0)  # the constants K
_YEAR = 365.25
_WET, _SIZE = 0.3, 8.0  # probability of rain on a day, mean over the year; millimeters of a day with rain


class Runoff(NamedTuple):
    """Daily sums in millimeters, and the storage at the end of each day. measured: the runoff with noise."""

    rain_BT: Floats
    runoff_BT: Floats
    measured_BT: Floats
    storage_BT: Floats


def rain_and_runoff(
    *, days: int, noise: float = 0.1, seed: int = 0, split: SplitName = "train", first: int = 0, size: int = 1
) -> Runoff:
    """Catchments `first` to `first + size` of a split, which begin dry.

    noise: deviation of the measured runoff as a share of the runoff, as gauges have; it is never below 0.
    """
    if days < 1:
        raise ValueError(f"days={days} is no record; use 1 or more.")
    if not 0 <= noise < 1:
        raise ValueError(f"noise={noise} is no share of the runoff; use at least 0 and less than 1.")
    numbers = numbers_for("rain and runoff", seed=seed, split=split, first=first, size=size)
    wet_T = _WET * (1 + 0.5 * np.cos(2 * np.pi * np.arange(days) / _YEAR))
    rain_BT = np.where(numbers.uniform("wet", days) < wet_T, -_SIZE * np.log1p(-numbers.uniform("size", days)), 0)
    stored, runoff, storage = np.zeros((len(DAYS), size)), [], []
    share, K = np.array(SHARES)[:, None], np.array(DAYS)[:, None]
    kept = np.exp(-1 / K)
    for rain_B in rain_BT.T:
        after = kept * stored + K * (1 - kept) * share * rain_B
        runoff.append((share * rain_B + stored - after).sum(0))
        stored = after
        storage.append(after.sum(0))
    runoff_BT = np.stack(runoff, axis=1)
    measured_BT = np.maximum(runoff_BT * (1 + noise * normals(numbers, "noise", days)), 0)
    return Runoff(rain_BT, runoff_BT, measured_BT, np.stack(storage, axis=1))
