"""The contract of a task of arrays: rows in three parts, a loss, a score for choices, and a test.

B rows of a batch  T time  C classes, or targets of a step
"""

from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor, nn

from exlstm.data.tasks.contract import SplitName
from exlstm.study.arrays.nets import NetShape
from exlstm.study.arrays.rows import ArrayRows

Parts = Mapping[SplitName, ArrayRows]
EVALUATED = 256  # rows at a time where nothing is learned


class ArrayTask(Protocol):
    """A task of arrays."""

    @property
    def name(self) -> str:
        """Its name in tables."""

    def parts(self) -> Parts:
        """The rows; those of validation are cut from what is given for training."""

    def shape(self, patch: int) -> NetShape:
        """What nets are made for."""

    def loss(self, y: Tensor, rows: ArrayRows) -> Tensor:
        """The mean loss of a net's outputs."""

    def score(self, net: nn.Module, rows: ArrayRows) -> float:
        """A number for choices, larger for a better net in evaluation mode."""

    def test(self, net: nn.Module) -> dict[str, Any]:
        """The entry of a test, with its `score`, of a net in evaluation mode."""


def outputs(net: nn.Module, rows: ArrayRows) -> Tensor:
    """What a net says of rows: logits [B, C], or targets [B, T, C]."""
    T = rows.x_NTD.shape[1]
    lengths_N = (
        None if bool((rows.lengths_N == T).all()) else rows.lengths_N
    )  # padding costs time even if there is none
    y: Tensor = net(rows.x_NTD, lengths_N)
    return y
