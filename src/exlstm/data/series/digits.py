"""Handwritten digits as series of real numbers: pixel by pixel, row by row, or patch by patch.

The images and their parts are those of the task "digits" (`data.long_range.images`), so accuracies can be compared.

N images  T patches  D pixels of a patch
"""

import numpy as np
from numpy.typing import NDArray

from exlstm.data.long_range.images import digit_images
from exlstm.data.tasks.contract import SplitName

SIDE = 8


def digit_series(split: SplitName, patch: tuple[int, int] = (1, 1)) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Patches [N, T, D] of all images of a part, of 0 (paper) to 1 (ink), and the digit of each.

    patch: height and width in pixels: (1, 1) is 64 pixels, (1, 8) eight rows, (2, 2) sixteen patches; from left to
    right and from top to bottom. Raises ValueError for patches that do not tile 8 by 8 pixels.
    """
    high, wide = patch
    if high < 1 or wide < 1 or SIDE % high or SIDE % wide:
        raise ValueError(f"patches of {high} by {wide} do not tile {SIDE} by {SIDE} pixels; use 1, 2, 4 or 8.")
    tokens, classes = digit_images()[split]
    grid = ((tokens - 1) / 16).astype(np.float32).reshape(-1, SIDE // high, high, SIDE // wide, wide)
    x_NTD: NDArray[np.float32] = grid.transpose(0, 1, 3, 2, 4).reshape(len(tokens), -1, high * wide)
    return x_NTD, classes
