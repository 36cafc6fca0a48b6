"""The mLSTM's scans over chunks on a CPU; `test_mlstm` has their accuracy, here is what is theirs alone."""

from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
import torch
from comparison import assert_same
from hypothesis import given, settings
from hypothesis import strategies as st
from mlstm_cases import NAMES, call, drawn, everything, make, output_and_gradients, resets, with_a_large_unit

from accuracy import assert_as_accurate
from exlstm.ops.mlstm.chunkwise import SPAN_CHUNKS

numba = partial(call, backend="numba")
definition = partial(call, backend="recurrent")


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_shape_is_the_definition(data):
    """Shapes, chunk lengths, resets, lengths, both input gates, with and without the normaliser."""
    x, options, chunk_len = drawn(data, longest=40, rows=3, heads=3)
    want = everything(x, partial(definition, **options))
    assert_same(
        everything([t.float() for t in x], partial(numba, chunk_len=chunk_len, **options)), want, tolerance=2e-4
    )


@pytest.mark.parametrize("T", [2 * SPAN_CHUNKS, 2 * SPAN_CHUNKS + 1, 4 * SPAN_CHUNKS + 1, 70])
def test_several_spans_and_a_remainder(T):
    """With chunks of 2 a span is 32 steps: whole spans, an incomplete one, and a last chunk of one step."""
    x, options = make(2, T, 2, 3, 4, gate=3.0, positive=True), {"reset_BT": resets(2, T, share=0.05)}
    want = everything(x, partial(definition, **options))
    got = everything([t.float() for t in x], partial(numba, chunk_len=2, **options))
    assert_same(got, want, tolerance=1e-4)


def test_accuracy_at_a_real_size():
    draws = (make(1, 200, 1, 64, 128, seed=seed, gate=2.0, dtype=torch.float32, positive=True) for seed in range(3))
    assert_as_accurate(numba, definition, draws, names=NAMES)


def test_a_unit_that_is_large():
    """Rounded anywhere but at the end, it would show in all that goes from chunk to chunk and from span to span, and in
    the gradients."""
    x = with_a_large_unit()
    want = output_and_gradients(definition, [t.double() for t in x])
    assert_same(output_and_gradients(partial(numba, chunk_len=2), x), want, tolerance=2e-5)


@pytest.mark.parametrize("f", [-1e15, torch.finfo(torch.float32).min, -torch.inf])
def test_a_forget_gate_that_closes_for_good(f):
    """In a sum with its neighbours such a number would swallow their digits."""
    x = make(2, 30, dtype=torch.float32, positive=True)
    x[4][:, [5, 18]] = f
    want = everything([t.double() for t in x], definition)
    assert_same(everything(x, partial(numba, chunk_len=8)), want, tolerance=2e-5)


@pytest.mark.parametrize("normalize", [True, False])
def test_a_mass_of_either_sign(normalize):
    """Far enough from zero that it divides well."""
    x = make(2, 60, 2, 4, 3, dtype=torch.float32, positive=True)
    x[0][:, ::3] *= -1
    options = {"normalize": normalize}
    want = everything([t.double() for t in x], partial(definition, **options))
    assert_same(everything(x, partial(numba, chunk_len=16, **options)), want, tolerance=2e-5)


def test_inputs_that_are_not_contiguous():
    x = make(2, 70, 3, 8, 8, dtype=torch.float32)
    apart = [torch.stack([t, -t], dim=-1)[..., 0] for t in x]
    assert not apart[0].is_contiguous()
    for name, got in everything(apart, numba).items():
        torch.testing.assert_close(got, everything(x, numba)[name], rtol=0, atol=0)


@pytest.mark.parametrize("number", range(3), ids=["q", "k", "v"])
def test_nan_in_padding_stays_there(number):
    x, lengths = make(2, 20, 2, 4, 4, dtype=torch.float32), torch.tensor([13, 20])
    want = everything(x, partial(numba, lengths_B=lengths, chunk_len=8))
    x[number][0, 13:] = torch.nan
    got = everything(x, partial(numba, lengths_B=lengths, chunk_len=8))
    for name, tensor in want.items():
        torch.testing.assert_close(got[name], tensor, rtol=0, atol=0, msg=name)


