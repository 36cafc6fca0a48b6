"""Products by oneDNN: the definition in every layout, gradients of any part, and where torch is left alone."""

import pytest
import torch
from torch.nn import functional

from accuracy import DRAWS, compare
from exlstm.ops import products
from exlstm.ops.products import add_product, by_onednn, linear, product
from exlstm.runtime.availability import mkl_is_slow
from exlstm.runtime.capture import Graph, capturing
from exlstm.runtime.internals import has_onednn_linear

SIZES = [(4, 4, 4), (5, 7, 9), (64, 33, 17), (130, 16, 65)]


@pytest.fixture
def calls(monkeypatch):
    """oneDNN takes any size on any processor; the shapes that it is given."""
    if not has_onednn_linear():
        pytest.skip("this build of torch has no oneDNN")
    monkeypatch.setattr(products, "LEAST", 1)
    monkeypatch.setattr(products, "mkl_is_slow", lambda: True)
    seen, real = [], products.onednn_linear

    def spy(a, b, bias):
        assert all(t.is_contiguous() or t.T.is_contiguous() for t in (a, b)), "a hundred times slower"
        seen.append((*a.shape, b.shape[0]))
        return real(a, b, bias)

    monkeypatch.setattr(products, "onednn_linear", spy)
    return seen


def make(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def everything(x, w, b, run, dtype=torch.float32):
    """The result, and the gradients of all that has one, for one fixed loss."""
    leaves = [t if t is None else t.to(dtype).detach().requires_grad_(t.requires_grad) for t in (x, w, b)]
    y = run(*leaves)
    (y * make(*y.shape, seed=9).to(dtype)).sum().backward()
    return [y.detach(), *(t.grad for t in leaves if t is not None and t.requires_grad)]


@pytest.mark.parametrize(("M", "K", "N"), SIZES)
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("wanted", ["x", "w", "b", "xwb", ""])
def test_it_is_the_definition(M, K, N, biased, wanted, calls):
    """Results and gradients, of those inputs that want one; torch's own product is not called."""
    x, w, b = make(2, M, K), make(N, K, seed=1), make(N, seed=2) if biased else None
    for name, t in (("x", x), ("w", w), ("b", b)):
        if t is not None:
            t.requires_grad_(name in wanted)
    if not any(t is not None and t.requires_grad for t in (x, w, b)):
        torch.testing.assert_close(linear(x, w, b), functional.linear(x, w, b), rtol=1e-5, atol=1e-5)
        assert calls == [(2 * M, K, N)]
        return
    got, want = everything(x, w, b, linear), everything(x, w, b, functional.linear, torch.float64)
    for found, exact in zip(got, want, strict=True):
        torch.testing.assert_close(found, exact.float(), rtol=1e-4, atol=1e-4)
    backward = {"x": (2 * M, N, K), "w": (N, 2 * M, K)}
    assert calls == [(2 * M, K, N), *(shape for name, shape in backward.items() if name in wanted)]


def test_as_accurate_as_torch(calls):
    """At the sizes of a layer, to the rule of all kernels."""
    found = []
    for seed in DRAWS:
        x, w = (t.requires_grad_() for t in (make(256, 300, seed=seed), make(200, 300, seed=seed + 100)))
        runs = (functional.linear, torch.float64), (functional.linear, torch.float32), (linear, torch.float32)
        found.append([dict(zip(("y", "dx", "dw"), everything(x, w, None, *run), strict=True)) for run in runs])
    assert calls
    compare(found)


@pytest.mark.parametrize("layout", ["rows of others", "every other number", "transposed", "expanded"])
def test_any_layout(layout, calls):
    """What has gaps is copied first: oneDNN would take a hundred times as long."""
    there = {
        "rows of others": make(40, 30)[:, 3:19],
        "every other number": make(40, 32)[:, ::2],
        "transposed": make(16, 40).T,
        "expanded": make(1, 16).expand(40, 16),
    }[layout]
    w, other = make(8, 16, seed=1), make(16, 24, seed=2)
    torch.testing.assert_close(linear(there, w), there @ w.T, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(product(there, other), there @ other, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(product(other.T, there.T), (there @ other).T, rtol=1e-5, atol=1e-5)
    assert len(calls) == 3


def test_in_place(calls):
    a, b, total = make(20, 10), make(10, 30, seed=1), make(20, 30, seed=2)
    out, want = torch.empty(20, 30), total + a @ b
    assert product(a, b, out=out) is out
    torch.testing.assert_close(out, a @ b)
    assert add_product(total, a, b) is total
    torch.testing.assert_close(total, want)
    assert len(calls) == 2


def test_second_derivatives(calls):
    """They are plain torch's."""
    found = []
    for run in (linear, functional.linear):
        x, w, b = (t.requires_grad_() for t in (make(9, 8), make(7, 8, seed=1), make(7, seed=2)))
        (dx,) = torch.autograd.grad(run(x, w, b).square().sum(), x, create_graph=True)
        found.append(torch.autograd.grad(dx.square().sum(), (x, w, b)))
    for got, want in zip(*found, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


def test_torch_is_left_alone(calls):
    """Where shapes are short, tensors are not float32, and where torch or a capture watches the call."""
    x, w = make(8, 8), make(8, 8, seed=1)
    assert by_onednn(x, w, make(8))
    assert not any(by_onednn(*pair) for pair in ((x[:3], w), (x[:, :3], w[:, :3]), (x, w[:3])))
    assert not by_onednn(x.double(), w.double())
    assert not by_onednn(x, w, make(8).double())
    assert not by_onednn(x.to("meta"), w.to("meta"))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not by_onednn(x, w)
    with capturing(Graph()):
        assert not by_onednn(x, w)
    torch.testing.assert_close(torch.vmap(lambda row: linear(row, w))(x[:, None]), (x @ w.T)[:, None])
    torch.testing.assert_close(torch.compile(linear, backend="eager", fullgraph=True)(x, w), x @ w.T)
    assert calls == []


def test_small_products_are_torchs(calls, monkeypatch):
    monkeypatch.setattr(products, "LEAST", 8 * 8 * 8 + 1)
    assert not by_onednn(make(8, 8), make(8, 8))
    assert by_onednn(make(9, 8), make(8, 8))


@pytest.mark.parametrize(
    ("capability", "amd", "slow"), [("AVX512", True, True), ("AVX512", False, False), ("AVX2", True, False)]
)
def test_the_rule(capability, amd, slow, monkeypatch):
    if not has_onednn_linear():
        pytest.skip("this build of torch has no oneDNN")
    monkeypatch.setattr("exlstm.runtime.availability.has_mkl", lambda: True)
    monkeypatch.setattr("exlstm.runtime.availability.made_by_amd", lambda: amd)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    assert mkl_is_slow.__wrapped__() == slow
