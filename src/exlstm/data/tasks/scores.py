"""Accuracy of predictions: per token, per row, scaled by chance, and by length.

Predictions are tokens [B, T] or logits [B, T, C], of which the largest counts. Targets are those of a batch:
IGNORE where nothing is asked.
"""

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple

from torch import Tensor

from exlstm.data.packing import IGNORE, Batch


class LengthScore(NamedTuple):
    """Counts for rows of low <= length < high: tokens asked, tokens right, rows, and rows with every token right."""

    low: int
    high: int
    asked: int
    right: int
    rows: int
    whole: int

    @property
    def accuracy(self) -> float | None:
        """The share of asked tokens that are right; None without rows of such a length."""
        return self.right / self.asked if self.asked else None

    @property
    def sequence_accuracy(self) -> float | None:
        """The share of rows with every token right; None without rows of such a length."""
        return self.whole / self.rows if self.rows else None


def token_accuracy(predictions: Tensor, targets_BT: Tensor) -> float:
    """The share of asked tokens that are right. Raises ValueError when nothing is asked."""
    right_BT, asked_BT = _right(predictions, targets_BT)
    return _share(int(right_BT.sum()), int(asked_BT.sum()))


def sequence_accuracy(predictions: Tensor, targets_BT: Tensor) -> float:
    """The share of rows with every asked token right, among rows that ask. Raises ValueError when nothing is asked."""
    right_BT, asked_BT = _right(predictions, targets_BT)
    asks_B = asked_BT.any(1)
    return _share(int((asks_B & (right_BT == asked_BT).all(1)).sum()), int(asks_B.sum()))


def scaled_accuracy(predictions: Tensor, targets_BT: Tensor, chance: float) -> float:
    """(accuracy - chance) / (1 - chance), the paper's measure: 0 is guessing, 1 is perfect."""
    return scaled(token_accuracy(predictions, targets_BT), chance)


def scaled(accuracy: float, chance: float) -> float:
    """(accuracy - chance) / (1 - chance). Raises ValueError for a chance outside [0, 1)."""
    if not 0 <= chance < 1:
        raise ValueError(f"chance={chance} leaves nothing to be better than; use a number from 0 to less than 1.")
    return (accuracy - chance) / (1 - chance)


def best_constant(targets_BT: Tensor) -> float:
    """The accuracy of the best constant answer, which is above chance where answers are not equally likely.

    Raises ValueError when nothing is asked.
    """
    asked_N = targets_BT[targets_BT != IGNORE]
    if not len(asked_N):
        raise ValueError("nothing is asked; give targets that are not all IGNORE.")
    return int(asked_N.bincount().max()) / len(asked_N)


def by_length(results: Iterable[tuple[Tensor, Batch]], edges: Sequence[int]) -> list[LengthScore]:
    """Scores of (predictions, batch) per bucket edges[i] <= length < edges[i + 1].

    The length of a row counts question and answer, one more than its steps. Rows outside of all buckets do not count.
    Raises ValueError for fewer than two edges, or edges that do not rise.
    """
    if len(edges) < 2 or any(low >= high for low, high in pairwise(edges)):
        raise ValueError(f"edges={list(edges)} make no buckets; use two or more rising lengths.")
    sums = [[0, 0, 0, 0] for _ in edges[1:]]
    for predictions, batch in results:
        right_BT, asked_BT = _right(predictions, batch.targets_BT)
        whole_B = (right_BT == asked_BT).all(1)
        length_B = batch.lengths_B + 1
        for low, high, total in zip(edges, edges[1:], sums, strict=False):
            inside_B = (length_B >= low) & (length_B < high)
            for i, found in enumerate((asked_BT[inside_B], right_BT[inside_B], inside_B, whole_B[inside_B])):
                total[i] += int(found.sum())
    return [LengthScore(low, high, *total) for low, high, total in zip(edges, edges[1:], sums, strict=False)]


def _right(predictions: Tensor, targets_BT: Tensor) -> tuple[Tensor, Tensor]:
    """Masks of tokens that are asked for and right, and of tokens that are asked for."""
    if predictions.shape[:2] != targets_BT.shape or predictions.ndim not in (2, 3):
        raise ValueError(
            f"predictions of shape {tuple(predictions.shape)} do not fit targets of shape {tuple(targets_BT.shape)}; "
            "give tokens [B, T] or logits [B, T, C]."
        )
    tokens = predictions.argmax(-1) if predictions.ndim == 3 else predictions
    asked_BT = targets_BT != IGNORE
    return (tokens == targets_BT) & asked_BT, asked_BT


def _share(right: int, asked: int) -> float:
    if not asked:
        raise ValueError("nothing is asked; give targets that are not all IGNORE.")
    return right / asked