@pytest.mark.parametrize("number", range(5), ids=["q", "k", "v", "i", "f"])
def test_nan_shows(number):
    """From the step where it is on, in its own row; before that, and in other rows, nothing has happened."""
    x = make(2, 30, 2, 4, 4, dtype=torch.float32)
    want, _ = numba(*x, chunk_len=8)
    x[number][1, 18] = torch.nan
    got, _ = numba(*x, chunk_len=8)
    torch.testing.assert_close(got[0], want[0], rtol=0, atol=0)
    assert got[1, 18].isnan().all()
    # queries and keys of one chunk are multiplied before the later ones are hidden
    torch.testing.assert_close(got[1, :16], want[1, :16], rtol=0, atol=0)


def test_threads_change_nothing(monkeypatch):
    """Any number of threads, and several callers at once."""
    x = make(3, 200, 3, 16, 8, dtype=torch.float32)
    results = []
    for threads in (1, 2, 5):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
        results.append(everything(x, numba))
    with ThreadPoolExecutor(3) as callers:
        results += callers.map(lambda _: everything(x, numba), range(6))
    for result in results[1:]:
        for name, tensor in results[0].items():
            torch.testing.assert_close(result[name], tensor, rtol=0, atol=0, msg=name)


def test_torch_keeps_its_threads():
    before = torch.get_num_threads()
    everything(make(2, 20, 2, 4, 4, dtype=torch.float32), numba)
    assert torch.get_num_threads() == before


def test_what_comes_in_is_left_as_it_was():
    x = [t.requires_grad_(n < 7) for n, t in enumerate(make(2, 40, 2, 4, 3, dtype=torch.float32))]
    before = [t.detach().clone() for t in x]
    h_BTHV, state = numba(*x, chunk_len=16)
    grads = [torch.randn_like(t) for t in (h_BTHV, state.c_BHKV, state.n_BHK)]
    grads_before = [t.clone() for t in grads]
    torch.autograd.backward((h_BTHV, state.c_BHKV, state.n_BHK), grads)
    for now, then in zip([*x, *grads], [*before, *grads_before], strict=True):
        torch.testing.assert_close(now.detach(), then, rtol=0, atol=0)


def test_a_gradient_that_is_one_number_everywhere():
    """`h.sum().backward()` hands in a gradient without memory of its own."""
    x = [t.requires_grad_(n < 5) for n, t in enumerate(make(1, 20, 1, 3, 3, dtype=torch.float32))]
    h_BTHV, _ = numba(*x)
    h_BTHV.sum().backward(retain_graph=True)
    want = [t.grad.clone() for t in x[:5]]
    again = torch.autograd.grad(h_BTHV, x[:5], torch.ones_like(h_BTHV))
    for got, expected in zip(again, want, strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=0)


def test_memory_is_linear_in_time():
    """What is kept for the backward, per step, beyond what came in."""
    kept = {}
    for T in (1024, 4096):
        x = [t.requires_grad_(n < 5) for n, t in enumerate(make(1, T, 2, 16, 16, dtype=torch.float32))]
        own = {t.untyped_storage().data_ptr() for t in x}
        sizes = {}

        def keep(t, own=own, sizes=sizes):
            if t.untyped_storage().data_ptr() not in own:
                sizes[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
            return t

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            call(*x, backend="numba")
        kept[T] = sum(sizes.values()) / T
    # h, two log gates (each kept twice: by logsigmoid as well), a reset, and a state of K V + K + 2 in 1024 steps
    assert kept[4096] <= 4 * 2 * (16 + 4) + 8 + 4 * 2 * 16 * 18 / 1024 * 1.1
    assert kept[4096] <= 1.02 * kept[1024]
