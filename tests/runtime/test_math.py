"""The fast float32 functions of the Numba scans against float64 NumPy, in units in the last place of the true value."""

import numpy as np
import pytest
from numba import njit

from exlstm.runtime.cpu import math as kernel_math
from exlstm.runtime.cpu.math import FASTMATH
from exlstm.runtime.cpu.simd import sqrt
from exlstm.runtime.cpu.vectors import elementwise

TINY = np.finfo(np.float32).tiny  # below it floats lose digits; no gate cares


def over(name):
    """The function of this name, applied to an array inside a Numba loop, compiled as in the scans."""
    function = getattr(kernel_math, name)

    @njit(fastmath=FASTMATH, error_model="numpy")
    def loop(x, y):
        for n in range(x.shape[0]):
            y[n] = function(x[n])

    def call(x):
        y = np.empty_like(x)
        loop(x, y)
        return y

    return call


TRUTH = {
    "exp": np.exp,
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "log_sigmoid": lambda x: np.where(x >= 0, -np.log1p(np.exp(-np.abs(x))), x - np.log1p(np.exp(-np.abs(x)))),
    "tanh": np.tanh,
}


@pytest.fixture(scope="module")
def compiled():
    return {name: over(name) for name in TRUTH}


def grid(first, last):
    """Many numbers of one range, evenly spaced and, near zero and with both signs, also in their logarithm."""
    even = np.linspace(first, last, 200_001)
    small = np.exp(np.linspace(np.log(1e-30), 0, 20_001))
    x = np.concatenate([even, small[small <= last], -small[-small >= first], [0.0]])
    return np.unique(x.astype(np.float32))


def ulps(got, x, truth):
    exact = truth(x.astype(np.float64))
    unit = np.maximum(np.spacing(np.maximum(np.abs(exact), TINY).astype(np.float32)), np.spacing(np.float32(TINY)))
    return np.abs(got - exact) / unit


@pytest.mark.parametrize(
    ("name", "first", "last", "worst"),
    [("exp", -87, 88, 1.5), ("sigmoid", -87, 200, 3), ("log_sigmoid", -200, 87, 3), ("tanh", -200, 200, 3)],
)
def test_digits(compiled, name, first, last, worst):
    for x in (grid(first, last), grid(-10, 10)):
        error = ulps(compiled[name](x), x, TRUTH[name])
        assert error.max() <= worst, f"{error.max():.2f} units in the last place at {x[error.argmax()]}"
    assert error.mean() <= 0.6


@pytest.mark.parametrize(("name", "truth"), [("sine", np.sin), ("cosine", np.cos)])
def test_circular_functions(name, truth):
    """Near zeros of the functions units of the last place say little, so errors are absolute."""
    call = over(name)
    for x in (grid(-4, 4), grid(-100, 100), grid(-3000, 3000)):
        error = np.abs(call(x) - truth(x.astype(np.float64)))
        assert error.max() <= 2e-7, f"{error.max():.2e} at {x[error.argmax()]}"
    assert np.isnan(call(np.array([np.nan], np.float32)))[0]


@pytest.mark.parametrize(
    ("name", "x", "want"),
    [
        ("exp", [-87.5, -1e30, -np.inf], [0, 0, 0]),
        ("exp", [0.0, -0.0], [1, 1]),
        ("sigmoid", [-1e30, -np.inf, 0, 1e30, np.inf], [0, 0, 0.5, 1, 1]),
        ("tanh", [-1e30, -np.inf, 0, 1e30, np.inf], [-1, -1, 0, 1, 1]),
        ("log_sigmoid", [-1e30, -np.inf, 1e30, np.inf], [-1e30, -np.inf, 0, 0]),
    ],
)
def test_far_out(compiled, name, x, want):
    np.testing.assert_array_equal(compiled[name](np.array(x, np.float32)), np.array(want, np.float32))


def test_exp_never_overflows(compiled):
    y = compiled["exp"](np.array([88.0, 89.0, 1e30, np.inf], np.float32))
    assert np.isfinite(y).all()
    np.testing.assert_allclose(y, np.exp(88.0), rtol=1e-6)


@pytest.mark.parametrize("name", TRUTH)
def test_what_is_not_a_number_stays_so(compiled, name):
    assert np.isnan(compiled[name](np.array([np.nan], np.float32)))[0]


@pytest.mark.parametrize("name", ["exp", "sigmoid", "log_sigmoid", "tanh"])
def test_monotonic_but_for_rounding(compiled, name):
    """A jump where one formula hands over to another would show here."""
    x = np.linspace(-20, 20, 400_001).astype(np.float32)
    y = compiled[name](x).astype(np.float64)
    assert (np.diff(y) >= -3 * np.spacing(np.abs(y[1:]).astype(np.float32))).all()


@pytest.mark.parametrize("name", TRUTH)
def test_float32_all_the_way(name):
    """A constant without float32 around it would make the scan compute in float64, at half the speed."""
    function = getattr(kernel_math, name)

    @njit
    def apply(x):
        return function(x)

    apply(np.float32(0.3))
    assert [str(s.return_type) for s in apply.nopython_signatures] == ["float32"]
    (code,) = apply.inspect_llvm().values()
    assert "fmul double" not in code


@elementwise
def scaled_root(v, x, y, out):
    v.store(sqrt(v.load(x)) * v.load(y), out)


@njit
def scaled_roots(count, x, y, out):
    scaled_root(count, x, y, out)


@pytest.mark.parametrize("count", [0, 1, 15, 16, 17, 50])
def test_neighbors(count):
    """As many as there are, by sixteen and one by one, with roots rounded as NumPy's; nothing beyond."""
    x, y, out = (np.random.default_rng(seed).random(64, dtype=np.float32) for seed in range(3))
    want = out.copy()
    want[:count] = (np.sqrt(x) * y)[:count]
    scaled_roots(count, *(each.ctypes.data for each in (x, y, out)))
    assert np.array_equal(out, want)
