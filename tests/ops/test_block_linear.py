"""Block-diagonal maps."""

from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from accuracy import DRAWS, compare
from exlstm.ops.block_linear import block_linear
from exlstm.runtime.backend import recorded


def everything(x, w, dy, run):
    """The output and both gradients."""
    x, w = x.detach().clone().requires_grad_(), w.detach().clone().requires_grad_()
    y = run(x, w)
    return {"y": y.detach(), **dict(zip(("dx", "dw"), torch.autograd.grad(y, (x, w), dy), strict=True))}


def plainly(x_BTD, w_HVK):
    """The definition: a dense matrix with the blocks on its diagonal."""
    return x_BTD @ torch.block_diag(*w_HVK).T


def make(B, T, blocks, size, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    D = blocks * size
    shapes = (B, T, D), (blocks, size, size), (B, T, D)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]


@given(B=st.integers(1, 3), T=st.integers(1, 40), blocks=st.integers(1, 9), seed=st.integers(0, 99))
def test_numba_is_as_accurate_as_the_definition(B, T, blocks, seed):
    numba = partial(block_linear, backend="numba")
    draws = [make(B, T, blocks, 4, seed=seed + 100 * draw) for draw in DRAWS]
    compare(
        [everything(*(t.double() for t in x), plainly), everything(*x, plainly), everything(*x, numba)] for x in draws
    )


@pytest.mark.parametrize("size", [1, 3, 4, 8, 16])
@pytest.mark.parametrize("blocks", [1, 3, 4, 12])
def test_torch_is_the_definition(blocks, size):
    x = make(2, 5, blocks, size, torch.float64)
    want = everything(*x, plainly)
    for name, got in everything(*x, partial(block_linear, backend="torch")).items():
        torch.testing.assert_close(got, want[name])


def test_a_slice_of_a_wider_tensor():
    """As the first half of a layer's up-projection is."""
    x, w, dy = make(2, 7, 3, 4)
    wider = torch.cat([x, x + 1], dim=-1).requires_grad_()
    y = block_linear(wider.chunk(2, dim=-1)[0], w, backend="numba")
    (dwider,) = torch.autograd.grad(y, wider, dy)
    want = everything(x, w, dy, partial(block_linear, backend="numba"))
    torch.testing.assert_close(y, want["y"], rtol=0, atol=0)
    torch.testing.assert_close(dwider, torch.cat([want["dx"], torch.zeros_like(x)], dim=-1), rtol=0, atol=0)


def test_columns_that_are_apart():
    x, w, dy = make(2, 7, 3, 4)
    apart = torch.stack([x, x + 1], dim=-1)[..., 0]
    y = block_linear(apart, w, backend="numba")
    torch.testing.assert_close(y, block_linear(x, w, backend="numba"), rtol=0, atol=0)


def test_threads_change_nothing(monkeypatch):
    x = make(2, 700, 128, 4)
    found = []
    for threads in (1, 2, 5):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
        found.append(everything(*x, partial(block_linear, backend="numba")))
    for other in found[1:]:
        for name, tensor in found[0].items():
            torch.testing.assert_close(other[name], tensor, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("size", "dtype", "why"), [(8, torch.float32, "these are 8 wide"), (4, torch.float64, "computes in float32")]
)
def test_what_numba_leaves_to_torch(size, dtype, why):
    x, w, _ = make(1, 3, 2, size, dtype)
    with recorded() as choices:
        block_linear(x, w)
    assert choices[0].backend == "torch"
    assert why in choices[0].why
    with pytest.raises(ValueError, match=why):
        block_linear(x, w, backend="numba")


@pytest.mark.parametrize("backend", ["auto", "numba", "torch"])
@pytest.mark.parametrize("shape", [(2, 4, 4), (4, 4, 4), (3, 4, 3), (0, 4, 4)], ids=str)
def test_blocks_that_do_not_fit(shape, backend):
    """The kernel goes by addresses: blocks that are too few would be read beyond their end."""
    with pytest.raises(ValueError, match=r"^w is .* to fit x of shape \(1, 3, 12\) it must be \[H, V, V\] on cpu"):
        block_linear(torch.zeros(1, 3, 12), torch.zeros(shape), backend=backend)
    with pytest.raises(ValueError, match=r"^w is .* on meta; .* on cpu with H V = 12\.$"):
        block_linear(torch.zeros(1, 3, 12), torch.zeros(3, 4, 4, device="meta"), backend=backend)


def test_autocast_narrows_it_as_it_narrows_every_linear():
    x, w, _ = make(1, 3, 2, 4)
    with torch.autocast("cpu", torch.bfloat16):
        assert block_linear(x, w).dtype == torch.bfloat16
