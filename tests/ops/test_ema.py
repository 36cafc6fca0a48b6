"""Damped moving averages: the kernel of single steps. The other forms are in `recurrences.py`."""

import pytest
import torch

from exlstm.ops.ema import EMAState, ema


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("E", "Z"), [(1, 1), (5, 3), (40, 16)])
@torch.no_grad()
def test_a_step(E, Z):
    """Rows that go on, are reset, and are over; infinity ends at a reset."""
    weights = torch.sigmoid(draw(E, Z)), draw(E, Z, seed=1), draw(E, seed=2)
    u, h = draw(4, 1, E, seed=3), draw(4, E, Z, seed=4)
    h[1] = torch.inf
    u[3] = torch.nan
    rows = {"reset_BT": torch.tensor([[False], [True], [False], [True]]), "lengths_B": torch.tensor([1, 1, 1, 0])}
    for options in ({}, rows):
        wide = [t.double() for t in (u, *weights)]
        y, after = ema(u, *weights, EMAState(h), backend="numba", **options)
        want, state = ema(*wide, EMAState(h.double()), backend="recurrent", **options)
        torch.testing.assert_close(y.double(), want, rtol=1e-5, atol=1e-5, equal_nan=True)
        torch.testing.assert_close(after.h_BEZ.double(), state.h_BEZ, rtol=1e-5, atol=1e-5, equal_nan=True)
    assert torch.equal(after.h_BEZ[3], h[3])
    assert after.h_BEZ.isfinite().all()


def test_errors():
    u, factor, skip = draw(2, 3, 4), torch.rand(4, 2), draw(4)
    with pytest.raises(ValueError, match=r"weight is torch.float32 of shape \(4, 3\).*must be .* of shape \(4, 2\)"):
        ema(u, factor, draw(4, 3), skip)
    with pytest.raises(ValueError, match="backend 'numba' of ema cannot run: it takes one step at a time"):
        ema(u, factor, factor, skip, backend="numba")
    with pytest.raises(ValueError, match="backend 'numba' of ema cannot run: gradients are wanted"):
        ema(u[:, :1].requires_grad_(), factor, factor, skip, backend="numba")
