"""MNIST-1D (Greydanus & Kobak 2024, arXiv:2011.14439): ten templates of a digit, moved, bent and in noise, 40 steps.

The package mnist1d makes the rows from its default seed; nothing is downloaded. Its published file, of another version
of numpy and scipy, has the same distribution.

N rows  T steps  D numbers of a step, which is one
"""

import random

import numpy as np
from numpy.typing import NDArray

Part = tuple[NDArray[np.float32], NDArray[np.int64]]


def mnist1d_series() -> tuple[Part, Part]:
    """4,000 rows [N, T, D] with their classes for training, and 1,000 for the test.

    ValueError, with how to get it, where the package is not installed.
    """
    try:
        from mnist1d.data import get_dataset_args, make_dataset
    except ImportError as error:
        raise ValueError(
            f"MNIST-1D is made by the package mnist1d, which cannot be imported ({error}); "
            "pip install mnist1d requests scipy."
        ) from error
    before = random.getstate(), np.random.get_state()  # the package seeds global numbers
    try:
        found = make_dataset(get_dataset_args())
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
    train, test = (
        (found[f"x{end}"].astype(np.float32)[..., None], found[f"y{end}"].astype(np.int64)) for end in ("", "_test")
    )
    return train, test
