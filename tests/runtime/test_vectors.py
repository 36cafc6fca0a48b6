"""Vectors in LLVM's instructions: sums over the places of several of them."""

import numpy as np
import pytest
from numba import njit

from exlstm.runtime.cpu.memory import address_of
from exlstm.runtime.cpu.vectors import Vectors, inlined


@pytest.mark.parametrize(("width", "rows"), [(4, 1), (4, 2), (8, 2), (8, 4), (16, 4), (16, 16)])
def test_totals_of_several_vectors(width, rows):
    """Side by side, in their order."""

    @inlined(2)
    def sums(builder, x, out):
        v = Vectors(builder, width)
        narrow = Vectors(builder, rows)
        narrow.store(v.totals([v.load(v.offset(x, 4 * width * n)) for n in range(rows)]), out)

    @njit
    def run(x, out):
        sums(address_of(x), address_of(out))

    x, out = np.arange(rows * width, dtype=np.float32) ** 2, np.zeros(rows, dtype=np.float32)
    run(x, out)
    np.testing.assert_array_equal(out, x.reshape(rows, width).sum(1))
