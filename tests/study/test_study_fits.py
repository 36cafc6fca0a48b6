"""Power laws: those that made the points are found, within a band that the seeds give."""

import numpy as np
import pytest

from exlstm.study.fits import draw_fit, power_law

SIZES = (10.0, 30.0, 100.0, 300.0)


def test_an_exact_law_is_found_without_a_band():
    law = power_law([(x, [3 * x**-0.25] * 3) for x in SIZES])
    assert law.exponent == pytest.approx(-0.25)
    assert law.factor == pytest.approx(3)
    assert (law.low, law.high) == (pytest.approx(-0.25), pytest.approx(-0.25))
    middle, low, high = law.at(np.array([20.0]))
    assert middle == pytest.approx(3 * 20**-0.25)
    assert low == pytest.approx(high)


def test_the_band_is_as_wide_as_seeds_differ():
    chance = np.random.default_rng(1)

    def points(noise):
        return [(x, 3 * x**-0.25 * np.exp(noise * chance.standard_normal(5))) for x in SIZES]

    narrow, wide = power_law(points(0.001)), power_law(points(0.1))
    assert narrow.exponent == pytest.approx(-0.25, abs=0.002)
    assert wide.high - wide.low > 20 * (narrow.high - narrow.low)
    middle, low, high = wide.at(np.array([20.0, 200.0]))
    assert (low < middle).all()
    assert (middle < high).all()


def test_the_same_points_give_the_same_band():
    points = [(x, [x**-0.1, x**-0.12]) for x in SIZES]
    one, two = power_law(points), power_law(points)
    assert (one.low, one.high) == (two.low, two.high)


def test_two_sizes_are_no_law():
    assert power_law([]) is None
    assert power_law([(1.0, [1.0]), (2.0, [2.0])]) is None
    assert power_law([(1.0, [1.0]), (2.0, []), (2.0, [2.0]), (2.0, [3.0])]) is None


def test_the_drawing_ends_where_the_points_end():
    from matplotlib.figure import Figure

    axes = Figure().subplots()
    draw_fit(axes, power_law([(x, [1 / x]) for x in SIZES]), SIZES[0], SIZES[-1], color="black")
    x = axes.lines[0].get_xdata()
    assert (x.min(), x.max()) == (pytest.approx(SIZES[0]), pytest.approx(SIZES[-1]))
