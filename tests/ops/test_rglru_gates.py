"""The gates of the RG-LRU: the kernel against the definition, first steps, and the slope of the root."""

from functools import partial
from typing import NamedTuple

import comparison
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from accuracy import DRAWS, assert_as_accurate
from exlstm.ops.rglru import rglru_gates

NAMES = ["u", "r", "i", "lam"]


class Scaled(NamedTuple):
    """What is written, beside the factors as the output."""

    b_BTE: torch.Tensor


def run(*x, backend="torch", seen_B=None, **rows):
    seen_B = torch.ones(x[0].shape[0], dtype=torch.bool) if seen_B is None else seen_B
    a_BTE, b_BTE, _ = rglru_gates(*x, seen_B, backend=backend, **rows)
    return a_BTE, Scaled(b_BTE)


def inputs(B=2, T=40, E=20, *, scale=1.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    u, r, i = (torch.randn(B, T, E, generator=generator) for _ in range(3))
    return u, scale * r, scale * i, torch.randn(E, generator=generator) - 4


@settings(max_examples=20)
@given(
    B=st.integers(1, 3), T=st.integers(1, 70), E=st.integers(1, 40), seed=st.integers(0, 99),
    scale=st.sampled_from([0.1, 1.0, 10.0]), share=st.sampled_from([0.0, 0.2, 1.0]),
)  # fmt: skip
def test_any_shape_is_the_definition(B, T, E, seed, scale, share):
    x = inputs(B, T, E, scale=scale, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    rows = {
        "reset_BT": torch.rand(B, T, generator=generator) < share,
        "seen_B": torch.rand(B, generator=generator) < 0.5,
    }
    want = comparison.everything([t.double() for t in x], partial(run, **rows), NAMES)
    comparison.assert_same(comparison.everything(x, partial(run, backend="numba", **rows), NAMES), want, tolerance=1e-5)


@pytest.mark.parametrize("scale", [1.0, 10.0])
def test_accuracy(scale):
    draws = (inputs(2, 200, 300, scale=scale, seed=seed) for seed in DRAWS)
    assert_as_accurate(partial(run, backend="numba"), run, draws, names=NAMES)


def test_gradients_in_float64():
    x = [t.double().requires_grad_() for t in inputs(2, 5, 3)]
    reset_BT = torch.tensor([[False, True, False, False, False]] * 2)

    def flat(*x):
        a_BTE, (b_BTE,) = run(*x, reset_BT=reset_BT)
        return a_BTE, b_BTE

    assert torch.autograd.gradcheck(flat, x)


@pytest.mark.parametrize("backend", ["torch", "numba"])
def test_first_steps(backend):
    """Of a row that has seen nothing and after a reset there is no root; a row of no steps stays as it is."""
    x, reset_BT = inputs(3, 4, 5), torch.zeros(3, 4, dtype=torch.bool)
    reset_BT[1, 2] = True
    seen_B, lengths_B = torch.tensor([False, True, False]), torch.tensor([4, 4, 0])
    a, b, after = rglru_gates(*x, seen_B, reset_BT=reset_BT, lengths_B=lengths_B, backend=backend)
    written = torch.sigmoid(x[2]) * x[0]
    ratio = b / written
    first = torch.zeros(3, 4, dtype=torch.bool)
    first[0, 0] = first[1, 2] = first[2, 0] = True
    torch.testing.assert_close(ratio[first], torch.ones(3, 5))
    torch.testing.assert_close(ratio[~first], torch.sqrt(1 - a.double().square()).float()[~first], rtol=1e-4, atol=0)
    assert after.tolist() == [True, True, False]


@pytest.mark.parametrize("backend", ["torch", "numba"])
def test_the_slope_of_the_root_is_bounded(backend):
    """Where a rounds to 1 the root is 0, and its slope at most 1000."""
    u, r = torch.ones(1, 3, 2), torch.tensor([-200.0, -25.0, 0.0])[:, None].expand(1, 3, 2).contiguous()
    lam = torch.full((2,), -4.0)
    r.requires_grad_()
    a, b, _ = rglru_gates(u, r, u, lam, torch.ones(1, dtype=torch.bool), backend=backend)
    assert (a[:, 0] == 1).all()
    (b / torch.sigmoid(u)).sum().backward()
    log_a = (-8 * torch.nn.functional.softplus(lam) * torch.sigmoid(r.detach()[0, 1])).double()
    slope = -2 * torch.exp(2 * log_a) * log_a * torch.sigmoid(-r.detach()[0, 1]).double()
    torch.testing.assert_close(r.grad[0, 1].double(), 1000 * slope, rtol=1e-4, atol=0)
    assert not r.grad[0, 0].any()
    assert r.grad.isfinite().all()
