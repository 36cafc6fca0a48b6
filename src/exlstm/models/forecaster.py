"""A forecaster of series: patches of a context go in, quantiles of the patch behind each come out.

    tokens = embed(value, change since a season before, known or not; value a season before the next patch)
    quantiles of the next patch = value a season before it + head(blocks(tokens))        in units of the context

A longer horizon is read on: patches of missing values go in with the state, at the same cost each. So a stream of new
points costs nothing but themselves. A series is one row: channels of several variables are rows of a batch.

Instance normalization is that of RevIN (Kim et al. 2022), patches are those of PatchTST (Nie et al. 2023), and sLSTM
blocks over patches with missing values as masks are those of TiRex (Auer et al. 2025).

B rows  T points  L points of a patch  N patches  Q quantiles  S points of a season  D model width
E points with a season before them, or filled up to whole patches
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from exlstm.mixers.state import LMState
from exlstm.models.block import Block, BlockConfig, BlockStack, StackConfig, width_norm
from exlstm.models.pattern import blocks_from_pattern
from exlstm.nn import init
from exlstm.nn.borders import Borders
from exlstm.nn.fields import Positive, Share, Size, check_fields
from exlstm.nn.linear import Linear
from exlstm.ops.common import wide_dtype
from exlstm.ops.norm import Norm

LEVELS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
_SPREAD = 0.5  # of the first quantiles, in deviations of the context


@dataclass(frozen=True, kw_only=True)
class ForecasterConfig:
    """The architecture of a forecaster.

    patch: points of a patch. season: points of a season; forecasts are relative to the value one season before, or with
    1 to the last value. levels: of the quantiles, rising, between 0 and 1. hidden: channels inside of both MLPs.
    For comparisons: without instance_norm points enter as they are, and not in units of their context; without relative
    forecasts are what the head gives, and not relative to the season before.
    """

    width: Size
    blocks: tuple[BlockConfig, ...]
    patch: Size = 16
    season: Size = 1
    levels: tuple[float, ...] = LEVELS
    hidden: Size = 128
    norm: Norm = "rms"
    norm_eps: Positive = 1e-6
    dropout: Share = 0.0
    instance_norm: bool = True
    relative: bool = True

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.blocks:
            raise ValueError("blocks is (); a forecaster needs at least 1.")
        rising = (0.0, *self.levels, 1.0)
        if not self.levels or any(high <= low for low, high in pairwise(rising)):
            raise ValueError(f"levels is {self.levels}; they must rise between 0 and 1, as (0.1, 0.5, 0.9) do.")

    @property
    def norm_bias(self) -> bool:
        """Norms have no bias."""
        return False

    @property
    def residual(self) -> bool:
        """Blocks have residual connections."""
        return True


def forecaster_from_pattern(
    pattern: str, *, width: int, heads: int = 4, patch: int = 16, season: int = 1, dropout: float = 0.0
) -> ForecasterConfig:
    """A forecaster of the blocks of a pattern such as "ms", whose MLPs are twice as wide as the model."""
    blocks = blocks_from_pattern(pattern, width=width, heads=heads)
    return ForecasterConfig(width=width, blocks=blocks, patch=patch, season=season, hidden=2 * width, dropout=dropout)


class ForecasterState(NamedTuple):
    """What a forecaster knows of each row. Points are in units of the row: (point - location) / scale.

    pending: points behind the last whole patch, fewer than one. season: the last S points, with missing ones filled in.
    ahead: quantiles of the patch behind the last whole one. stack: the state of the blocks.
    """

    location_B1: Tensor
    scale_B1: Tensor
    pending_BT: Tensor
    season_BS: Tensor
    ahead_BLQ: Tensor
    stack: Any


class ResidualMLP(nn.Module):
    """down(silu(up(x))) + skip(x): from one width to another."""

    def __init__(self, inputs: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.up, self.down = Linear(inputs, hidden), Linear(hidden, outputs)
        self.through = Linear(inputs, outputs, bias=False)
        for layer, width in ((self.up, inputs), (self.down, hidden)):
            init.fill(layer, {"weight": init.small(width), "bias": init.zeros})
        init.fill(self.through, {"weight": init.small(inputs)})

    def forward(self, x: Tensor) -> Tensor:
        """[..., inputs] -> [..., outputs]."""
        y: Tensor = self.down(functional.silu(self.up(x))) + self.through(x)
        return y


class PatchBlocks(BlockStack):
    """The blocks of a forecaster, and a norm behind them."""

    def __init__(self, config: StackConfig) -> None:
        super().__init__(config)
        self.blocks = nn.ModuleList(Block(config, index) for index in range(len(config.blocks)))
        self.norm = width_norm(config)

    def forward(self, x_BND: Tensor, state: LMState | None = None) -> tuple[Tensor, LMState]:
        """[B, N, D] -> [B, N, D], and the state behind the last patch."""
        x_BND, after = self.run_blocks(x_BND, state, Borders())
        return self.norm(x_BND), after


class Forecaster(nn.Module):
    """Quantiles of what follows a context.

        quantiles_BTQ = model(context_BT, horizon=48)

        state = model.read(context_BT)               # the same in parts, as points come in
        quantiles_BTQ = model.forecast(state, 48)
        state = model.update(state, new_points_BT)   # any number of points

    Points that are NaN are missing. Units (location and scale) are those of the first context and stay with the state.
    stack: what stands in the place of the blocks, for comparisons: a module with the call of `PatchBlocks`.
    """

    def __init__(self, config: ForecasterConfig, stack: nn.Module | None = None) -> None:
        super().__init__()
        self.config = config
        outputs = config.patch * len(config.levels)
        self.embed = ResidualMLP(4 * config.patch, config.hidden, config.width)
        self.stack = PatchBlocks(config) if stack is None else stack
        self.head = ResidualMLP(config.width, config.hidden, outputs)
        spread_Q = _SPREAD * torch.special.ndtri(torch.tensor(config.levels, dtype=torch.float64))
        init.fill(
            self.head.down,
            {
                "weight": init.small(config.hidden),
                "bias": lambda x: x.copy_(spread_Q.repeat(config.patch)),
            },
        )

    def forward(self, context_BT: Tensor, horizon: int) -> Tensor:
        """Quantiles [B, horizon, Q] of what follows a context, T >= 1; NaN is a missing point.

        They do not cross: each is at least the one before. Raises ValueError for a context with a row of no known
        point, for infinite points, and for a horizon below 1.
        """
        check_horizon(horizon)
        return self.forecast(self.read(context_BT), horizon)

    def read(self, context_BT: Tensor) -> ForecasterState:
        """The state behind a context. Its beginning is filled up with missing points to whole patches."""
        check_points(context_BT)
        location_B1, scale_B1 = self.units(context_BT)
        B, T = context_BT.shape
        weight, S, L, Q = self.head.down.weight, self.config.season, self.config.patch, len(self.config.levels)
        state = ForecasterState(
            location_B1, scale_B1, weight.new_zeros(B, 0), weight.new_zeros(B, S), weight.new_zeros(B, L, Q), None
        )
        return self._advance(state, functional.pad(context_BT, (-T % L, 0), value=torch.nan))

    def update(self, state: ForecasterState, points_BT: Tensor) -> ForecasterState:
        """The state some points later, T >= 1. Reading a series in any parts is the same as reading it at once.

        Raises ValueError for points of another number of rows, and for infinite ones.
        """
        check_points(points_BT, known=False)
        if not isinstance(state, ForecasterState) or len(state.season_BS) != len(points_BT):
            rows = len(state.season_BS) if isinstance(state, ForecasterState) else type(state).__name__
            raise ValueError(f"there are {len(points_BT)} rows of points for a state of {rows}; give as many.")
        return self._advance(state, points_BT)

    def forecast(self, state: ForecasterState, horizon: int) -> Tensor:
        """Quantiles [B, horizon, Q] of the points behind those that were read.

        A patch that is read in part is finished with missing points: its own rest is forecast without its beginning.
        """
        check_horizon(horizon)
        L = self.config.patch
        done = state.pending_BT.shape[1]
        parts = [state.ahead_BLQ[:, done:]]
        while sum(part.shape[1] for part in parts) < horizon:
            state = self._step(state, functional.pad(state.pending_BT, (0, L - done), value=torch.nan))
            parts.append(state.ahead_BLQ)
            done = 0
        quantiles_BTQ = torch.cat(parts, dim=1)[:, :horizon].to(state.scale_B1.dtype)
        # sorted quantiles have a loss that is no larger (Chernozhukov et al. 2010)
        return quantiles_BTQ.sort(dim=-1).values * state.scale_B1[..., None] + state.location_B1[..., None]

    def loss(self, series_BT: Tensor, context: int) -> Tensor:
        """The mean pinball loss of all known points, in units of each row.

        Points behind the first `context` are forecast from these alone, as `forward` does, and each patch of the
        context from those before.
        """
        B, T = series_BT.shape
        L = self.config.patch
        location_B1, scale_B1 = self.units(series_BT[:, :context])
        x_BT = ((series_BT - location_B1) / scale_B1).to(self.head.down.weight.dtype)
        x_BE = functional.pad(x_BT, (-context % L, -(T - context) % L), value=torch.nan)
        seen_E = torch.arange(x_BE.shape[1], device=x_BE.device) < context + -context % L
        x_BNL, seen_BNL = x_BE.view(B, -1, L), x_BE.where(seen_E, torch.nan).view(B, -1, L)
        quantiles_BNLQ, _, _ = self._quantiles(seen_BNL, x_BE.new_zeros(B, self.config.season), None)
        return pinball_loss(x_BNL[:, 1:], quantiles_BNLQ[:, :-1], x_BNL.new_tensor(self.config.levels))

    def units(self, context_BT: Tensor) -> tuple[Tensor, Tensor]:
        """The location and the scale of each row, [B, 1], of the function `units`; 0 and 1 without instance_norm."""
        location_B1, scale_B1 = units(context_BT)
        if self.config.instance_norm:
            return location_B1, scale_B1
        return torch.zeros_like(location_B1), torch.ones_like(scale_B1)

    def _advance(self, state: ForecasterState, points_BT: Tensor) -> ForecasterState:
        """The state behind some points in the series' own units."""
        x_BT = ((points_BT - state.location_B1) / state.scale_B1).to(state.season_BS.dtype)
        x_BE = torch.cat([state.pending_BT, x_BT], dim=1)
        whole = x_BE.shape[1] // self.config.patch * self.config.patch
        state = self._step(state, x_BE[:, :whole]) if whole else state
        return state._replace(pending_BT=x_BE[:, whole:])

    def _step(self, state: ForecasterState, x_BT: Tensor) -> ForecasterState:
        """The state behind some whole patches, without pending points."""
        x_BNL = x_BT.reshape(len(x_BT), -1, self.config.patch)
        quantiles_BNLQ, season_BS, stack = self._quantiles(x_BNL, state.season_BS, state.stack)
        ahead_BLQ = quantiles_BNLQ[:, -1]
        return state._replace(pending_BT=x_BT[:, :0], season_BS=season_BS, ahead_BLQ=ahead_BLQ, stack=stack)

    def _quantiles(self, x_BNL: Tensor, season_BS: Tensor, stack: Any) -> tuple[Tensor, Tensor, Any]:
        """Quantiles [B, N, L, Q] of the patch behind each, the season behind the last one, the state of the stack."""
        B, N, L = x_BNL.shape
        S = season_BS.shape[1]
        filled_BE = fill_missing(season_BS, x_BNL.flatten(1))
        known_BNL = ~x_BNL.isnan()
        change_BNL = x_BNL - filled_BE[:, : N * L].reshape(B, N, L)
        # point j behind the patch has the phase of j % S of the last season that is known there
        phase_L = torch.arange(L, device=x_BNL.device) % S
        before_BNL = filled_BE[:, L * torch.arange(1, N + 1, device=x_BNL.device)[:, None] + phase_L]
        inputs = [x_BNL.where(known_BNL, 0), change_BNL.where(known_BNL, 0), known_BNL.to(x_BNL.dtype), before_BNL]
        y_BND, stack = self.stack(self.embed(torch.cat(inputs, dim=-1)), stack)
        quantiles_BNLQ = self.head(y_BND).view(B, N, L, -1)
        if self.config.relative:
            quantiles_BNLQ = quantiles_BNLQ + before_BNL[..., None]
        return quantiles_BNLQ, filled_BE[:, -S:], stack


