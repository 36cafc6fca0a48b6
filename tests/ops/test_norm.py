"""The norms against their formulas."""

import pytest
import torch

from exlstm.ops.norm import head_norm, layer_norm, rms_norm


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
    for kind, function in (("layer", layer_norm), ("rms", rms_norm)):
        torch.testing.assert_close(function(x, gain, 1e-5), by_formula(kind, x, gain, 1e-5), rtol=1e-11, atol=1e-12)
    heads, gain = x.unflatten(-1, (2, 4)), gain.view(2, 4)
    torch.testing.assert_close(
        head_norm(heads, gain, 1e-5), by_formula("layer", heads, gain, 1e-5), rtol=1e-11, atol=1e-12
    )


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
    y = function(x, gain, 1e-5)
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, function(x.float(), gain.float(), 1e-5).bfloat16())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(function(x, gain, 1e-5), y)
