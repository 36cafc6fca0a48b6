"""Every mixer keeps the contract about shapes, dtypes, states and backends; what does not fit costs one sentence."""

import re

import pytest
import torch
from mixer_cases import CONFIGS, WIDTH, assert_close, build, every, in_every_precision, inputs

from exlstm.mixers.state import detach, leaves, map_state, state_nbytes


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
