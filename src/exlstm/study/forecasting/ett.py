"""Runs on the ETT data (Zhou et al. 2021), by the published split: 96 hours of all channels behind a context.

A channel is a row, so channels do not know each other. Errors are those of the median, in standardized units, over all
windows of the test and all channels. The files are not to be had from a package: they are read from ./data.

B rows  N windows  K windows of a part  T points of a context  P points of a horizon
C channels  E points of a context and a horizon
"""

import time
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from exlstm.data.series import ETT, read_ett
from exlstm.data.tasks.contract import SplitName
from exlstm.forecast.networks import CHECKS, learn
from exlstm.models.forecaster import Forecaster, forecaster_from_pattern, level_index
from exlstm.models.summary import parameters
from exlstm.study.forecasting.networks import NETWORKS, build_network
from exlstm.study.pool import ProgressReporter

FOLDER = Path("data")
FILES = ("ETTh1", "ETTh2")
_SEASON, _PATCH, _WIDTH, _HEADS = 24, 16, 64, 4
_ROWS, _ROWS_OF_TEST = 64, 1024


@dataclass(frozen=True, kw_only=True)
class ETTRun:
    """A network that learns all channels of a file. model: a name in NETWORKS. series: a name in FILES.

    Of ten states on the way the one with the least error on all windows of the validation part is tested.
    """

    model: str
    series: str
    lr: float
    steps: int = 3000
    context: int = 512
    horizon: int = 96
    seed: int = 0

    def __post_init__(self) -> None:
        if self.series not in FILES or self.model not in NETWORKS:
            known = f"{', '.join(FILES)} and {', '.join(NETWORKS)}"
            raise ValueError(f"there is no file {self.series!r} or no network {self.model!r}; use one of {known}.")

    def facets(self) -> dict[str, str]:
        """Names and values for tables and `--only`."""
        return {"model": self.model, "task": f"{self.series}/{self.horizon}", "without": "nothing"}

    def execute(self, report: ProgressReporter) -> dict[str, Any]:
        """Trains and tests. ValueError for weights that are not finite, and with how to get the file without it."""
        data, began = ett_of(self.series), time.perf_counter()
        torch.manual_seed(self.seed)
        config = forecaster_from_pattern("ms", width=_WIDTH, heads=_HEADS, patch=_PATCH, season=_SEASON)
        model = build_network(self.model, config)
        validation = self.train(model, data, report)
        squared, absolute = self.errors(model.eval(), data, "test")
        test = {"task": self.facets()["task"], "score": 1 - squared, "mse": squared, "mae": absolute}
        return {
            "parameters": parameters(model),
            "seconds": round(time.perf_counter() - began, 2),
            "metrics": {"validation": -validation, "tests": [{**test, "at_chance": squared >= 1}]},
        }

    def train(self, model: Forecaster, data: ETT, report: ProgressReporter) -> float:
        """Learns random windows of the training part; leaves the best state, and returns its error in validation."""
        context_NTC, after_NPC = data.windows("train", context=self.context, horizon=self.horizon)
        taken = 0

        def batch() -> Tensor:
            window_B = torch.randint(len(context_NTC), (_ROWS,)).numpy()
            channel_B = torch.randint(context_NTC.shape[2], (_ROWS,)).numpy()
            rows = context_NTC[window_B, :, channel_B], after_NPC[window_B, :, channel_B]
            return torch.from_numpy(np.concatenate(rows, axis=1))

        def check() -> float:
            nonlocal taken
            taken += 1
            error, _ = self.errors(model, data, "validation")
            report(taken / CHECKS, f"validation {error:.3f}")
            return error

        return learn(model, batch, check, context=self.context, steps=self.steps, lr=self.lr)

    @torch.no_grad()
    def errors(self, model: Forecaster, data: ETT, split: SplitName) -> tuple[float, float]:
        """The mean squared and the mean absolute error of the median, over all windows and channels of a part."""
        context_NTC, after_NPC = data.windows(split, context=self.context, horizon=self.horizon)
        middle = level_index(model.config.levels)
        squared, absolute = 0.0, 0.0
        size = max(1, _ROWS_OF_TEST // context_NTC.shape[2])
        for first in range(0, len(context_NTC), size):
            part = slice(first, first + size)
            context_KCT = np.ascontiguousarray(context_NTC[part].transpose(0, 2, 1))
            median = model(torch.from_numpy(context_KCT).flatten(0, 1), self.horizon)[..., middle].numpy()
            away_KCP = after_NPC[part].transpose(0, 2, 1) - median.reshape(*context_KCT.shape[:2], -1)
            squared += float(np.square(away_KCP).sum())
            absolute += float(np.abs(away_KCP).sum())
        return squared / after_NPC.size, absolute / after_NPC.size


@lru_cache(maxsize=2)  # all models of a study see the same
def ett_of(name: str) -> ETT:
    """The file of this name. ValueError, with where to put it, where it is not there."""
    file = FOLDER / f"{name}.csv"
    if not file.is_file():
        raise ValueError(f"there is no file {file}; put {name}.csv of ETDataset there, as it is published.")
    return read_ett(file)
