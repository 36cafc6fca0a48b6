"""Initialisers: what they draw, and that nothing is left to chance."""

import pytest
import torch
from torch import nn

from exlstm.nn import init


def filled(fill, *shape):
    x = torch.empty(*shape)
    fill(x)
    return x


@pytest.mark.parametrize(
    ("fill", "deviation"),
    [
        (init.normal(0.1), 0.1),
        (init.small(64), (2 / (5 * 64)) ** 0.5),
        (init.wang(64, 12), 2 / (12 * 64**0.5)),
        (init.uniform(0.5), 0.5 / 3**0.5),
    ],
)
def test_random_ones(fill, deviation):
    x = filled(fill, 400, 400)
    assert abs(x.mean()) < 0.02 * deviation
    assert abs(x.std() / deviation - 1) < 0.02


def test_uniform_stays_within_its_bound():
    x = filled(init.uniform(0.5), 1000)
    assert 0.49 < x.abs().max() <= 0.5


def test_between_two_numbers():
    x = filled(init.between(1, 16), 1000)
    assert 1 <= x.min() < 1.1
    assert 15.9 < x.max() < 16
    x = filled(init.log_uniform(1e-3, 1e-1), 10_000)
    assert x.min() >= 1e-3
    assert x.max() < 0.1
    assert abs(x.log10().mean() + 2) < 0.02


@pytest.mark.parametrize("shape", [(5, 5), (3, 7), (7, 3), (2, 4, 6)])
def test_orthogonal(shape):
    x = filled(init.orthogonal(0.5), *shape)
    gram = x @ x.mT if shape[-2] <= shape[-1] else x.mT @ x
    torch.testing.assert_close(gram, 0.25 * torch.eye(gram.shape[-1]).expand_as(gram), rtol=1e-5, atol=1e-6)


def test_inverses():
    """Filled are the values of which a function gives those of another fill."""
    for inverse, function in (
        (init.logs, torch.exp), (init.logits, torch.sigmoid), (init.inverse_softplus, nn.functional.softplus)
    ):  # fmt: skip
        torch.manual_seed(0)
        want = filled(init.log_uniform(1e-4, 0.9), 100)
        torch.manual_seed(0)
        torch.testing.assert_close(function(filled(inverse(init.log_uniform(1e-4, 0.9)), 100)), want, rtol=1e-5, atol=0)
    assert filled(init.inverse_softplus(init.constant(30.0)), 1) == 30
    assert filled(init.counted, 2, 3).tolist() == [[1, 2, 3]] * 2


def test_constant_ones():
    assert (filled(init.zeros, 2, 3) == 0).all()
    assert (filled(init.ones, 2, 3) == 1).all()
    assert (filled(init.constant(-10), 2, 3) == -10).all()
    assert filled(init.linspace(3, 6), 2, 4).tolist() == [[3, 4, 5, 6]] * 2
    assert filled(init.multiples(0.5), 2, 4).tolist() == [[0, 0.5, 1, 1.5]] * 2


@pytest.mark.parametrize(("index", "depth", "exponent"), [(0, 4, 0.3), (3, 4, 1.6), (1, 4, 0.3 + 1.3 / 3), (0, 1, 0.3)])
def test_power_law(index, depth, exponent):
    """5 - 12 (j / (V - 1))^(0.3 + 1.3 index / (depth - 1)), in every head alike."""
    x = filled(init.power_law(index, depth), 2, 5)
    want = [5 - 12 * (j / 4) ** exponent for j in range(5)]
    torch.testing.assert_close(x, torch.tensor([want] * 2), rtol=1e-6, atol=1e-6)
    assert x[0, 0] == 5
    assert x[0, -1] == -7


def test_power_law_of_one_channel_is_a_number():
    """Where j / (V - 1) would be 0 / 0."""
    assert filled(init.power_law(1, 2), 3, 1).tolist() == [[5]] * 3


def test_a_table_fits_its_module_exactly():
    layer = nn.Linear(2, 3)
    init.fill(layer, {"weight": init.ones, "bias": init.constant(7)})
    assert (layer.weight == 1).all()
    assert (layer.bias == 7).all()
    with pytest.raises(AssertionError, match="bias"):
        init.fill(layer, {"weight": init.ones})
    with pytest.raises(AssertionError, match="gain"):
        init.fill(layer, {"weight": init.ones, "bias": init.zeros, "gain": init.ones})


def test_ramps():
    share = torch.arange(5) / 4
    torch.testing.assert_close(filled(init.power_ramp(0.7, -5, 3), 2, 5), (-5 + 8 * share**0.7).expand(2, 5))
    share = torch.arange(5) / 5
    torch.testing.assert_close(filled(init.power_ramp(2.0, 1, 0, closed=False), 5), 1 - share**2)
    assert filled(init.power_ramp(1.0, -5, 3), 1) == -5
    assert filled(init.geometric(3.0, 0.5), 2, 4).tolist() == [[3, 1.5, 0.75, 0.375]] * 2
    torch.testing.assert_close(filled(init.zigzag(1.0, 0.5), 2, 4), torch.tensor([1, 1.5, 0.5, 1]).expand(2, 4))


@pytest.mark.parametrize("states", [2, 8, 32])
def test_hippo(states):
    """Eigenvectors of the normal part of the matrix, one of each pair, orthonormal."""
    n = torch.arange(states, dtype=torch.float64)
    a = -torch.sqrt(torch.outer(2 * n + 1, 2 * n + 1)).tril(-1) - torch.diag(n + 1)
    p = (n + 0.5).sqrt()
    normal = (a + torch.outer(p, p)).to(torch.complex128)
    frequencies, vectors = init.hippo(states)
    assert frequencies.shape == (states // 2,)
    assert (frequencies < 0).all()
    torch.testing.assert_close(normal @ vectors, vectors * (1j * frequencies - 0.5))
    torch.testing.assert_close(vectors.mH @ vectors, torch.eye(states // 2).to(torch.complex128))
