"""The real statsforecast, where it is installed; without it these tests are skipped, and say so."""

import numpy as np
import pytest

from exlstm.forecast.contract import ForecastTask
from exlstm.forecast.statistical import NAMES, statistical


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of its dependencies
@pytest.mark.parametrize("name", NAMES)
def test_its_intervals_are_our_quantiles(name):
    """Against its own intervals, and against what is known of a season with noise of 0.1."""
    models = pytest.importorskip("statsforecast.models", reason="statsforecast is not installed")
    random, t = np.random.default_rng(0), np.arange(120)
    truth_T = 10 + np.sin(2 * np.pi * t / 4)
    values_T = truth_T + 0.1 * random.standard_normal(120)
    values_T[50] = np.nan
    task = ForecastTask(horizon=8, season=4)
    (quantiles_PQ,) = statistical(name)(values_T[:112], task)([values_T[:112]])
    assert quantiles_PQ.shape == (8, 9)
    assert (np.diff(quantiles_PQ, axis=1) > 0).all()
    assert abs(quantiles_PQ[:, 4] - truth_T[112:]).max() < 0.15
    np.testing.assert_allclose(quantiles_PQ[:, 8] - quantiles_PQ[:, 0], 2 * 1.2816 * 0.1, rtol=0.5)
    filled_T = values_T[:112].copy()
    filled_T[50] = filled_T[46]
    own = getattr(models, name)(season_length=4).forecast(y=filled_T, h=8, level=[40, 80])
    np.testing.assert_allclose(quantiles_PQ[:, 4], own["mean"], rtol=1e-5)
    np.testing.assert_allclose(quantiles_PQ[:, 0], own["lo-80"], rtol=1e-5)
    np.testing.assert_allclose(quantiles_PQ[:, 6], own["hi-40"], rtol=1e-5)
