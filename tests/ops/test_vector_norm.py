"""The norm of vectors, and the bonus of the current step: kernels against the definitions, in training and decoding."""

from functools import partial

import pytest
import torch

from exlstm.ops.bonus import bonus
from exlstm.ops.vector_norm import vector_norm
from exlstm.runtime.backend import recorded


def draw(*shape, dtype=torch.float64, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def positive(x, kind):
    """A sum of numbers of both signs may be nothing, and its inverse anything."""
    return x.abs() if kind == "sum" else x


def with_gradient(x, weights, run):
    x = x.detach().requires_grad_()
    y = run(x)
    (y * weights.to(y.dtype)).sum().backward()
    return y.detach(), x.grad


@pytest.mark.parametrize("kind", ["l2", "sum"])
@pytest.mark.parametrize("shape", [(2, 9, 3, 5), (1, 1, 1, 1), (3, 4, 2, 64)])
def test_the_kernel_is_the_definition(kind, shape):
    x, weights, run = positive(draw(*shape), kind), draw(*shape, seed=1), partial(vector_norm, kind=kind, scale=0.7)
    want = with_gradient(x, weights, partial(run, backend="torch"))
    for apart in (lambda t: t, lambda t: torch.cat([t, t], dim=2)[:, :, : shape[2]], lambda t: t.mT.contiguous().mT):
        got = with_gradient(apart(x.float()), weights, partial(run, backend="numba"))
        for a, b in zip(got, want, strict=True):
            torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=1e-6)


def test_lengths_are_one():
    x = draw(2, 3, 4, 32)
    torch.testing.assert_close(vector_norm(x).norm(dim=-1), torch.ones(2, 3, 4, dtype=torch.float64))
    torch.testing.assert_close(vector_norm(x.abs(), kind="sum").sum(-1), torch.ones(2, 3, 4, dtype=torch.float64))
    assert not vector_norm(torch.zeros(1, 1, 1, 4), eps=1e-24).any()


def test_gradients_in_float64():
    """And second derivatives, also of the kernel's backward."""
    for kind in ("l2", "sum"):
        x = positive(draw(1, 2, 2, 3), kind).requires_grad_()
        assert torch.autograd.gradcheck(partial(vector_norm, kind=kind, scale=2.0), x)
    found = []
    for backend, dtype in (("torch", torch.float64), ("numba", torch.float32)):
        x = draw(1, 2, 2, 3, dtype=dtype).requires_grad_()
        (dx,) = torch.autograd.grad(vector_norm(x, backend=backend).pow(3).sum(), x, create_graph=True)
        found.append(torch.autograd.grad(dx.square().sum(), x)[0].double())
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_few_steps_in_any_dtype(dtype):
    x = draw(3, 1, 2, 8, dtype=dtype)
    with torch.no_grad(), recorded() as choices:
        y = vector_norm(x)
    assert choices[0].backend == "numba"
    assert y.dtype == dtype
    torch.testing.assert_close(
        y.double(), vector_norm(x.double()), rtol=0.01, atol=1e-6 if dtype.itemsize > 2 else 0.01
    )
    assert vector_norm(x[:0]).shape == (0, 1, 2, 8)


def test_an_unknown_kind():
    with pytest.raises(ValueError, match="kind is 'l1'; it must be 'l2' or 'sum'"):
        vector_norm(draw(1, 1, 1, 2), kind="l1")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_bonus(dtype):
    r, k, v = (draw(2, 3, 4, 5, dtype=dtype, seed=n) for n in range(3))
    v, u = torch.cat([v, v], dim=-1), draw(4, 5, dtype=dtype, seed=4)
    want = torch.einsum("bthk,bthk,hk,bthv->bthv", *(x.double() for x in (r, k, u, v)))
    with torch.no_grad(), recorded() as choices:
        fast, plain = bonus(r, k, u, v), bonus(r, k, u, v, backend="torch")
    assert [choice.backend for choice in choices] == ["numba", "torch"]
    for got in (fast, plain):
        assert got.dtype == dtype
        torch.testing.assert_close(got.double(), want, rtol=0.01, atol=1e-5 if dtype.itemsize > 2 else 0.02)


def test_bonus_has_gradients():
    x = [draw(*shape, seed=n).requires_grad_() for n, shape in enumerate([(1, 2, 2, 3)] * 2 + [(2, 3), (1, 2, 2, 4)])]
    assert torch.autograd.gradcheck(bonus, x)
    with pytest.raises(ValueError, match="u is"):
        bonus(x[0], x[1], x[2][:1], x[3])
