"""Tasks of arrays from simulated physical systems: what comes next, from what is seen of a system, with noise.

A net reads observed channels and says, at every step, how far each is from its newest value some steps later. It learns
from observations as they are, with their noise; a test compares with the truth without noise. Rolled out, a net reads
what it has said itself.

B trajectories  T steps  C channels  J channels at all horizons
"""

from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from exlstm.data.series.dynamics import DynamicalSystem, observed, trajectories
from exlstm.data.series.metrics import nse, rollout_error, valid_time
from exlstm.data.series.reservoir import rain_and_runoff
from exlstm.data.series.systems import PENDULUM_ENERGY, SYSTEMS, pendulum_energy
from exlstm.data.tasks.contract import SplitName
from exlstm.study.arrays.contract import EVALUATED, Parts, outputs
from exlstm.study.arrays.nets import ArrayNet, NetShape
from exlstm.study.arrays.rows import ArrayRows, of_equal_length

Floats = NDArray[np.float64]
_ROWS: dict[SplitName, int] = {"train": 192, "validation": 32, "test": 64}
_ROLLED = 16  # rows of the test that are rolled out
_SETTLED = 32  # steps at the beginning of a row that do not count in errors
_MOST = 10.0  # an energy that is further off, in units of the true one, counts as so far
_FAR = 1e3  # deviations; a net that has said more than that, or NaN, is given this


@dataclass(frozen=True, kw_only=True)
class SystemTask:
    """A system that is seen in part.

    channels: those that are seen. noise: its deviation in deviations of a channel. horizons: how many steps later, 1
    first. length: steps of a row, behind which are those of the furthest horizon. context, rollout: steps that a net
    reads before it is rolled out, and that it is rolled out for.
    """

    name: str
    about: str
    system: DynamicalSystem
    channels: tuple[int, ...]
    noise: float
    horizons: tuple[int, ...]
    length: int
    context: int
    rollout: int

    def parts(self) -> Parts:
        """Observations and how far they go from there, in deviations of both in training."""
        return _prepared(self).parts

    def shape(self, patch: int) -> NetShape:
        """See `ArrayTask`. Steps are read as they are."""
        count = len(self.channels)
        return NetShape(inputs=count, outputs=count * len(self.horizons), steps=self.length, causal=True, patch=patch)

    def loss(self, y: Tensor, rows: ArrayRows) -> Tensor:
        """The mean square over steps, channels and horizons."""
        return functional.mse_loss(y, rows.y)

    def score(self, net: nn.Module, rows: ArrayRows) -> float:
        """The share of the mean square that is left out, when the beginning of rows does not count."""
        return _explained(net, rows)

    def test(self, net: nn.Module) -> dict[str, Any]:
        """Errors at each horizon in deviations of a channel, the valid time, and the drift of a pendulum's energy."""
        assert isinstance(net, ArrayNet)
        known = _prepared(self)
        errors = known.errors(net, self)
        entry: dict[str, Any] = {"task": self.name, "score": 1 - errors[self.horizons[0]] ** 2, "at_chance": False}
        entry |= {f"error_{horizon}": error for horizon, error in errors.items()}
        truth_BTC, said_BTC = known.rolled_out(net, self)
        lyapunov = self.system.lyapunov_steps
        valid_B = valid_time(rollout_error(truth_BTC, said_BTC), lyapunov_steps=lyapunov)
        entry |= {"valid_time": float(valid_B.mean()), "asked": len(valid_B)}
        if self.system.name == "double_pendulum":
            entry["energy_drift"] = energy_drift(said_BTC)
        return entry


class SystemRows(NamedTuple):
    """A task's rows in units of training, those units, and the test without noise.

    truth_BTC: all steps of the test. seen_BTC: the same with noise. scale_C: deviations of channels. change_J:
    deviations of how far they go, at every horizon.
    """

    parts: Parts
    truth_BTC: Floats
    seen_BTC: Floats
    mean_C: Floats
    scale_C: Floats
    change_J: Floats

    def errors(self, net: ArrayNet, task: SystemTask) -> dict[int, float]:
        """The root of the mean square at each horizon, in deviations of each channel."""
        y = torch.cat([outputs(net, rows) for rows in self.parts["test"].batches(EVALUATED)]).double().numpy()
        T, width, found = task.length, len(task.channels), {}
        for number, horizon in enumerate(task.horizons):
            part = slice(number * width, (number + 1) * width)
            said = self.seen_BTC[:, :T] + y[..., part] * self.change_J[part]
            away = (said - self.truth_BTC[:, horizon : T + horizon]) / self.scale_C
            found[horizon] = float(np.sqrt((away[:, _SETTLED:] ** 2).mean()))
        return found

    def rolled_out(self, net: ArrayNet, task: SystemTask) -> tuple[Floats, Floats]:
        """The truth behind the context, and what a net says that reads what it has said."""
        units = [torch.from_numpy(x).float() for x in (self.mean_C, self.scale_C, self.change_J)]
        mean_C, scale_C, change_J = units
        width = len(mean_C)
        seen_BTC = torch.from_numpy(self.seen_BTC[:_ROLLED, : task.context]).float()
        y_BTJ, state = net.read((seen_BTC - mean_C) / scale_C, None)
        now_BC, said = seen_BTC[:, -1], []
        for _ in range(task.rollout):
            now_BC = now_BC + y_BTJ[:, -1, :width] * change_J[:width]
            away_BC = ((now_BC - mean_C) / scale_C).nan_to_num(_FAR).clamp(-_FAR, _FAR)
            now_BC = away_BC * scale_C + mean_C
            said.append(now_BC)
            y_BTJ, state = net.read(away_BC[:, None], state)
        truth = self.truth_BTC[:_ROLLED, task.context : task.context + task.rollout]
        return truth, torch.stack(said, dim=1).double().numpy()


