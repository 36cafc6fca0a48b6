"""Rows of nearest neighbours among real numbers, against a search of all steps before."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from task_solvers import DRAWS

from exlstm.data.tasks import nearest_neighbours


@settings(max_examples=20)
@given(low=st.integers(2, 20), more=st.integers(0, 40), **DRAWS)
def test_nearest_neighbours_of_real_numbers(low: int, more: int, seed: int, split: str, first: int) -> None:
    batch = nearest_neighbours(seed=seed, split=split, first=first, size=5, min_length=low, max_length=low + more)
    assert batch.inputs_BTD.shape == (5, int(batch.lengths_B.max()), 3)
    assert batch.inputs_BTD.dtype == batch.targets_BT.dtype == torch.float32
    for b, length in enumerate(batch.lengths_B.tolist()):
        assert low <= length <= low + more
        steps = batch.inputs_BTD[b, :length].double()
        assert torch.allclose(steps[:, :2].norm(dim=1), torch.ones(length, dtype=torch.float64), atol=1e-6)
        assert float(steps[0, 2]) == 0
        assert batch.asked_BT[b].tolist() == [0 < t < length for t in range(batch.asked_BT.shape[1])]
        for t in range(1, length):
            closest = max(range(1, t + 1), key=lambda s: float(steps[s, :2] @ steps[0, :2]))
            assert batch.targets_BT[b, t] == batch.inputs_BTD[b, closest, 2]
        assert not batch.inputs_BTD[b, length:].any()
        assert not batch.targets_BT[b, length:].any()
    assert batch.reset_BT[:, 0].all()
    assert not batch.reset_BT[:, 1:].any()


def test_real_values_are_spread_and_rows_independent_of_the_batch() -> None:
    draw = {"seed": 0, "split": "train", "min_length": 64, "max_length": 64}
    batch = nearest_neighbours(first=0, size=200, **draw)
    values = batch.inputs_BTD[:, 1:, 2]
    assert 0.49 < float(values.mean()) < 0.51
    assert 0.32 < float((values - 0.5).abs().gt(1 / 3).float().mean()) < 0.35
    assert (batch.inputs_BTD[..., :2].mean((0, 1)).abs() < 0.02).all()
    assert torch.equal(nearest_neighbours(first=150, size=1, **draw).inputs_BTD[0], batch.inputs_BTD[150])


@pytest.mark.parametrize(("low", "high"), [(1, 5), (6, 5)])
def test_lengths_without_rows_are_refused(low, high):
    with pytest.raises(ValueError, match=f"min_length={low} and max_length={high} hold no rows; use at least 2 steps"):
        nearest_neighbours(seed=0, split="train", first=0, size=1, min_length=low, max_length=high)
