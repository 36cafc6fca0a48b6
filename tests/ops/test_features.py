"""Feature maps: products that they stand for, kernels against plain torch, and random rows."""

import pytest
import torch

from exlstm.ops.features import elu1, favor, random_rows, taylor
from exlstm.ops.features.reference import favor_torch, taylor_torch


def draws(*shape, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)


def test_elu1():
    x = torch.linspace(-30, 30, 61, dtype=torch.float64).requires_grad_()
    torch.testing.assert_close(elu1(x), torch.nn.functional.elu(x) + 1)
    assert (elu1(x) > 0).all()
    assert torch.autograd.gradcheck(elu1, x)
    zero = torch.zeros(1, requires_grad=True)
    (gradient,) = torch.autograd.grad(elu1(zero).sum(), zero)
    assert gradient == 1, "both sides have this slope"


@pytest.mark.parametrize("K", [1, 2, 5, 16])
def test_taylor_is_the_series(K):
    x, y = draws(2, 3, 4, K), draws(2, 3, 4, K).flip(0)
    s = (x * y).sum(-1) / K**0.5
    torch.testing.assert_close((taylor(x) * taylor(y)).sum(-1), 1 + s + s * s / 2)
    assert taylor(x).shape[-1] == 1 + K + K * (K + 1) // 2


@pytest.mark.parametrize("K", [1, 2, 5, 16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_taylor_kernels(K, dtype):
    """Forward, backward, and a second derivative."""
    x = draws(2, 3, 4, K, dtype=dtype)
    found = []
    for run in (taylor, taylor_torch):
        leaf = (x if run is taylor else x.double()).clone().requires_grad_()
        out = run(leaf)
        (first,) = torch.autograd.grad(out.sin().sum(), leaf, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), leaf)
        found.append([t.detach().double() for t in (out, first, second)])
    room = 1e-5 if dtype is torch.float32 else 0.02
    for got, want in zip(*found, strict=True):
        torch.testing.assert_close(got, want, rtol=room, atol=room * want.abs().max().item())
    assert taylor(x).dtype == torch.float32
    assert taylor(x[:0]).shape == (0, 3, 4, 1 + K + K * (K + 1) // 2)


def test_favor_averages_to_the_exponential():
    """Over many rows; small numbers, so that the mean is soon there."""
    x, y, rows = 0.5 * draws(1, 4, 2, 8), 0.5 * draws(1, 4, 2, 8).flip(1), random_rows(20_000, 8, seed=0)
    s = (x * y).sum(-1) / 8**0.5
    found = (favor(x, rows, is_query=False) * favor(y, rows, is_query=False)).sum(-1)
    torch.testing.assert_close(found, s.exp(), rtol=0.05, atol=0)


@pytest.mark.parametrize("is_query", [True, False])
def test_favor_kernel(is_query):
    x, rows = draws(3, 1, 4, 16), random_rows(44, 16, seed=1)
    want = favor_torch(x, rows, is_query)
    got = favor(x.float(), rows.float(), is_query=is_query, backend="numba")
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-7)
    if is_query:  # the largest feature is 1
        torch.testing.assert_close(want.amax(-1), torch.full((3, 1, 4), 1.0001 * 44**-0.5, dtype=torch.float64))


def test_queries_of_any_size_are_finite():
    x, rows = 1e3 * draws(3, 2, 4, 16, dtype=torch.float32), random_rows(44, 16, seed=1).float()
    assert favor(x, rows, is_query=True).isfinite().all()
    assert favor(x, rows, is_query=False).isfinite().all()


def test_random_rows():
    """Orthogonal in blocks, norms of Gaussian rows, the same for a seed."""
    rows = random_rows(20, 8, seed=3)
    assert torch.equal(rows, random_rows(20, 8, seed=3))
    assert not torch.equal(rows, random_rows(20, 8, seed=4))
    for block in rows.split(8):
        products = block @ block.mT
        torch.testing.assert_close(products, torch.diag(products.diagonal()))
    norms = random_rows(4000, 8, seed=0).square().sum(1)
    assert abs(norms.mean() - 8) < 0.3
    assert 12 < norms.var() < 20


def test_errors():
    x = draws(1, 2, 3, 4)
    for rows in (draws(5, 3), draws(5, 4, dtype=torch.float32)):
        with pytest.raises(ValueError, match=r"they must be torch\.float64 of shape"):
            favor(x, rows, is_query=True)
    with pytest.raises(ValueError, match="one step without gradients"):
        favor(x.float(), draws(5, 4, dtype=torch.float32), is_query=True, backend="numba")
