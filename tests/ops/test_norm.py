"""The norms against their formulas."""

import pytest
import torch

from accuracy import DRAWS, compare
from exlstm.ops.norm import SMALL_NUMEL, are_contiguous, fits_norm_kernel, head_norm, layer_norm, rms_norm


def centred(x):
    return x - x.mean(-1, keepdim=True)


def by_formula(kind, x, gain, eps):
    """The page's formulas, eps inside the root."""
    if kind == "rms":
        return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * gain
    return centred(x) / (centred(x).square().mean(-1, keepdim=True) + eps).sqrt() * gain


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_formulas(scale):
    """At a scale of 1e-3 an eps of 1e-5 decides: it has to stand inside the root."""
    x, gain = scale * torch.randn(2, 5, 8, dtype=torch.float64), torch.randn(8, dtype=torch.float64)
    bias = torch.randn(8, dtype=torch.float64)
    for kind, function in (("layer", layer_norm), ("rms", rms_norm)):
        want = by_formula(kind, x, gain, 1e-5)
        torch.testing.assert_close(function(x, gain, 1e-5), want, rtol=1e-11, atol=1e-12)
        torch.testing.assert_close(function(x, gain, 1e-5, bias), want + bias, rtol=1e-11, atol=1e-12)
    heads, gain, bias = x.unflatten(-1, (2, 4)), gain.view(2, 4), bias.view(2, 4)
    want = by_formula("layer", heads, gain, 1e-5)
    torch.testing.assert_close(head_norm(heads, gain, 1e-5), want, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(head_norm(heads, gain, 1e-5, bias), want + bias, rtol=1e-11, atol=1e-12)


def test_heads_are_normalised_on_their_own():
    x, gain = torch.randn(1, 2, 3, 4), torch.ones(3, 4)
    loud = x.clone()
    loud[:, :, 1] *= 1e3
    assert torch.equal(head_norm(loud, gain, 1e-5)[:, :, [0, 2]], head_norm(x, gain, 1e-5)[:, :, [0, 2]])


@pytest.mark.parametrize("function", [layer_norm, rms_norm, head_norm])
def test_statistics_are_wide(function):
    """bfloat16 has 8 bits: a mean or a sum of squares in it would be off by a percent. Only the result is rounded."""
    x = (torch.randn(4, 64, 2, 256) + 10).bfloat16()
    gain = (torch.rand(2, 256) if function is head_norm else torch.rand(256)).bfloat16()
    for bias in (None, gain.flip(-1)):
        y = function(x, gain, 1e-5, bias)
        assert y.dtype == torch.bfloat16
        wide_bias = None if bias is None else bias.float()
        assert torch.equal(y, function(x.float(), gain.float(), 1e-5, wide_bias).bfloat16())
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(function(x, gain, 1e-5, bias), y)


def forms(function, x, gain, *bias):
    """Exact, by torch, as a graph makes it, and as it is without one."""
    exact = function(x.double(), gain.double(), 1e-5, *(b.double() for b in bias))
    plain = function(x, gain.clone().requires_grad_(), 1e-5, *bias).detach()
    return [{"y": y} for y in (exact, plain, function(x, gain, 1e-5, *bias))]


@pytest.mark.parametrize("function", [layer_norm, rms_norm])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("scale", "offset"), [(1e-3, 0.0), (1.0, 0.0), (1.0, 100.0), (1e3, 0.0)])
def test_a_few_rows_are_as_accurate_as_many(function, dtype, scale, offset):
    """A few numbers without gradients go through one kernel, others through torch."""
    draws = [((scale * torch.randn(3, 1, 77) + offset).to(dtype), *torch.randn(2, 77).to(dtype)) for _ in DRAWS]
    assert fits_norm_kernel(*draws[0][:2])
    compare(forms(function, x, gain) for x, gain, _ in draws)
    compare(forms(function, x, gain, bias) for x, gain, bias in draws)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_few_heads_with_a_bias(dtype):
    draws = [[torch.randn(shape).to(dtype) for shape in ((3, 1, 2, 33), (2, 33), (2, 33))] for _ in DRAWS]
    compare(forms(head_norm, *numbers) for numbers in draws)
    x, gain, bias = draws[0]
    plain = forms(head_norm, x, gain, bias)[1]["y"]
    apart = torch.stack([bias, bias + 1], dim=-1)[..., 0]
    assert torch.equal(head_norm(x, gain, 1e-5, apart), plain)


