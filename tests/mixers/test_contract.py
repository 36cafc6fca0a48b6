"""Every mixer keeps the contract over time: cuts, resets, lengths, padding; a new one is tested by being in MIXERS."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mixer_cases import PRECISIONS, assert_close, build, every, in_every_precision, inputs, with_every_option

from exlstm.mixers.state import detach, leaves, map_state, rows


def in_pieces(mixer, x, cuts, state=None):
    """The pieces between the cuts, one call each, the state handed on."""
    out = []
    for piece in x.split(cuts, dim=1):
        y, state = mixer(piece, state)
        out.append(y)
    return torch.cat(out, dim=1), state


def assert_same_memory(mixer, got, want):
    """Two states that nothing that follows can tell apart."""
    z = inputs(leaves(want)[0].shape[0], 7, dtype=next(mixer.parameters()).dtype, seed=5)
    assert_close(mixer(z, got)[0], mixer(z, want)[0])


@with_every_option
@pytest.mark.parametrize("cuts", [[5, 1, 18], *(pytest.param(c, marks=pytest.mark.slow) for c in ([1] * 24, [23, 1]))])
def test_cutting_time_changes_nothing(name, dtype, cuts):
    mixer, x = build(name, dtype), inputs(dtype=dtype)
    y, state = mixer(x)
    z, after = in_pieces(mixer, x, cuts)
    assert_close(z, y)
    for got, want in zip(leaves(after), leaves(state), strict=True):
        if want.is_floating_point():
            assert_close(got, want)
        else:
            assert torch.equal(got, want)


@every
def test_cutting_time_across_chunks(name):
    """Longer than a chunk of the mLSTM, and cut off its grid."""
    mixer, x = build(name), inputs(1, 150)
    assert_close(in_pieces(mixer, x, [70, 1, 79])[0], mixer(x)[0])


@with_every_option
def test_gradients_flow_through_the_cut(name, dtype):
    """Of the input and of every parameter; and each parameter has one, so that none is there for nothing."""
    mixer, weights = build(name, dtype), inputs(seed=3, dtype=dtype)
    gradients = []
    for cuts in ([24], [9, 1, 14]):
        x = inputs(dtype=dtype).requires_grad_()
        mixer.zero_grad()
        (in_pieces(mixer, x, cuts)[0] * weights).sum().backward()
        gradients.append({"x": x.grad} | {key: p.grad.clone() for key, p in mixer.named_parameters()})
    largest = max(want.abs().max() for want in gradients[0].values())
    for key, want in gradients[0].items():
        # with one step to look at, neither query nor key decides anything
        assert want.abs().max() > 1e-9 * largest or (name == "attention window of 1" and key[0] in "qk"), key
        # rounding is as large as the terms of a sum, which in a gradient of gates nearly cancel
        size = want.abs().max() if dtype == torch.float64 else want.abs().max() + 0.1 * largest
        assert (gradients[1][key] - want).abs().max() <= PRECISIONS[dtype] * size + 1e-12 * largest, key


@in_every_precision
def test_causal(name, dtype):
    mixer, x = build(name, dtype), inputs(2, 20, dtype=dtype)
    y, _ = mixer(x)
    other = x.clone()
    other[:, 12:] += 10.0
    assert torch.equal(mixer(other)[0][:, :12], y[:, :12])
    x.requires_grad_()
    mixer(x)[0][:, 11].sum().backward()
    assert not x.grad[:, 12:].any()
    assert x.grad[:, 11].any(-1).all()


@every
def test_what_was_seen_matters(name):
    """A mixer that forgot its state would pass everything about causality. A window of one step has no past."""
    mixer, x = build(name), inputs(2, 6)
    other = x.clone()
    other[:, 4 if name.startswith("rwkv_channel") else 3] += 1.0
    assert torch.equal(mixer(other)[0][:, 5], mixer(x)[0][:, 5]) == (name == "attention window of 1")


@in_every_precision
def test_rows_are_independent_and_states_batch_first(name, dtype):
    mixer, x = build(name, dtype), inputs(4, 12, dtype=dtype)
    _, state = mixer(x[:, :8])
    picked = torch.tensor([2, 0, 2])
    y, _ = mixer(x[picked, 8:], rows(state, picked))
    assert_close(y, mixer(x)[0][picked, 8:])
    loud = x.clone()
    loud[1] *= 100
    assert_close(mixer(loud)[0][[0, 2, 3]], mixer(x)[0][[0, 2, 3]])


@in_every_precision
def test_nothing_is_changed_in_place(name, dtype):
    """Neither inputs, nor the state that went in, nor the one that came out, by later steps or a backward."""
    mixer, x = build(name, dtype), inputs(2, 12, dtype=dtype)
    reset, lengths = torch.rand(2, 12) < 0.3, torch.tensor([9, 12])
    weights = [p.detach().clone() for p in mixer.parameters()]
    _, state = mixer(x)
    kept = [x, reset, lengths, *leaves(state)]
    before = [t.detach().clone() for t in kept]
    for options in ({}, {"reset_BT": reset}, {"lengths_B": lengths}, {"reset_BT": reset, "lengths_B": lengths}):
        y, after = mixer(x, detach(state), **options)
        one, _ = mixer(x[:, :1], after)
        (y.sum() + one.sum()).backward()
    assert all(torch.equal(a, b) for a, b in zip(kept, before, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(mixer.parameters(), weights, strict=True))


@with_every_option
def test_resets_are_separate_sequences(name, dtype):
    """Documents packed into one row, in one batch with others, give what each gives alone."""
    mixer, x = build(name, dtype), inputs(dtype=dtype)
    reset = torch.rand(3, 24, generator=torch.Generator().manual_seed(2)) < 0.15
    reset[0, 0] = reset[1, 23] = reset[2, 3] = reset[2, 4] = True
    _, before = mixer(inputs(seed=8, dtype=dtype))
    y, state = mixer(x, before, reset_BT=reset)
    for row in range(3):
        alone = None if reset[row, 0] else rows(before, torch.tensor([row]))
        starts = [0, *(t for t in range(1, 24) if reset[row, t]), 24]
        for start, end in itertools.pairwise(starts):
            alone = None if start else alone
            z, alone = mixer(x[row : row + 1, start:end], alone)
            assert_close(y[row : row + 1, start:end], z)
        assert_same_memory(mixer, rows(state, torch.tensor([row])), alone)


@with_every_option
def test_padding_changes_nothing(name, dtype):
    """Ragged rows in one batch give what each gives alone, and y = 0 beyond their ends."""
    mixer, x = build(name, dtype), inputs(4, dtype=dtype)
    lengths = [24, 0, 1, 7]
    reset = torch.rand(4, 24, generator=torch.Generator().manual_seed(2)) < 0.1
    for row, length in enumerate(lengths):
        x[row, length:] = 100 * torch.randn_like(x[row, length:])
        reset[row, length:] = True
    _, before = mixer(inputs(4, seed=8, dtype=dtype))
    y, state = mixer(x, before, reset_BT=reset, lengths_B=torch.tensor(lengths))
    for row, length in enumerate(lengths):
        alone = rows(before, torch.tensor([row]))
        assert not y[row, length:].any()
        if length:
            z, alone = mixer(x[row : row + 1, :length], alone, reset_BT=reset[row : row + 1, :length])
            assert_close(y[row : row + 1, :length], z)
        assert_same_memory(mixer, rows(state, torch.tensor([row])), alone)


def trained(mixer, x, state, **rows):
    """The output, the state, and the gradients of x, of the state before and of every parameter."""
    x, state = x.clone().requires_grad_(), map_state(lambda t: t.detach().clone(), state)
    floats = [t.requires_grad_() for t in leaves(state) if t.is_floating_point()]
    y, after = mixer(x, state, **rows)
    wanted = [x, *floats, *mixer.parameters()]
    outputs = [out for out in (y, *leaves(after)) if out.requires_grad]
    gradients = torch.autograd.grad(outputs, wanted, [torch.ones_like(out) for out in outputs], allow_unused=True)
    return [y, *leaves(after), *(g for g in gradients if g is not None)]


@in_every_precision
def test_padding_may_be_anything(name, dtype):
    """NaN and infinity there reach neither outputs, nor states, nor the gradient of anything."""
    mixer, x = build(name, dtype), inputs(4, 9, dtype=dtype)
    lengths = torch.tensor([9, 0, 1, 7])
    reset = torch.rand(4, 9, generator=torch.Generator().manual_seed(2)) < 0.1
    _, before = mixer(inputs(4, 5, seed=8, dtype=dtype))
    found = []
    for noise in (0.0, torch.nan, torch.inf):
        x[torch.arange(9) >= lengths[:, None]] = noise
        found.append(trained(mixer, x, before, reset_BT=reset, lengths_B=lengths))
    assert all(t.isfinite().all() for t in found[0])
    for other in found[1:]:
        for got, want in zip(other, found[0], strict=True):
            assert torch.equal(got, want)


@every
@settings(max_examples=12)
@given(
    cut=st.integers(1, 9), seed=st.integers(0, 2**31), share=st.sampled_from([0.0, 0.2, 1.0]),
    lengths=st.lists(st.integers(0, 10), min_size=2, max_size=2),
)  # fmt: skip
def test_resets_lengths_and_cuts_together(name, cut, seed, share, lengths):
    """A ragged batch that is cut anywhere, with resets anywhere, some rows already over."""
    mixer, x, ends = build(name), inputs(2, 10, seed=seed), torch.tensor(lengths)
    reset = torch.rand(2, 10, generator=torch.Generator().manual_seed(seed)) < share
    y, state = mixer(x, reset_BT=reset, lengths_B=ends)
    y1, middle = mixer(x[:, :cut], reset_BT=reset[:, :cut], lengths_B=ends.clamp(max=cut))
    y2, after = mixer(x[:, cut:], middle, reset_BT=reset[:, cut:], lengths_B=(ends - cut).clamp(min=0))
    assert_close(torch.cat([y1, y2], dim=1), y)
    assert_same_memory(mixer, after, state)


@in_every_precision
def test_a_reset_at_the_first_step_is_a_fresh_start(name, dtype):
    mixer, x = build(name, dtype), inputs(2, 9, dtype=dtype)
    reset = torch.zeros(2, 9, dtype=torch.bool)
    reset[:, 0] = True
    _, state = mixer(100 * x)
    y, after = mixer(x, state, reset_BT=reset)
    z, fresh = mixer(x)
    assert_close(y, z)
    assert_same_memory(mixer, after, fresh)


@every
def test_detach_stops_gradients(name):
    mixer, x = build(name), inputs(2, 6).requires_grad_()
    _, state = mixer(x)
    y, _ = mixer(inputs(2, 3, seed=4), detach(state))
    y.sum().backward()
    assert x.grad is None
    if name != "attention window of 1":
        y, _ = mixer(inputs(2, 3, seed=4), state)
        y.sum().backward()
        assert x.grad.any()
