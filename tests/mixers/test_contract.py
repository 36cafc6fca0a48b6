"""Every mixer keeps the contract; a new one is tested by being in MIXERS."""

import itertools
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mixer_cases import CONFIGS, WIDTH, build, every, slow

from exlstm.mixers import MIXERS
from exlstm.mixers.state import detach, leaves, map_state, rows, state_nbytes

# float64 runs the definitions, float32 the kernels; how far two orders of summation may be apart in each
PRECISIONS = {torch.float64: 1e-9, torch.float32: 2e-4}
OURS = {name for name in CONFIGS if name in MIXERS or name.startswith(("mlstm", "slstm"))}
FIRST = {"mlstm", "mlstm_large", "slstm", "attention", "lstm"}


# By default the first mixers run through all tests in both precisions, and every other in float32, on its kernels; its
# definition is proven in tests/ops. Options of xLSTM's cells run through the tests of cuts, resets and padding, on
# their kernels; those of the rivals do among the slow tests.
in_every_precision, with_every_option = (
    pytest.mark.parametrize(
        ("name", "dtype"),
        [
            pytest.param(
                name,
                dtype,
                marks=slow(
                    name not in FIRST,
                    dtype == torch.float64 or name not in (OURS if options else MIXERS),
                ),
            )
            for name in CONFIGS
            for dtype in PRECISIONS
        ],
    )
    for options in (False, True)
)


def inputs(B=3, T=24, *, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(B, T, WIDTH, generator=generator, dtype=torch.float64).to(dtype)


def in_pieces(mixer, x, cuts, state=None):
    """The pieces between the cuts, one call each, the state handed on."""
    out = []
    for piece in x.split(cuts, dim=1):
        y, state = mixer(piece, state)
        out.append(y)
    return torch.cat(out, dim=1), state


def assert_close(got, want):
    tolerance = PRECISIONS[want.dtype]
    torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance)


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
@pytest.mark.parametrize("T", [1, 5])
def test_no_rows(name, T):
    """Empty results in the shapes that rows have, forward and backward, with all options and with none."""
    mixer, x = build(name, torch.float32), inputs(1, T, dtype=torch.float32)
    before = detach(mixer(x)[1])
    rows_given = {"reset_BT": torch.zeros(0, T, dtype=torch.bool), "lengths_B": torch.zeros(0, dtype=torch.long)}
    y, state = mixer(x, before)
    none = map_state(lambda t: t[:0], before)
    for given_state, options in ((None, {}), (none, {}), (none, rows_given)):
        with torch.no_grad():
            assert mixer(x[:0], given_state, **options)[0].shape == (0, T, WIDTH)
        z, after = mixer(x[:0], given_state, **options)
        assert z.shape == (0, *y.shape[1:])
        assert type(after) is type(state)
        z.sum().backward()
    for got, want in zip(leaves(after), leaves(state), strict=True):
        assert got.dtype == want.dtype
        assert got.shape == (0, *want.shape[1:])
    assert not any(p.grad.any() for p in mixer.parameters() if p.grad is not None)


def refused(call, *words):
    """A ValueError of one sentence with these words."""
    with pytest.raises(ValueError, match=r"\.$") as error:
        call()
    text = str(error.value)
    assert "\n" not in text
    assert ". " not in text
    assert all(word in text for word in words), text


@every
def test_states_of_other_dtypes(name):
    """Narrower numbers are read as what they are, wider ones and other devices are refused: of every tensor."""
    mixer, x = build(name, torch.float32), inputs(2, 6, dtype=torch.float32)
    _, state = mixer(x)
    for narrow in (torch.bfloat16, torch.float16):
        short = map_state(lambda t, to=narrow: t.to(to) if t.is_floating_point() else t, state)
        wide = map_state(lambda t: t.float() if t.is_floating_point() else t, short)
        for steps in (1, 6):
            with torch.no_grad():
                assert torch.equal(mixer(x[:, :steps], short)[0], mixer(x[:, :steps], wide)[0])
            assert torch.equal(mixer(x[:, :steps], short)[0], mixer(x[:, :steps], wide)[0])
    for number, leaf in enumerate(leaves(state)):
        if name in ("slstm no conv", "deltanet fast weights") and number == 0:
            continue  # the window of no steps, which nothing reads
        for wrong in (leaf.double(), leaf.to("meta")):
            parts = iter([*leaves(state)[:number], wrong, *leaves(state)[number + 1 :]])
            other = map_state(lambda _, parts=parts: next(parts), state)
            refused(lambda other=other: mixer(x, other), "of the state is", "must be")


@every
def test_inputs_that_do_not_fit(name):
    """Resets that are not bool, lengths that are not whole numbers, other shapes, a width of nothing: one sentence."""
    mixer, x = build(name, torch.float32), inputs(2, 6, dtype=torch.float32)
    for dtype in (torch.uint8, torch.int64, torch.float32):
        reset = torch.zeros(2, 6, dtype=dtype)
        refused(lambda reset=reset: mixer(x, reset_BT=reset), f"reset_BT is {reset.dtype}", "must be torch.bool")
    refused(lambda: mixer(x, reset_BT=[[False] * 6] * 2), "reset_BT is a list")
    refused(lambda: mixer(x, lengths_B=[6, 3]), "lengths_B is a list", "must be torch.int64 of shape (2,)")
    refused(lambda: mixer(x, lengths_B=torch.tensor([6.0, 3.5])), "lengths_B is torch.float32")
    short = mixer(x, lengths_B=torch.tensor([6, 3], dtype=torch.int32))[0]
    assert torch.equal(short, mixer(x, lengths_B=torch.tensor([6, 3]))[0])
    refused(lambda: mixer(x[:, :0]), "at least one step")
    refused(lambda: mixer(x[..., :-1]), "x has shape (2, 6, 31)", "[batch, time, 32]")
    refused(lambda: mixer(x[0]), "x has shape (6, 32)")
    for width in (0, -1, 2.5):
        refused(lambda width=width: CONFIGS[name].build(width), f"width is {width}", "at least 1")


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