def test_a_few_rows_that_are_not_numbers():
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.ones(3, 8, dtype=dtype)
        x[1, 2] = torch.nan
        for function in (layer_norm, rms_norm):
            y = function(x, torch.ones(8, dtype=dtype), 1e-5)
            assert y.isnan().all(-1).tolist() == [False, True, False]


def test_few_asks_for_what_the_kernel_can_read():
    x, gain = torch.randn(4, 8), torch.randn(8)
    assert fits_norm_kernel(x, gain)
    assert not fits_norm_kernel(x.requires_grad_(), gain)
    with torch.no_grad():
        assert fits_norm_kernel(x, gain)
        assert not fits_norm_kernel(x.detach().mT.contiguous().mT, gain)
        assert not fits_norm_kernel(x.detach(), gain.bfloat16())
        assert not fits_norm_kernel(x.detach().double(), gain.double())
        assert not fits_norm_kernel(torch.randn(SMALL_NUMEL // 8 + 1, 8), gain)


@pytest.mark.parametrize("heads", [2, 5])
def test_gains_of_other_heads(heads):
    """The kernel goes by addresses: a gain that is too short would be read beyond its end."""
    with torch.no_grad(), pytest.raises(RuntimeError, match="must match the size"):
        head_norm(torch.zeros(1, 1, 4, 8), torch.ones(heads, 8), 1e-5)


def test_only_a_few_plain_numbers_go_that_way():
    x, gain = torch.randn(1, 1, 64), torch.randn(64)
    assert fits_norm_kernel(x, gain)
    assert not fits_norm_kernel(torch.randn(1, 1 + SMALL_NUMEL // 64, 64), gain)
    assert not fits_norm_kernel(x.clone().requires_grad_(), gain)
    assert not fits_norm_kernel(x, gain.double())
    assert not fits_norm_kernel(x.double(), gain.double())
    assert not fits_norm_kernel(torch.randn(64, 2).T, gain)
    assert not fits_norm_kernel(x[:0], gain)
    assert fits_norm_kernel(x, gain, gain)
    for bias in (gain.clone().requires_grad_(), gain.double(), torch.randn(64, 2)[:, 0]):
        assert not fits_norm_kernel(x, gain, bias)
    assert not are_contiguous(gain, torch.randn(32))
    assert not fits_norm_kernel(x, torch.randn(32))
    assert not fits_norm_kernel(x.to("meta"), gain)
    assert not torch.vmap(lambda one: torch.as_tensor(fits_norm_kernel(one, gain)), out_dims=None)(torch.randn(2, 64))


@pytest.mark.parametrize("function", [layer_norm, rms_norm])
def test_nothing_is_lost_on_the_way(function):
    """What is not finite, and zeros; and bfloat16 is rounded once, at the end, as torch rounds."""
    x, gain = torch.randn(4, 16), torch.rand(16) + 0.5
    x[0, 3], x[1, 5], x[2] = torch.nan, torch.inf, 0.0
    plain = function(x, gain.clone().requires_grad_(), 1e-5).detach()
    torch.testing.assert_close(function(x, gain, 1e-5), plain, equal_nan=True)
    short, gain = torch.randn(8, 1000).bfloat16(), torch.randn(1000).bfloat16()
    assert torch.equal(function(short, gain, 1e-5), function(short.float(), gain.float(), 1e-5).bfloat16())