def fill_missing(season_BS: Tensor, x_BT: Tensor) -> Tensor:
    """The season before and the points, [B, S + T]; a missing point has the value of one season before."""
    B, S = season_BS.shape
    both_BE = torch.cat([season_BS, x_BT], dim=1)
    E = both_BE.shape[1]
    seasons_BNS = functional.pad(both_BE, (0, -E % S), value=torch.nan).view(B, -1, S)
    number_N1 = torch.arange(seasons_BNS.shape[1], device=x_BT.device)[:, None]
    last_BNS = number_N1.expand_as(seasons_BNS).masked_fill(seasons_BNS.isnan(), 0).cummax(1).values
    filled_BE: Tensor = seasons_BNS.gather(1, last_BNS).flatten(1)[:, :E]
    return filled_BE


def units(context_BT: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation of the known points of each row, [B, 1], float32 or wider.

    A constant row has its size as its scale, and 1 if it is 0.
    """
    x_BT = context_BT.to(wide_dtype(context_BT.dtype))
    known_BT = ~x_BT.isnan()
    count_B1 = known_BT.sum(1, keepdim=True).clamp(min=1)
    location_B1 = x_BT.where(known_BT, 0).sum(1, keepdim=True) / count_B1
    away_BT = (x_BT - location_B1).where(known_BT, 0)
    deviation_B1 = (away_BT.square().sum(1, keepdim=True) / count_B1).sqrt()
    size_B1 = location_B1.abs()
    # a constant is off its mean by rounding
    is_constant_B1 = deviation_B1 <= 4 * torch.finfo(x_BT.dtype).eps * size_B1
    return location_B1, deviation_B1.where(~is_constant_B1, size_B1.where(size_B1 > 0, 1))


def pinball_loss(y_BNL: Tensor, quantiles_BNLQ: Tensor, levels_Q: Tensor) -> Tensor:
    """The mean over known points and levels of max(tau (y - q), (tau - 1) (y - q)); 0 without any."""
    known_BNL = ~y_BNL.isnan()
    away_BNLQ = y_BNL.where(known_BNL, 0)[..., None] - quantiles_BNLQ
    loss_BNLQ = torch.maximum(levels_Q * away_BNLQ, (levels_Q - 1) * away_BNLQ)
    return loss_BNLQ.mean(-1).where(known_BNL, 0).sum() / known_BNL.sum().clamp(min=1)


def check_points(points_BT: Tensor, known: bool = True) -> None:
    """ValueError for what is no [B, T >= 1] of floating point, for infinity, and with `known` for a row without any."""
    if not isinstance(points_BT, Tensor) or not points_BT.is_floating_point():
        found = points_BT.dtype if isinstance(points_BT, Tensor) else type(points_BT).__name__
        raise ValueError(f"points are {found}; pass a tensor of floating point, [rows, points].")
    if points_BT.ndim != 2 or not points_BT.shape[1]:
        raise ValueError(f"points have shape {tuple(points_BT.shape)}; pass [rows, points] with at least 1 point.")
    if points_BT.isinf().any():
        row = int(points_BT.isinf().any(1).nonzero()[0])
        raise ValueError(f"row {row} holds infinity; pass NaN for a missing point.")
    if known and (unknown := points_BT.isnan().all(1)).any():
        raise ValueError(f"row {int(unknown.nonzero()[0])} has no finite point; leave it out.")


def check_horizon(horizon: int) -> None:
    """ValueError for a horizon that is no whole number of at least 1."""
    if not isinstance(horizon, int) or horizon < 1:
        raise ValueError(f"horizon is {horizon!r}; it must be a whole number of at least 1.")


def level_index(levels: Sequence[float], level: float = 0.5) -> int:
    """The place of the level nearest to one that is wanted."""
    return min(range(len(levels)), key=lambda index: abs(levels[index] - level))
