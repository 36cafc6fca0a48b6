"""The convolution's kernel on a CPU against the torch form, in float64 and as accurate as in float32."""

from concurrent.futures import ThreadPoolExecutor
from functools import partial

import comparison
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from accuracy import DRAWS, assert_as_accurate
from exlstm.ops.conv import ConvState, causal_conv
from exlstm.ops.conv import numba as numba_conv

NAMES = ("x", "w", "b", "past")


def make(B=2, T=20, D=5, W=4, *, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for shape in ((B, T, D), (D, W), (D,), (B, W - 1, D))]


def call(*x, **options):
    return causal_conv(*x[:3], ConvState(x[3]), **options)


numba = partial(call, backend="numba")
definition = partial(call, backend="torch")
everything = partial(comparison.everything, names=NAMES)


def assert_equal(got, want):
    for name, tensor in want.items():
        torch.testing.assert_close(got[name], tensor, rtol=0, atol=0, msg=name)


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_any_shape_is_the_definition(data):
    """Shapes, windows also longer than the sequence, resets, lengths, both activations, pieces of any length."""
    sizes = st.integers(1, 3), st.integers(1, 40), st.integers(1, 19), st.integers(1, 6)
    B, T, D, W = (data.draw(size) for size in sizes)
    seed, share = data.draw(st.integers(0, 999)), data.draw(st.sampled_from([None, 0.1, 0.5, 1.0]))
    lengths = data.draw(st.none() | st.lists(st.integers(0, T), min_size=B, max_size=B))
    resets = torch.rand(B, T, generator=torch.Generator().manual_seed(seed))
    options = {
        "reset_BT": None if share is None else resets < share,
        "lengths_B": None if lengths is None else torch.tensor(lengths, dtype=torch.int32),
        "activation": data.draw(st.sampled_from(["none", "silu"])),
    }
    x = make(B, T, D, W, seed=seed)
    want = everything([t.double() for t in x], partial(definition, **options))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(numba_conv, "ITEM_STEPS", data.draw(st.sampled_from([1, 2, 7, 128])))
        got = everything(x, partial(numba, **options))
    # one unit for all: the gradient of a single weight may be a sum of which next to nothing is left
    unit = max(float(t.abs().max()) for t in want.values() if t.numel())
    for name, tensor in want.items():
        torch.testing.assert_close(got[name].double(), tensor, rtol=0, atol=1e-5 * unit, msg=name)


@pytest.mark.parametrize("activation", ["none", "silu"])
def test_accuracy_at_a_real_size(activation):
    draws, options = (make(2, 700, 64, seed=seed) for seed in DRAWS), {"activation": activation}
    assert_as_accurate(partial(numba, **options), partial(definition, **options), draws, names=NAMES)


def test_accuracy_of_long_sums():
    """Gradients of the weights are sums over all steps, here of numbers of one sign."""
    x = [t.abs() for t in make(1, numba_conv.ITEM_STEPS, 256)]
    dy = torch.rand(x[0].shape)
    want, plain, got = (
        torch.autograd.grad(run(*(t.requires_grad_() for t in inputs))[0], inputs[1:3], dy.to(inputs[0].dtype))
        for run, inputs in ((definition, [t.double() for t in x]), (definition, x), (numba, x))
    )
    for exact, allowed, found in zip(want, plain, got, strict=True):
        errors = [((form - exact) / exact).abs().mean() for form in (found, allowed)]
        assert errors[0] <= 2 * errors[1], errors


@pytest.mark.parametrize("far", [30.0, 200.0])
def test_far_from_zero(far):
    """There silu is x or nothing, and its derivative 1 or nothing."""
    x = make(1, 8, 5, 1)
    x[0] = torch.linspace(-far, far, 40).view(1, 8, 5)
    want = everything([t.double() for t in x], partial(definition, activation="silu"))
    comparison.assert_same(everything(x, partial(numba, activation="silu")), want, tolerance=1e-6)


