"""Forecasters that learn from windows of the history: xLSTM blocks, and torch's LSTM with as many parameters.

B rows  R windows of training  C windows of checks  T points  E points of a window  N patches, or pasts  D width
Q quantiles
"""

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from exlstm.forecast.contract import Fitted, Floats, ForecastTask
from exlstm.models.forecaster import Forecaster, ForecasterConfig, forecaster_from_pattern
from exlstm.models.summary import parameters

PATTERN, WIDTH, HEADS = "ms", 32, 2
LR = 5e-3
_BATCH, _WARMUP, _CLIP, _DECAY = 32, 0.1, 1.0, 0.01
CHECKS = 10  # in training, of windows that are kept from it


class TorchRNN(nn.Module):
    """torch's LSTM or GRU of two layers in the place of the blocks, with about as many parameters as are asked for."""

    def __init__(self, kind: type[nn.LSTM] | type[nn.GRU], width: int, target: int) -> None:
        super().__init__()
        sizes, gates = range(4, 16 * width), 4 if kind is nn.LSTM else 3
        hidden = min(sizes, key=lambda size: abs(_rnn_parameters(gates, width, size) - target))
        self.rnn = kind(width, hidden, num_layers=2, batch_first=True)
        self.out = nn.Linear(hidden, width)

    def forward(self, x_BND: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """[B, N, D] -> [B, N, D], and the state behind the last patch."""
        y, state = self.rnn(x_BND, state)
        y_BND: Tensor = x_BND + self.out(y)
        return y_BND, state


def _rnn_parameters(gates: int, width: int, hidden: int) -> int:
    return gates * hidden * (width + hidden + 2) + gates * hidden * (2 * hidden + 2) + (hidden + 1) * width


def xlstm(history_T: Floats, task: ForecastTask) -> Fitted:
    """An mLSTM and an sLSTM block over patches."""
    return forecasts_of(trained(history_T, task), task)


def torch_lstm(history_T: Floats, task: ForecastTask) -> Fitted:
    """The same forecaster with torch's LSTM of equal size."""

    def build(config: ForecasterConfig) -> Forecaster:
        target = parameters(Forecaster(config).stack)
        return Forecaster(config, TorchRNN(nn.LSTM, config.width, target))

    return forecasts_of(trained(history_T, task, build), task)


def network_config(task: ForecastTask) -> ForecasterConfig:
    """The architecture for a task: about four patches to a season, or to the horizon, of 4 to 16 points."""
    patch = min(16, max(4, max(task.season, task.horizon) // 4))
    return forecaster_from_pattern(PATTERN, width=WIDTH, heads=HEADS, patch=patch, season=task.season)


def trained(
    history_T: Floats, task: ForecastTask, build: Callable[[ForecasterConfig], Forecaster] = Forecaster
) -> Forecaster:
    """A forecaster that has learned from the windows of a history, in evaluation mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(task.seed)
        model = build(network_config(task))
        train(model, history_T, task)
    return model.eval()


def forecasts_of(model: Forecaster, task: ForecastTask) -> Fitted:
    """The method of a forecaster that has learned."""

    def predict(pasts: Sequence[Floats]) -> Floats:
        contexts = np.stack([_last(past_T, task.context) for past_T in pasts])
        if np.isnan(contexts).all(1).any():
            raise ValueError(f"{task.context} points before a forecast are all missing; use a longer context.")
        with torch.no_grad():
            quantiles_NPQ: Floats = model(torch.from_numpy(contexts), task.horizon).numpy()
        return quantiles_NPQ

    return predict


def _last(past_T: Floats, count: int) -> Floats:
    """The last points of a past, with missing ones before its beginning."""
    return np.pad(past_T[-count:], (max(0, count - len(past_T)), 0), constant_values=np.nan)


def train(model: Forecaster, history_T: Floats, task: ForecastTask, *, lr: float = LR) -> float:
    """Learns from windows of a history. Of ten states on the way the best on the last tenth of the windows is kept.

    Returns its loss there; infinity where a tenth of the windows is none. ValueError for weights that are not finite.
    """
    learned_RE, check_CE = _windows(history_T, task)

    def batch() -> Tensor:
        return learned_RE[torch.randint(len(learned_RE), (min(_BATCH, len(learned_RE)),))]

    def check() -> float:
        with torch.no_grad():
            return float(model.loss(check_CE, task.context))

    checked = check if len(check_CE) else None
    return learn(model, batch, checked, context=task.context, steps=task.steps, lr=lr)


def learn(
    model: Forecaster,
    batch: Callable[[], Tensor],
    check: Callable[[], float] | None,
    *,
    context: int,
    steps: int,
    lr: float,
) -> float:
    """AdamW with warm-up and a cosine. Leaves the state with the least error of CHECKS on the way, which is returned.

    batch: rows of the next step. check: the error of the model as it is; None leaves the last state, for infinity.
    ValueError for weights that are not finite.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=_DECAY)
    best, kept = math.inf, copy.deepcopy(model.state_dict())
    for step in range(steps):
        done = step / steps
        optimizer.param_groups[0]["lr"] = lr * min(1.0, (done + 0.01) / _WARMUP) * (1 + math.cos(math.pi * done)) / 2
        model.loss(batch(), context).backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), _CLIP)
        optimizer.step()
        optimizer.zero_grad()
        if check is not None and (step + 1) * CHECKS // steps > step * CHECKS // steps:
            error = check()
            if error < best:
                best, kept = error, copy.deepcopy(model.state_dict())
    if check is not None:
        model.load_state_dict(kept)
    finite = all(bool(weight.isfinite().all()) for weight in model.parameters())
    if not finite or (check is not None and best == math.inf):
        raise ValueError(
            f"training has diverged in {steps} steps; use another seed, or lower the learning rate {lr:g}."
        )
    return best


def _windows(history_T: Floats, task: ForecastTask) -> tuple[Tensor, Tensor]:
    """Windows for training and for checks in between, whose horizons do not overlap where there are many."""
    padded_T = _last(history_T, max(len(history_T), task.context + task.horizon))
    windows_BE = torch.from_numpy(padded_T).unfold(0, task.context + task.horizon, 1)
    known_BE = ~windows_BE.isnan()
    windows_BE = windows_BE[known_BE[:, : task.context].any(1) & known_BE[:, task.context :].any(1)]
    if not len(windows_BE):
        raise ValueError("no window of the series has values; use a shorter horizon, or fill in missing values.")
    checks = len(windows_BE) // 10
    if checks == 0:
        return windows_BE, windows_BE[:0]
    gap = min(task.horizon - 1, len(windows_BE) - checks - 1)
    return windows_BE[: len(windows_BE) - checks - gap], windows_BE[-checks:]
