"""Linear attention beyond the battery of `test_recurrences`: groups, the mapping for Triton, errors, captured steps."""

import comparison
import pytest
import torch

from exlstm.ops.linear_attention import (
    LinearAttentionState,
    NormalizedState,
    linear_attention,
    normalized_linear_attention,
    sigmoid_gate,
)
from exlstm.runtime.cpu.aten import capture_step

B, T, G, H, K, V = 2, 70, 2, 6, 5, 4
NAMES = ["q", "k", "v", "g", "write", "s"]
BACKENDS = ["numba", "chunkwise", "recurrent"]


def inputs(T=T, groups=G, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    shapes = [(B, T, groups, K), (B, T, groups, K), (B, T, H, V), (B, T, H), (B, T, H), (B, H, K, V)]
    q, k, v, g, write, s = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)
    return [x.to(dtype) for x in (q, k, v, -g.abs(), write, s)]


def run(q, k, v, g, write, s, **options):
    return linear_attention(q, k, v, g, LinearAttentionState(s), write_BTH=write, **options)


def repeated(q, k, *rest, **options):
    """One query and key per head, by hand."""
    return run(*(x.repeat_interleave(H // x.shape[2], dim=2) for x in (q, k)), *rest, **options)


@pytest.mark.parametrize("groups", [1, 2, 3, 6])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("T", [1, 70])
def test_groups_are_shared_queries_and_keys(backend, groups, T):
    """With all gradients, those of a group summed over its heads; and a step without."""
    x = inputs(T, groups)
    want = comparison.everything([t.double() for t in x], repeated, NAMES)
    got = comparison.everything(x, lambda *t: run(*t, backend=backend), NAMES)
    comparison.assert_same(got, want, tolerance=1e-5)
    with torch.no_grad():
        out, state = run(*x, backend=backend)
    torch.testing.assert_close(out.double(), want["output"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(state.s_BHKV.double(), want["state.s_BHKV"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("T", [1, 9])
def test_decays_and_writes_may_be_left_out(backend, T):
    """None is 0 and 1, one decay per head is that decay at every step, and decays above 0 are 0."""
    q, k, v, g, _, s = inputs(T)
    state, g_H = LinearAttentionState(s), g[0, 0]
    with torch.no_grad():
        for given, same in ((None, torch.zeros_like(g)), (g_H, g_H.expand_as(g)), (-g, torch.zeros_like(g))):
            out, after = linear_attention(q, k, v, given, state, backend=backend)
            want, exact = run(q, k, v, same, torch.ones_like(g), s, backend="recurrent")
            torch.testing.assert_close(out, want, rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(after, exact, rtol=1e-5, atol=1e-5)


def test_a_mean_of_values():
    """The normalizer divides by the sum of weights: equal values are their own mean."""
    q, k, v, *_ = inputs(groups=H)
    value = v[:1, :1, :1].expand_as(v)
    for backend in BACKENDS:
        out, _ = normalized_linear_attention(q.exp(), k.exp(), value, backend=backend)
        torch.testing.assert_close(out, value, rtol=1e-4, atol=1e-5)


def test_the_sigmoid_gate_of_a_decay():
    """In value, and in gradient also where it is 0 or shuts."""
    g = -torch.tensor([0.0, 1e-40, 1e-9, 1e-3, 1.0, 80.0, 1e4], dtype=torch.float64).float().requires_grad_()
    found = torch.nn.functional.logsigmoid(sigmoid_gate(g))
    torch.testing.assert_close(found, g, rtol=1e-6, atol=1e-29)
    (slope,) = torch.autograd.grad(found.sum(), g)
    torch.testing.assert_close(slope, torch.ones(7), rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_step_is_one_node(dtype):
    q, k, v, g, write, s = inputs(1)
    q, k, v = (x.to(dtype) for x in (q, k, v))
    graph, (out, _) = capture_step(lambda: run(q, k, v, g, write, s))
    assert len(graph.nodes) == 1
    assert out.dtype == dtype
    q, k = (x.repeat_interleave(H // G, dim=2) for x in (q, k))
    state = NormalizedState(s, s.square().sum(-1))
    graph, (out, _) = capture_step(lambda: normalized_linear_attention(q, k, v, state))
    assert len(graph.nodes) == 1
    assert out.dtype == dtype


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"k": torch.zeros(2, 9, 3, 5)}, "k is torch.float32 of shape"),
        ({"v": torch.zeros(2, 9, 5, 4)}, "q has 2 groups; they must divide the 5 heads of v"),
        ({"g": torch.zeros(5)}, "g is torch.float32 of shape"),
        ({"g": torch.zeros(2, 9, 1)}, "g is torch.float32 of shape"),
        ({"write": torch.zeros(6)}, "write is torch.float32 of shape"),
        ({"s": torch.zeros(2, 6, 4, 5)}, "s_BHKV of the state is"),
    ],
)
def test_errors(changes, message):
    given = dict(zip(NAMES, inputs(9), strict=True)) | changes
    with pytest.raises(ValueError, match=message):
        run(*given.values())


def test_the_normalized_form_has_no_groups():
    q, k, v, *_ = inputs(9)
    with pytest.raises(ValueError, match=r"q is torch\.float32 of shape"):
        normalized_linear_attention(q, k, v)