def halves(x):
    return torch.cat([x, -x], dim=-1).chunk(2, dim=-1)[0]


@pytest.mark.parametrize(
    "apart",
    [
        halves,
        lambda x: torch.stack([x, -x], dim=-1)[..., 0],
        lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
        lambda x: x.mT.contiguous().mT,
    ],
    ids=["half", "channels apart", "time first", "channels first"],
)
def test_inputs_that_are_not_contiguous(apart):
    x = make()
    want = everything(x, partial(numba, activation="silu"))
    assert not apart(x[0]).is_contiguous()
    got = everything(x, lambda x, *rest: numba(apart(x), *rest, activation="silu"))
    assert_equal(got, want)
    got = everything(x, lambda *x: numba(x[0], x[1].mT.contiguous().mT, x[2], apart(x[3]), activation="silu"))
    assert_equal(got, want)


def test_half_of_a_tensor_is_not_copied():
    """What is kept for the backward is x itself, where it was: no more memory than the inputs have."""
    x, kept = [t.requires_grad_() for t in make(2, 50)], []
    half = halves(x[0])

    def keep(t):
        kept.append(t.untyped_storage().data_ptr())
        return t

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        numba(half, *x[1:], activation="silu")
    assert set(kept) <= {t.untyped_storage().data_ptr() for t in (half, *x[1:])}


@pytest.mark.parametrize(
    "gradient", [torch.ones(()).expand(2, 20, 5), torch.ones(2, 20, 10)[..., ::2], torch.ones(2, 5, 20).mT]
)
def test_gradients_that_are_not_contiguous(gradient):
    x = [t.requires_grad_() for t in make()]
    y, _ = numba(*x, activation="silu")
    want = torch.autograd.grad(y, x, torch.ones(2, 20, 5), retain_graph=True)
    for got, expected in zip(torch.autograd.grad(y, x, gradient), want, strict=True):
        assert torch.equal(got, expected)


def test_threads_change_nothing(monkeypatch):
    """Any number of threads, and several callers at once."""
    x, run = make(3, 300, 160), partial(numba, activation="silu")
    monkeypatch.setattr("exlstm.runtime.cpu.launch.THREAD_US", 1e-6)
    results = []
    for threads in (1, 2, 5):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        results.append(everything(x, run))
    with ThreadPoolExecutor(3) as callers:
        results += callers.map(lambda _: everything(x, run), range(6))
    for result in results[1:]:
        assert_equal(result, results[0])


def test_items_change_nothing_but_the_sums(monkeypatch):
    x, run = make(2, 40), partial(numba, activation="silu", reset_BT=torch.rand(2, 40) < 0.1)
    want = everything(x, run)
    monkeypatch.setattr(numba_conv, "ITEM_STEPS", 3)
    got = everything(x, run)
    for name in ("gradient of w", "gradient of b"):
        torch.testing.assert_close(got.pop(name), want.pop(name))
    assert_equal(got, want)


def test_what_comes_in_is_left_as_it_was():
    x = [t.requires_grad_() for t in make()]
    before = [t.detach().clone() for t in x]
    y, state = numba(*x, activation="silu")
    grads = [torch.randn_like(t) for t in (y, state.past_BSD)]
    grads_before = [t.clone() for t in grads]
    torch.autograd.backward((y, state.past_BSD), grads)
    for now, then in zip([*x, *grads], [*before, *grads_before], strict=True):
        assert torch.equal(now.detach(), then)


def test_one_step_without_gradients_is_the_same():
    x = make(3, 1)
    with torch.no_grad():
        y, state = numba(*x, activation="silu")
    want = everything(x, partial(numba, activation="silu"))
    assert torch.equal(y, want["output"])
    assert torch.equal(state.past_BSD, want["state.past_BSD"])


def test_lengths_beyond_the_sequence_are_its_end():
    x = make()
    got = everything(x, partial(numba, lengths_B=torch.tensor([99, 20])))
    assert_equal(got, everything(x, numba))
