"""The forecaster: units, missing points, streams, seasons, and that it learns."""

import math

import numpy as np
import pytest
import torch

from exlstm.models.forecaster import (
    LEVELS,
    Forecaster,
    ForecasterConfig,
    ForecasterState,
    fill_missing,
    forecaster_from_pattern,
    pinball_loss,
    units,
)
from exlstm.models.summary import parameters

PATCH = 4


def model_of(pattern="ms", *, season=1, dtype=torch.float64):
    """A model whose head has weights that show: at the start they are small."""
    torch.manual_seed(0)
    model = Forecaster(forecaster_from_pattern(pattern, width=16, heads=2, patch=PATCH, season=season)).to(dtype)
    with torch.no_grad():
        for weight in (model.head.down.weight, model.head.through.weight):
            weight.mul_(8)
    return model.eval()


def series(rows=3, points=22, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(rows, points, generator=generator, dtype=dtype).cumsum(1)


@pytest.mark.parametrize("season", [1, 3, 6])
@torch.no_grad()
def test_units_go_through(season):
    """a x + b has the quantiles a q + b; rows do not know each other."""
    model, x = model_of(season=season), series()
    want = model(x, 11)
    assert want.shape == (3, 11, len(LEVELS))
    a, b = torch.tensor([[2.0], [1e-3], [7e4]]).double(), torch.tensor([[-5.0], [3.0], [0.1]]).double()
    torch.testing.assert_close(model(a * x + b, 11), a[..., None] * want + b[..., None], rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(model(x[1:2], 11), want[1:2])
    assert (want.diff(dim=-1) >= 0).all()


@torch.no_grad()
def test_float32_keeps_its_digits_far_from_zero():
    """Its units are taken before it is cut to the weights' dtype."""
    model, x = model_of(dtype=torch.float32), series()
    far = model(x + 1e6, 5) - 1e6
    torch.testing.assert_close(far, model(x, 5), rtol=1e-4, atol=1e-4)
    assert far.dtype == torch.float64


@torch.no_grad()
def test_missing_points_are_not_numbers():
    """Neither NaN nor a value comes of them; what they hide does not matter, where they are does."""
    model, x = model_of(season=3), series()
    holes = x.clone()
    holes[0, 5] = holes[1, :9] = holes[2, -3:] = torch.nan
    holes[1, 12:] = torch.nan
    found = model(holes, 9)
    assert found.isfinite().all()
    assert (found - model(x, 9)).abs().amax((1, 2)).min() > 1e-3
    zeros = holes.nan_to_num(0)
    assert (found - model(zeros, 9)).abs().amax((1, 2)).min() > 1e-3
    other = holes.clone()
    other[0, 5], other[0, 6] = other[0, 6].item(), torch.nan
    assert (found[0] - model(other, 9)[0]).abs().max() > 1e-3


@torch.no_grad()
def test_one_known_point_and_constants_are_forecast():
    """A constant has its size as its unit, so units go through there, too."""
    model = model_of()
    flat = torch.full((1, 9), 7.0, dtype=torch.float64)
    assert model(flat, 4).isfinite().all()
    torch.testing.assert_close(model(1000 * flat, 4), 1000 * model(flat, 4))
    lone = torch.full((1, 9), torch.nan, dtype=torch.float64)
    lone[0, 2] = 0.0
    assert model(lone, 4).isfinite().all()
    location_B1, scale_B1 = units(torch.tensor([[1.0, 3.0, torch.nan], [0.0, 0.0, 0.0], [0.1, 0.1, 0.1]]))
    torch.testing.assert_close(location_B1, torch.tensor([[2.0], [0.0], [0.1]]))
    torch.testing.assert_close(scale_B1, torch.tensor([[1.0], [1.0], [0.1]]))


@pytest.mark.parametrize("pattern", ["ms", "a"])
@pytest.mark.parametrize("season", [1, 3, 7])
@torch.no_grad()
def test_a_stream_is_the_whole_in_parts(pattern, season):
    """Cut anywhere; units are those of the first part, so the whole is read in them, too."""
    model, x = model_of(pattern, season=season), series(points=31)
    first = 8
    start = model.read(x[:, :first])
    whole = model.update(start, x[:, first:])
    for cuts in ([9, 10, 11, 12, 13, 20], [12, 16, 30], [29]):
        state = start
        for low, high in zip([first, *cuts], [*cuts, 31], strict=True):
            state = model.update(state, x[:, low:high])
        for horizon in (1, 9):
            torch.testing.assert_close(model.forecast(state, horizon), model.forecast(whole, horizon))
    # in the units of the first part the whole is read at once
    location_B1, scale_B1 = start.location_B1, start.scale_B1
    y = (x[:, :28] - location_B1) / scale_B1
    quantiles, _, _ = model._quantiles(y.view(3, -1, PATCH), y.new_zeros(3, season), None)
    want = quantiles[:, -1].sort(-1).values * scale_B1[..., None] + location_B1[..., None]
    state = model.update(start, x[:, first:28])
    torch.testing.assert_close(model.forecast(state, PATCH), want)
    assert state.pending_BT.shape == (3, 0)


@torch.no_grad()
def test_a_longer_horizon_begins_with_the_shorter_one():
    """Also in the middle of a patch, whose rest was forecast before."""
    model, x = model_of(season=3), series()
    for state in (model.read(x), model.update(model.read(x), x[:, :3])):
        far = model.forecast(state, 15)
        for horizon in (1, 4, 5, 14):
            torch.testing.assert_close(model.forecast(state, horizon), far[:, :horizon])
    before = model.read(x)
    after = model.update(before, x[:, :3])
    torch.testing.assert_close(model.forecast(after, 1), model.forecast(before, 4)[:, 3:])


@torch.no_grad()
def test_without_blocks_it_repeats_the_season():
    """The head at zero: quantiles are the value a season before, filled where that is missing, at any horizon."""
    model = model_of(season=3)
    for part in (model.head.down, model.head.through):
        for weight in part.parameters():
            weight.zero_()
    x = torch.tensor([[9.0, 9, 9, 1, 2, 3, 4, torch.nan, 6]]).double()
    want = torch.tensor([4.0, 2, 6] * 3)
    torch.testing.assert_close(model(x, 8)[0, :, 0], want[:8].double())
    state = model.update(model.read(x[:, :4]), x[:, 4:])
    torch.testing.assert_close(model.forecast(state, 8)[0, 3:, 4], model(x, 8)[0, 3:, 4])


def test_missing_points_are_filled_from_the_season_before():
    nan = torch.nan
    got = fill_missing(torch.tensor([[1.0, 2]]), torch.tensor([[3.0, nan, nan, 4, nan]]))
    assert got.tolist() == [[1, 2, 3, 2, 3, 4, 3]]


def test_the_loss_is_the_mean_pinball_loss():
    """Of known points: (0.1 x 2 + 0.9 x 1) / 2 and (0.9 x 1 + 0.1 x 1) / 2."""
    y = torch.tensor([[[10.0, torch.nan]], [[9.0, torch.nan]]])
    quantiles = torch.tensor([[[[8.0, 9.0], [0.0, 0.0]]], [[[10.0, 10.0], [0.0, 0.0]]]])
    got = pinball_loss(y, quantiles, torch.tensor([0.1, 0.9]))
    assert got.item() == pytest.approx(((0.2 + 0.9) / 2 + (0.9 + 0.1) / 2) / 2)


def test_the_loss_sees_the_context_alone():
    """Points behind it are targets and not inputs: their part of the loss is that of the forecast."""
    model, x = model_of(season=3), series(points=21)
    with torch.no_grad():  # quantiles that do not cross, since those of a forecast are sorted
        for weight in (model.head.down.weight, model.head.through.weight):
            weight.mul_(1e-3)
    y = x.clone()
    y[:, 14:] = torch.nan
    # two missing points stand before the context, in a patch that is no target
    inside, both = 3 * 12 * model.loss(y, 14), 3 * (12 + 7) * model.loss(x, 14)
    location_B1, scale_B1 = units(x[:, :14])
    quantiles = (model(x[:, :14], 7) - location_B1[..., None]) / scale_B1[..., None]
    target = (x[:, 14:] - location_B1) / scale_B1
    want = 3 * 7 * pinball_loss(target[:, None], quantiles[:, None], torch.tensor(LEVELS).double())
    torch.testing.assert_close(both - inside, want)


def test_it_learns_a_noisy_sine_better_than_the_seasonal_naive_forecast():
    rng = np.random.default_rng(0)
    t = np.arange(700)
    x = torch.tensor(np.sin(2 * np.pi * t / 12) + 0.3 * rng.standard_normal(700), dtype=torch.float32)
    torch.manual_seed(0)
    model = Forecaster(forecaster_from_pattern("ms", width=16, heads=2, patch=6, season=12))
    windows = x[:600].unfold(0, 60, 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for step in range(100):
        optimizer.param_groups[0]["lr"] = 1e-2 * (1 - step / 100)
        loss = model.loss(windows[torch.randint(len(windows), (16,))], 48)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    tests = x[552:].unfold(0, 60, 1)
    with torch.no_grad():
        quantiles = model.eval()(tests[:, :48], 12)
    error = (quantiles[..., 4] - tests[:, 48:]).abs().mean()
    naive = (tests[:, 36:48] - tests[:, 48:]).abs().mean()
    # the noise alone has a mean of 0.3 sqrt(2 / pi) = 0.24, and the naive forecast sqrt 2 of it
    assert error < 0.9 * naive
    inside = (quantiles[..., 0] < tests[:, 48:]) & (tests[:, 48:] < quantiles[..., -1])
    assert 0.6 < inside.float().mean() < 0.95  # of 0.8


def test_its_size_and_names():
    config = forecaster_from_pattern("ms", width=16, heads=2, patch=PATCH)
    assert parameters(Forecaster(config)) < 20_000
    assert [math.isclose(a, b) for a, b in zip(config.levels, LEVELS, strict=True)] == [True] * 9


@pytest.mark.parametrize(
    ("call", "fragment"),
    [
        (lambda model: model(torch.full((2, 5), torch.nan), 3), "row 0 has no finite point"),
        (lambda model: model(torch.tensor([[1.0], [torch.inf]]), 3), "row 1 holds infinity"),
        (lambda model: model(torch.ones(2, 5), 0), "horizon is 0"),
        (lambda model: model(torch.ones(2, 5), 2.5), "horizon is 2.5"),
        (lambda model: model(torch.ones(5), 3), r"shape \(5,\)"),
        (lambda model: model(torch.ones(2, 0), 3), r"shape \(2, 0\)"),
        (lambda model: model(torch.ones(2, 5, dtype=torch.int64), 3), "torch.int64"),
        (
            lambda model: model.update(model.read(torch.ones(2, 5)), torch.ones(3, 1)),
            "3 rows of points for a state of 2",
        ),
        (lambda model: model.update(None, torch.ones(3, 1)), "for a state of NoneType"),
        (lambda model: ForecasterConfig(width=8, blocks=()), "at least 1"),
        (lambda model: forecaster_from_pattern("ms", width=8, heads=2, patch=0), "patch is 0"),
        (lambda model: ForecasterConfig(width=8, blocks=model.config.blocks, levels=(0.5, 0.5)), "must rise"),
    ],
)
def test_wrong_input_is_refused(call, fragment):
    with pytest.raises(ValueError, match=fragment):
        call(model_of(dtype=torch.float32))


def test_a_state_is_a_value():
    """Neither a forecast nor an update changes it."""
    model, x = model_of(), series()
    with torch.no_grad():
        state = model.read(x)
        before = ForecasterState(*(part.clone() if isinstance(part, torch.Tensor) else part for part in state))
        model.forecast(state, 9)
        model.update(state, x)
    for got, want in zip(state[:-1], before[:-1], strict=True):
        assert torch.equal(got, want)
