"""Matrix products inside Numba kernels, for whole matrices and for triangles, and transposes."""

import numpy as np
import pytest
from numba import njit

from exlstm.runtime.cpu import matmul
from pairwise import every_pair

SIZES = [(3, 4, 5), (1, 1, 1), (1, 7, 1), (5, 1, 3), (1, 3, 4), (4, 3, 16), (64, 130, 33), (6, 9, 149)]
STEPS = (1, 3, 16, 17, 40, 64)  # of a triangle


@njit
def product(out, a, b, keep):
    matmul.product(out, a, b, keep)


@njit
def product_below(out, a, b):
    matmul.product_below(out, a, b)


@njit
def lower_product(out, a, b):
    matmul.lower_product(out, a, b)


@njit
def upper_product(out, a, b):
    matmul.upper_product(out, a, b)


@njit
def transpose(out, x):
    matmul.transpose(out, x)


def numbers(*shape):
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


def as_it_is(rows, columns):
    return numbers(rows, columns)


def transposed(rows, columns):
    return numbers(columns, rows).T


def every_third_row(rows, columns):
    return numbers(rows, 3, columns)[:, 1]


def transposed_slice(rows, columns):
    return numbers(columns, 2, rows)[:, 1].T


@pytest.mark.breadth(8)
@every_pair(
    a=[as_it_is, transposed, every_third_row, transposed_slice],
    b=[as_it_is, every_third_row],
    keep=[1, -2],
    sizes=SIZES,
)
def test_product_of_any_layout(a, b, keep, sizes):
    M, inner, N = sizes
    left, right, out = a(M, inner), b(inner, N), numbers(M, 2, N)
    want = left.astype(float) @ right.astype(float) + keep * out[:, 1].astype(float)
    beside = out[:, 0].copy()
    product(out[:, 1], left, right, keep)
    np.testing.assert_allclose(out[:, 1], want, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(out[:, 0], beside)


def test_what_is_not_kept_is_not_read():
    """So that a state of NaN is gone after a reset."""
    out = np.full((5, 3), np.nan, dtype=np.float32)
    product(out, numbers(5, 4), numbers(4, 3), 0.0)
    assert np.isfinite(out).all()


def test_a_number_depends_on_its_row_and_its_column_alone():
    """Not on the tile that it is in."""
    left, right, whole = numbers(7, 50), numbers(50, 91), np.empty((7, 91), dtype=np.float32)
    product(whole, left, right, 0.0)
    for m, n in ((0, 0), (3, 70), (6, 64), (5, 90), (4, 82)):
        part = np.empty((7 - m, 91 - n), dtype=np.float32)
        product(part, left[m:], right[:, n:], 0.0)
        np.testing.assert_array_equal(part, whole[m:, n:])


@pytest.mark.parametrize("L", STEPS)
def test_products_of_triangles(L):
    left, right = numbers(L, 20), numbers(20, L)
    out = np.full((L, L), np.nan, dtype=np.float32)
    product_below(out, left, right)
    np.testing.assert_allclose(np.tril(out), np.tril(left @ right), rtol=1e-4, atol=1e-4)

    values, lower = numbers(L, 21), np.tril(numbers(L, L))
    want, below, above = lower.astype(float), np.empty_like(values), np.empty_like(values)
    for row in range(L):  # behind its strip nothing is read
        lower[row, row // matmul.STRIP * matmul.STRIP + matmul.STRIP :] = np.nan
    lower_product(below, lower, values)
    upper_product(above, lower.T, values)
    np.testing.assert_allclose(below, want @ values, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(above, want.T @ values, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", [(1, 1), (16, 16), (5, 33), (48, 7), (50, 67)])
def test_transposes(shape):
    x, out = numbers(shape[0], 2, shape[1])[:, 1], np.empty((shape[1], 3, shape[0]), dtype=np.float32)
    transpose(out[:, 1], x)
    np.testing.assert_array_equal(out[:, 1], x.T)
