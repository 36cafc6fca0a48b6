"""Errors of forecasts against numbers by hand."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from exlstm.data.series import metrics

NAN = math.nan


def test_mase_by_hand():
    """The past moves by 1, 2 and 4 (season 1), or by 3 and 6 (season 2); the forecast is off by 1 and 3."""
    past = [0, 1, 3, 7]
    assert metrics.mase([10, 20], [11, 17], past) == pytest.approx(2 / (7 / 3))
    assert metrics.mase([10, 20], [11, 17], past, season=2) == pytest.approx(2 / 4.5)
    assert metrics.mase([10, NAN, 20], [11, 5, 17], [0, NAN, 3, 7]) == pytest.approx(2 / 4)
    assert math.isnan(metrics.mase([1], [2], [5, 5, 5]))
    assert math.isnan(metrics.mase([1], [2], [5], season=1))


def test_smape_by_hand():
    """200 x 1/3, 200 x 0, and two zeros."""
    assert metrics.smape([1, 4, 0], [2, 4, 0]) == pytest.approx(200 / 9)
    assert metrics.smape([1], [-1]) == 200


def test_quantile_losses_by_hand():
    """Truth 10; the tenth percentile 8 is 2 below, the ninetieth 9 is 1 below: 0.2 and 0.9."""
    np.testing.assert_allclose(metrics.quantile_losses([10], [[8, 9]], [0.1, 0.9]), [0.2, 0.9])
    np.testing.assert_allclose(metrics.quantile_losses([10], [[12, 13]], [0.1, 0.9]), [1.8, 0.3])
    assert metrics.crps([10], [[8, 9]], [0.1, 0.9]) == pytest.approx(1.1)
    np.testing.assert_allclose(metrics.quantile_losses([10, NAN], [[8], [1]], [0.5]), [1])


@given(st.lists(st.floats(-100, 100), min_size=1, max_size=6), st.floats(-100, 100))
def test_the_median_alone_is_the_absolute_error(truth, forecast):
    f = np.full(len(truth), forecast)
    want = metrics.mean_absolute_error(truth, f)
    assert metrics.crps(truth, f[:, None], [0.5]) == pytest.approx(want, abs=1e-9)


def test_crps_of_a_normal_distribution():
    """Published in closed form (Gneiting & Raftery 2007): sigma (2 phi(0) - 1 / sqrt(pi)) at the mean."""
    draws = np.sort(np.random.default_rng(0).standard_normal(400_000))
    levels = (np.arange(200) + 0.5) / 200
    quantiles = draws[(levels * len(draws)).astype(int)]
    want = 2 / math.sqrt(2 * math.pi) - 1 / math.sqrt(math.pi)
    assert metrics.crps([0.0], quantiles[None], levels) == pytest.approx(want, abs=0.003)


def test_nse_by_hand():
    """Around the mean 2 the squares are 2; the forecast's are 1."""
    assert metrics.nse([1, 2, 3], [1, 2, 4]) == pytest.approx(0.5)
    assert metrics.nse([1, 2, 3], [2, 2, 2]) == 0
    assert metrics.nse([1, NAN, 3], [1, 9, 3]) == 1
    assert math.isnan(metrics.nse([2, 2], [1, 2]))


def test_accuracy_by_hand():
    assert metrics.accuracy([1, 2, 3, 4], [1, 2, 0, 4]) == 0.75


def test_rollout_error_and_valid_time_by_hand():
    """Variables of deviation 1 and 10 that are off by one deviation and none: sqrt(1/2)."""
    truth = np.array([[[-1.0, -10.0], [1.0, 10.0], [-1.0, -10.0], [1.0, 10.0]]])
    forecast = truth + np.array([[0, 0], [0.1, 0], [1, 0], [0, 10]])
    error = metrics.rollout_error(truth, forecast)
    np.testing.assert_allclose(error, [[0, 0.1 * math.sqrt(0.5), math.sqrt(0.5), math.sqrt(0.5)]])
    # the first step above 0.4 is number 2, and a Lyapunov time has 4 steps
    assert metrics.valid_time(error, lyapunov_steps=4).tolist() == [0.5]
    assert metrics.valid_time(error, lyapunov_steps=4, limit=2).tolist() == [1.0]
    assert metrics.valid_time(np.array([[0.1, NAN, 0.1], [0.5, 0, 0]]), lyapunov_steps=1).tolist() == [1, 0]


@pytest.mark.parametrize(("call", "fragment"), [
    (lambda: metrics.mase([1], [1, 2], [1, 2]), "shape"),
    (lambda: metrics.mase([1], [1], [1, 2], season=0), "season=0"),
    (lambda: metrics.quantile_losses([1], [[1, 2]], [0.5]), "quantiles"),
    (lambda: metrics.quantile_losses([1], [[1]], [1.0]), "between 0 and 1"),
    (lambda: metrics.accuracy([], []), "shapes"),
    (lambda: metrics.rollout_error(np.ones((1, 2, 1)), np.ones((1, 2, 1))), "variable 0"),
    (lambda: metrics.rollout_error(np.ones((2, 1)), np.ones((2, 1))), "steps"),
    (lambda: metrics.valid_time(np.ones((1, 2)), lyapunov_steps=0), "lyapunov_steps=0"),
])  # fmt: skip
def test_wrong_input_is_refused(call, fragment):
    with pytest.raises(ValueError, match=fragment):
        call()