@in_every_precision
@pytest.mark.parametrize("T", [1, 24])
def test_no_state_means_the_zero_state(name, dtype, T):
    mixer, x = build(name, dtype), inputs(2, T, dtype=dtype)
    zero = mixer.zero_state(2)
    y, state = mixer(x, zero)
    assert_close(y, mixer(x)[0])
    assert type(zero) is type(state)
    for a, b, there in zip(leaves(zero), leaves(state), leaves(mixer.zero_state(2, torch.device("meta"))), strict=True):
        assert a.dtype == b.dtype == there.dtype
        assert a.shape == there.shape
        assert there.device.type == "meta"
        assert a.shape[0] == b.shape[0] == 2
        assert not a.any()


@every
@pytest.mark.parametrize("T", [1, 3, 24])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_state_bytes_are_the_real_ones(name, dtype, T):
    mixer = build(name, dtype)
    _, state = mixer(inputs(2, T, dtype=dtype))
    assert state_nbytes(state) == 2 * mixer.state_bytes(T)
    for _ in range(3):
        _, state = mixer(inputs(2, 1, dtype=dtype), state)
    assert state_nbytes(state) == 2 * mixer.state_bytes(T + 3)
    assert mixer.state_bytes() == mixer.state_bytes(0)


def float_dtypes(state):
    return {t.dtype for t in leaves(state) if t.is_floating_point()}


@every
def test_states_are_float32_or_wider(name):
    """Under every precision, but for the cache of attention, which holds what it was given as it was given."""
    keeps = name.startswith("attention")
    mixer = build(name, torch.float32)
    assert float_dtypes(mixer(inputs(dtype=torch.float32))[1]) == {torch.float32}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, state = mixer(inputs(dtype=torch.float32))
        z, again = mixer(inputs(dtype=torch.float32), state)
    assert float_dtypes(state) == float_dtypes(again) == {torch.bfloat16 if keeps else torch.float32}
    assert torch.isfinite(y).all()
    assert torch.isfinite(z).all()
    mixer = build(name, torch.bfloat16)
    y, state = mixer(inputs(dtype=torch.bfloat16))
    assert y.dtype == torch.bfloat16
    assert float_dtypes(state) == {torch.bfloat16 if keeps else torch.float32}
    assert float_dtypes(build(name)(inputs())[1]) == {torch.float64}


@every
@pytest.mark.parametrize("mode", ["bfloat16", "autocast"])
def test_half_the_bits_give_about_the_same(name, mode):
    """Forward and gradients stay near those of float64; a gate computed in bfloat16 would not, over 60 steps.

    Judged is arithmetic: the weights are rounded for both, since a pole rounded to 8 bits turns to another place.
    """
    if name == "slstm relu":
        pytest.skip("log relu has no bound to its slope: next to its corner no bit is too small to matter")
    exact, x = build(name), inputs(2, 60)
    if mode == "bfloat16":
        exact = exact.bfloat16().double()
    want, _ = exact(x)
    want.sum().backward()
    mixer = build(name, torch.bfloat16 if mode == "bfloat16" else torch.float32)
    if mode == "bfloat16":
        y, _ = mixer(x.bfloat16())
    else:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y, _ = mixer(x.float())
    y.sum().backward()
    assert (y - want).norm() <= 0.03 * want.norm()
    largest = max(p.grad.norm() for p in exact.parameters())
    for (key, a), b in zip(exact.named_parameters(), mixer.parameters(), strict=True):
        assert (b.grad - a.grad).norm() <= 0.05 * a.grad.norm() + 0.01 * largest, key


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


def backends_of(mixer, x):
    """The backends of the mixer's op that run here, as its error lists them, "auto" among them."""
    mixer.backend = "cuda"
    with pytest.raises(ValueError, match="no backend 'cuda'") as error:
        mixer(x)
    found = []
    for backend in re.findall(r"'(\w+)'", str(error.value))[1:]:
        mixer.backend = backend
        try:
            mixer(x)
        except ValueError as obstacle:
            if "cannot run" not in str(obstacle):
                raise
        else:
            found.append(backend)
    return found


@every
def test_backends_agree(name):
    """float32: the one dtype that all of them take."""
    mixer, x = build(name, torch.float32), inputs(3, 70, dtype=torch.float32)
    if not hasattr(mixer, "backend"):
        return
    assert mixer.backend == "auto"
    backends = backends_of(mixer, x)
    assert len(backends) >= 3, backends
    reset, lengths = torch.rand(3, 70) < 0.05, torch.tensor([70, 41, 0])
    runs = []
    for backend in backends:
        mixer.backend = backend
        mixer.zero_grad()
        y, state = mixer(x, reset_BT=reset, lengths_B=lengths)
        y.sum().backward()
        runs.append([y, *leaves(state), *(p.grad for p in mixer.parameters())])
    largest = max(t.norm() for t in runs[0] if t.is_floating_point())
    for run in runs[1:]:
        for got, want in zip(run, runs[0], strict=True):
            if want.is_floating_point():
                assert (got - want).norm() <= 1e-3 * want.norm() + 1e-6 * largest
            else:
                assert torch.equal(got, want)
