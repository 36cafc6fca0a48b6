"""Scores of predictions against counting by hand and by a plain loop."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from exlstm.data.packing import IGNORE, Batch
from exlstm.data.tasks import TASKS, task_batch
from exlstm.data.tasks.scores import (
    best_constant,
    by_length,
    scaled,
    scaled_accuracy,
    sequence_accuracy,
    token_accuracy,
)

TARGETS = torch.tensor([[IGNORE, 3, 1], [2, IGNORE, IGNORE], [IGNORE, IGNORE, IGNORE], [1, 1, 1]])
PREDICTED = torch.tensor([[9, 3, 2], [2, 0, 0], [5, 5, 5], [1, 1, 1]])


def logits_of(tokens: Tensor) -> Tensor:
    return torch.nn.functional.one_hot(tokens, 10).float() - 2


@pytest.mark.parametrize("predictions", [PREDICTED, logits_of(PREDICTED)], ids=["tokens", "logits"])
def test_by_hand(predictions: Tensor) -> None:
    """Six tokens are asked for and five right; three rows ask and two are right."""
    assert token_accuracy(predictions, TARGETS) == pytest.approx(5 / 6)
    assert sequence_accuracy(predictions, TARGETS) == pytest.approx(2 / 3)
    assert scaled_accuracy(predictions, TARGETS, 1 / 2) == pytest.approx(2 / 3)
    assert best_constant(TARGETS) == pytest.approx(4 / 6)


def test_scaling() -> None:
    assert scaled(1.0, 0.2) == 1
    assert scaled(0.2, 0.2) == 0
    assert scaled(0.0, 0.2) == pytest.approx(-0.25)
    for chance in (1.0, -0.1):
        with pytest.raises(ValueError, match=f"chance={chance} leaves nothing to be better than"):
            scaled(0.5, chance)


@settings(max_examples=25)
@given(seed=st.integers(0, 1000), name=st.sampled_from(["parity", "reverse_string", "set"]))
def test_by_length_is_a_loop_over_rows(seed: int, name: str) -> None:
    edges = [5, 8, 9, 14]
    generator = torch.Generator().manual_seed(seed)
    results: list[tuple[Tensor, Batch]] = []
    for first in (0, 20):
        batch = task_batch(TASKS[name], seed=seed, split="test", first=first, size=20, min_length=3, max_length=16)
        wrong = torch.rand(batch.targets_BT.shape, generator=generator) < 0.2
        results.append((torch.where(wrong, 0, batch.targets_BT), batch))
    scores = by_length(results, edges)
    assert [(score.low, score.high) for score in scores] == [(5, 8), (8, 9), (9, 14)]
    for score in scores:
        asked = right = rows = whole = 0
        for predicted, batch in results:
            for guess, target, steps in zip(
                predicted.tolist(), batch.targets_BT.tolist(), batch.lengths_B, strict=True
            ):
                if score.low <= int(steps) + 1 < score.high:
                    hits = [g == t for g, t in zip(guess, target, strict=True) if t != IGNORE]
                    asked, right, rows, whole = asked + len(hits), right + sum(hits), rows + 1, whole + all(hits)
        assert score[2:] == (asked, right, rows, whole)
        assert score.accuracy == (right / asked if asked else None)
        assert score.sequence_accuracy == (whole / rows if rows else None)


def test_a_length_that_nobody_has_is_none_and_not_zero() -> None:
    batch = task_batch(TASKS["parity"], seed=0, split="test", first=0, size=4, min_length=5, max_length=5)
    before, here, after = by_length([(batch.targets_BT, batch)], [2, 5, 6, 40])
    assert (before.accuracy, before.sequence_accuracy, after.accuracy) == (None, None, None)
    assert (here.rows, here.accuracy, here.sequence_accuracy) == (4, 1.0, 1.0)


def test_nothing_asked_is_refused() -> None:
    nothing = torch.full((2, 3), IGNORE)
    for score in (token_accuracy, sequence_accuracy):
        with pytest.raises(ValueError, match="nothing is asked"):
            score(nothing, nothing)
    with pytest.raises(ValueError, match="nothing is asked"):
        best_constant(nothing)


def test_shapes_and_edges_are_checked() -> None:
    for wrong in (torch.zeros(4, 2), torch.zeros(4), torch.zeros(4, 3, 2, 2)):
        with pytest.raises(ValueError, match=r"do not fit targets of shape \(4, 3\); give tokens"):
            token_accuracy(wrong, TARGETS)
    for edges in ([4], [4, 4], [5, 4]):
        with pytest.raises(ValueError, match="make no buckets"):
            by_length([], edges)
