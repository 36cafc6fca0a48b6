"""Linear attention through the mLSTM's Triton kernels, whose forget gate is a sigmoid."""

from functools import partial

import comparison
import pytest
import torch
from triton_cases import here

from exlstm.ops.linear_attention import (
    LinearAttentionState,
    NormalizedState,
    linear_attention,
    normalized_linear_attention,
)

pytest.importorskip("triton", reason="Triton has no wheel for this system")
B, T, G, H, K, V = 2, 40, 1, 2, 16, 16
NAMES = ["q", "k", "v", "g", "s"]


def inputs(T=T):
    generator = torch.Generator().manual_seed(0)
    shapes = [(B, T, G, K), (B, T, G, K), (B, T, H, V), (B, T, H), (B, H, K, V)]
    q, k, v, g, s = (torch.randn(shape, generator=generator) for shape in shapes)
    g = -g.abs()
    g[0, 3:9] = 0.0
    g[1, 5:6] = -200.0
    return here([q, k, v, g, s])


def run(q, k, v, g, s, **options):
    return linear_attention(q, k, v, g, LinearAttentionState(s), **options)


def test_with_decays_and_without():
    """Decays of 0, where the gate is infinite, and of a reset; queries that all heads share; every gradient."""
    x, reset_BT = inputs(), here(torch.rand(B, T, generator=torch.Generator().manual_seed(1)) < 0.1)
    rows = {"reset_BT": reset_BT, "lengths_B": here(torch.tensor([T, 29]))}
    want = comparison.everything([t.double() for t in x], partial(run, backend="recurrent", **rows), NAMES)
    got = comparison.everything(x, partial(run, backend="triton", **rows), NAMES)
    comparison.assert_same(got, want, tolerance=1e-4)


def test_with_the_normalizer():
    q, k, v, _, s = inputs()
    q, k = (x.expand(-1, -1, H, -1).exp() for x in (q, k))
    x = [q, k, v, s, s.square().sum(-1)]
    op = lambda q, k, v, s, n, **options: normalized_linear_attention(q, k, v, NormalizedState(s, n), **options)  # noqa: E731
    names = ["q", "k", "v", "s", "n"]
    want = comparison.everything([t.double() for t in x], partial(op, backend="recurrent"), names)
    got = comparison.everything(x, partial(op, backend="triton"), names)
    comparison.assert_same(got, want, tolerance=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("reset", [False, True])
def test_one_step(reset):
    x = inputs(1)
    rows = {"reset_BT": here(torch.tensor([[reset], [False]]))}
    want, after = run(*x, backend="recurrent", **rows)
    got, state = run(*x, backend="triton", **rows)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(state.s_BHKV, after.s_BHKV, rtol=1e-5, atol=1e-5)
