"""Tasks of arrays with a class of each row: digits by pixels, MNIST-1D, waves, and sets of the UCR and UEA archives.

B rows of a batch  T time  D numbers of a step  C classes
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from exlstm.data.series.archives import read_archive
from exlstm.data.series.digits import digit_series
from exlstm.data.series.dynamics import normals
from exlstm.data.series.mnist1d import mnist1d_series
from exlstm.data.tasks.contract import SplitName, numbers_for
from exlstm.study.arrays.contract import EVALUATED, Parts, outputs
from exlstm.study.arrays.nets import NetShape
from exlstm.study.arrays.rows import ArrayRows, held_out, of_equal_length, padded, standardized

ARCHIVE = "archive/"  # archive/ArrowHead is the data set ArrowHead
DATA = Path("data")  # where the unzipped wheel of aeon or sktime is, unless one is installed
_EVERY = 4  # one row in so many of a small set is for validation
_SPLITS: tuple[SplitName, ...] = ("train", "validation", "test")
_TIE = 1e-3  # of the cross entropy counts in a score


@dataclass(frozen=True, kw_only=True)
class RowClasses:
    """A task whose rows have one of some classes. load: its rows by part, made once."""

    name: str
    about: str
    load: Callable[[], tuple[Parts, int]]

    def parts(self) -> Parts:
        """See `ArrayTask`."""
        return self.load()[0]

    def shape(self, patch: int) -> NetShape:
        """See `ArrayTask`."""
        parts, classes = self.load()
        steps = max(rows.x_NTD.shape[1] for rows in parts.values())
        inputs = parts["train"].x_NTD.shape[2]
        return NetShape(inputs=inputs, outputs=classes, steps=steps, causal=False, patch=patch)

    def loss(self, y: Tensor, rows: ArrayRows) -> Tensor:
        """Cross entropy."""
        return functional.cross_entropy(y, rows.y)

    def score(self, net: nn.Module, rows: ArrayRows) -> float:
        """Accuracy; a thousandth of the cross entropy decides between equal ones."""
        logits_BC = torch.cat([outputs(net, batch) for batch in rows.batches(EVALUATED)])
        return share_right(logits_BC, rows) - _TIE * float(self.loss(logits_BC, rows))

    def test(self, net: nn.Module) -> dict[str, Any]:
        """Accuracy, and that of the most frequent class."""
        rows = self.parts()["test"]
        logits_BC = torch.cat([outputs(net, batch) for batch in rows.batches(EVALUATED)])
        accuracy, guess = share_right(logits_BC, rows), float(rows.y.bincount().max()) / len(rows.y)
        return {
            "task": self.name,
            "score": accuracy,
            "guess": guess,
            "at_chance": accuracy <= guess,
            "asked": len(rows.y),
        }


def share_right(logits_BC: Tensor, rows: ArrayRows) -> float:
    """Accuracy."""
    return float((logits_BC.argmax(1) == rows.y).double().mean())


@lru_cache(maxsize=1)
def _digits() -> tuple[Parts, int]:
    found = {}
    for split in _SPLITS:
        x_NTD, classes_N = digit_series(split)
        found[split] = of_equal_length(torch.from_numpy(x_NTD), torch.from_numpy(classes_N))
    return dict(zip(found, standardized(list(found.values())), strict=True)), 10


@lru_cache(maxsize=1)
def _mnist1d() -> tuple[Parts, int]:
    (x_NTD, classes_N), test = mnist1d_series()
    return _cut(padded("mnist1d", list(x_NTD), classes_N), padded("mnist1d", list(test[0]), test[1]), every=8), 10


@lru_cache(maxsize=1)
def _waves() -> tuple[Parts, int]:
    found = {}
    for split in _SPLITS:
        numbers = numbers_for("waves", seed=0, split=split, first=0, size=48)
        classes_N = np.arange(48) % 3
        lengths = 12 + numbers.below("length", 13, 1)[:, 0]
        phases, noise = numbers.uniform("phase", 2), normals(numbers, "noise", 48).reshape(48, 24, 2)
        time_T1 = np.arange(24)[:, None]
        series = [
            (np.sin((0.4 + 0.5 * kind) * time_T1 + 2 * np.pi * phase) + 0.3 * add)[:length].astype(np.float32)
            for kind, phase, add, length in zip(classes_N, phases, noise, lengths, strict=True)
        ]
        found[split] = padded("waves", series, classes_N)
    return found, 3


@lru_cache(maxsize=8)
def _archive(name: str) -> tuple[Parts, int]:
    train, test = read_archive(name, [DATA])
    if train.labels is None or test.labels is None:
        raise ValueError(f"{name} has no classes but a number for each series; give a data set of classification.")
    return _cut(
        padded(f"{name}, train", train.series, train.labels),
        padded(f"{name}, test", test.series, test.labels),
        every=_EVERY,
    ), len(train.classes)


def _cut(train: ArrayRows, test: ArrayRows, *, every: int) -> Parts:
    """Validation rows from those for training; all in units of the rest of these."""
    out_N = torch.from_numpy(held_out(train.y.numpy(), every))
    rest, validation = train.taken((~out_N).nonzero()[:, 0]), train.taken(out_N.nonzero()[:, 0])
    return dict(zip(_SPLITS, standardized([rest, validation, test]), strict=True))


CLASSES = MappingProxyType(
    {
        task.name: task
        for task in (
            RowClasses(name="digits", about="64 pixels of a handwritten digit, 1,266 + 269 + 262 rows", load=_digits),
            RowClasses(name="mnist1d", about="40 steps, 3,500 + 500 + 1,000 rows", load=_mnist1d),
            RowClasses(name="waves", about="sines of three frequencies in noise, 12 to 24 steps", load=_waves),
        )
    }
)


def archive_task(name: str) -> RowClasses:
    """A data set of the archives, with the archive's test; a quarter of its training rows is for validation.

    Its files are read when its rows are asked for, from DATA or an installed package (`exlstm.data.series.archives`).
    """
    return RowClasses(name=ARCHIVE + name, about="UCR and UEA archives", load=lambda: _archive(name))
