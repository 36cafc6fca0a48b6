"""Matrix products inside Numba kernels."""

import numpy as np
from numba import njit

from exlstm.runtime.cpu import blas
from pairwise import every_pair


@njit
def product(out, a, b, alpha, beta):
    blas.product(out, a, b, alpha, beta)


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


LAYOUTS = [as_it_is, transposed, every_third_row, transposed_slice]


@every_pair(
    a=LAYOUTS, b=LAYOUTS, sizes=[(3, 4, 5), (1, 1, 1), (1, 7, 1), (5, 1, 3), (1, 3, 4), (4, 3, 1), (64, 130, 33)]
)
def test_product_of_any_layout(a, b, sizes):
    assert blas.obstacle() is None
    M, inner, N = sizes
    left, right, out = a(M, inner), b(inner, N), numbers(M, 2, N)
    want = 0.5 * left.astype(float) @ right.astype(float) - 2.0 * out[:, 1].astype(float)
    beside = out[:, 0].copy()
    product(out[:, 1], left, right, 0.5, -2.0)
    np.testing.assert_allclose(out[:, 1], want, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(out[:, 0], beside)


def test_without_beta_the_old_values_are_not_read():
    """So that a state of NaN is gone after a reset."""
    assert blas.obstacle() is None
    out = np.full((2, 3), np.nan, dtype=np.float32)
    product(out, numbers(2, 4), numbers(4, 3), 1.0, 0.0)
    assert np.isfinite(out).all()


def test_a_torch_that_hides_its_blas(monkeypatch, tmp_path):
    monkeypatch.setattr(blas.torch, "__file__", str(tmp_path / "__init__.py"))
    assert "no BLAS that others can call" in blas.obstacle.__wrapped__()