@lru_cache(maxsize=4)
def _prepared(task: SystemTask) -> SystemRows:
    furthest = max(task.horizons)
    raw: dict[SplitName, tuple[Floats, Floats]] = {}
    for split, size in _ROWS.items():
        steps = max(task.length + furthest, task.context + task.rollout if split == "test" else 0)
        states = trajectories(task.system, steps=steps, split=split, size=size)
        seen = observed(task.system, states, noise=task.noise, only=task.channels, split=split)
        raw[split] = seen, observed(task.system, states, only=task.channels, split=split)
    seen = raw["train"][0]
    mean_C, scale_C = seen.mean((0, 1)), seen.std((0, 1))
    change_J = np.concatenate([(seen[:, h:] - seen[:, :-h]).std((0, 1)) for h in task.horizons])

    def rows(split: SplitName) -> ArrayRows:
        own, T = raw[split][0], task.length
        ahead = [own[:, h : T + h] - own[:, :T] for h in task.horizons]
        x, y = (own[:, :T] - mean_C) / scale_C, np.concatenate(ahead, axis=2) / change_J
        return of_equal_length(torch.from_numpy(x).float(), torch.from_numpy(y).float())

    parts = {split: rows(split) for split in raw}
    return SystemRows(parts, raw["test"][1], raw["test"][0], mean_C, scale_C, change_J)


def energy_drift(said_BTC: Floats) -> float:
    """How far the energy is from the true one, as a share of it, mean over steps and trajectories."""
    away_BT = np.abs(pendulum_energy(said_BTC) - PENDULUM_ENERGY) / PENDULUM_ENERGY
    return float(np.minimum(away_BT, _MOST).mean())


def _explained(net: nn.Module, rows: ArrayRows) -> float:
    y = torch.cat([outputs(net, batch) for batch in rows.batches(EVALUATED)])[:, _SETTLED:]
    wanted = rows.y[:, _SETTLED:]
    return float(1 - (y - wanted).square().mean() / wanted.square().mean())


@dataclass(frozen=True, kw_only=True)
class RunoffTask:
    """The runoff of a day from all rain so far, as hydrologists train an LSTM; the test is the runoff without noise."""

    name: str = "runoff"
    about: str = "two linear reservoirs, measured with an error of a tenth"
    days: int = 200

    def parts(self) -> Parts:
        """Rain, and the runoff of the same day, in deviations of both in training."""
        return _catchments(self.days)[0]

    def shape(self, patch: int) -> NetShape:
        """See `ArrayTask`. Days are read as they are."""
        return NetShape(inputs=1, outputs=1, steps=self.days, causal=True, patch=patch)

    def loss(self, y: Tensor, rows: ArrayRows) -> Tensor:
        """The mean square."""
        return functional.mse_loss(y, rows.y)

    def score(self, net: nn.Module, rows: ArrayRows) -> float:
        """The share of the variance that is left out."""
        return _explained(net, rows)

    def test(self, net: nn.Module) -> dict[str, Any]:
        """The efficiency of Nash & Sutcliffe, median over catchments, the first 32 days left out."""
        parts, truth_BT, (mean, scale) = _catchments(self.days)
        said = torch.cat([outputs(net, rows) for rows in parts["test"].batches(EVALUATED)])[..., 0].double().numpy()
        found = [nse(y[_SETTLED:], f[_SETTLED:]) for y, f in zip(truth_BT, said * scale + mean, strict=True)]
        score = float(np.median(found))
        return {"task": self.name, "score": score, "worst": min(found), "at_chance": score <= 0, "asked": len(found)}


@lru_cache(maxsize=2)
def _catchments(days: int) -> tuple[Parts, Floats, tuple[float, float]]:
    made = {split: rain_and_runoff(days=days, split=split, size=size) for split, size in _ROWS.items()}
    (rain_mean, rain_scale), (mean, scale) = (
        (float(x.mean()), float(x.std())) for x in (made["train"].rain_BT, made["train"].measured_BT)
    )
    parts = {
        split: of_equal_length(
            torch.from_numpy((one.rain_BT - rain_mean) / rain_scale).float()[..., None],
            torch.from_numpy((one.measured_BT - mean) / scale).float()[..., None],
        )
        for split, one in made.items()
    }
    return parts, made["test"].runoff_BT, (mean, scale)


PHYSICS = MappingProxyType(
    {
        task.name: task
        for task in (
            SystemTask(
                name="lorenz63",
                about="x of Lorenz's equations, noise of 5 %",
                system=SYSTEMS["lorenz63"],
                channels=(0,),
                noise=0.05,
                horizons=(1, 25),
                length=128,
                context=128,
                rollout=276,
            ),
            SystemTask(
                name="double_pendulum",
                about="both angles and speeds, without noise",
                system=SYSTEMS["double_pendulum"],
                channels=tuple(range(6)),
                noise=0.0,
                horizons=(1, 25),
                length=96,
                context=64,
                rollout=500,
            ),
            SystemTask(
                name="kuramoto_sivashinsky",
                about="8 of 64 places, noise of 1 %",
                system=SYSTEMS["kuramoto_sivashinsky"],
                channels=tuple(range(0, 64, 8)),
                noise=0.01,
                horizons=(1, 25),
                length=128,
                context=128,
                rollout=250,
            ),
            RunoffTask(),
        )
    }
)
