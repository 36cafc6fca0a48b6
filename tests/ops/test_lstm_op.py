"""The LSTM against torch.nn.LSTM, one sequence at a time."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from exlstm.ops.fused import borders
from exlstm.ops.lstm import LSTMState, lstm
from exlstm.runtime.backend import Choice, recorded


def make(B=3, T=9, D=4, V=5, *, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    shapes = [(B, T, D), (4 * V, D), (4 * V, V), (4 * V,), (B, V), (B, V)]
    x, w, u, b, h, c = (torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes)
    return x, w, u, b, LSTMState(h, c)


def by_torch(x, w, u, b, state):
    layer = torch.nn.LSTM(w.shape[1], u.shape[1], batch_first=True, dtype=x.dtype)
    with torch.no_grad():
        for parameter, value in zip(layer.parameters(), (w, u, b, torch.zeros_like(b)), strict=True):
            parameter.copy_(value)
        y, (h, c) = layer(x, (state.h_BV[None], state.c_BV[None]))
    return y, LSTMState(h[0], c[0])


@settings(max_examples=30)
@given(
    lengths=st.none() | st.lists(st.integers(0, 9), min_size=3, max_size=3), share=st.sampled_from([None, 0.2, 1.0]),
    seed=st.integers(0, 2**31), backend=st.sampled_from(["fused", "recurrent"]),
)  # fmt: skip
def test_resets_and_lengths_are_separate_sequences(lengths, share, seed, backend):
    x, w, u, b, state = make(seed=seed)
    reset = None if share is None else torch.rand(3, 9, generator=torch.Generator().manual_seed(seed)) < share
    ends = [9, 9, 9] if lengths is None else lengths
    rows = {"reset_BT": reset, "lengths_B": None if lengths is None else torch.tensor(lengths)}
    y, after = lstm(x, w, u, b, state, **rows, backend=backend)
    for row, length in enumerate(ends):
        one = LSTMState(*(t[row : row + 1] for t in state))
        assert not y[row, length:].any()
        starts = [t for t in range(1, length) if reset is not None and reset[row, t]]
        borders = [0, *starts, length]
        for start, end in itertools.pairwise(borders):
            if end > start:
                if reset is not None and reset[row, start]:
                    one = LSTMState(*(torch.zeros_like(t) for t in one))
                want, one = by_torch(x[row : row + 1, start:end], w, u, b, one)
                torch.testing.assert_close(y[row : row + 1, start:end], want, rtol=1e-10, atol=1e-12)
        for got, want in zip(after, one, strict=True):
            torch.testing.assert_close(got[row : row + 1], want, rtol=1e-10, atol=1e-12)


def test_gradients():
    x, w, u, b, state = make(2, 4, 2, 2)
    reset = torch.tensor([[False, False, True, False], [False] * 4])

    def function(x, w, u, b, h, c):
        y, after = lstm(x, w, u, b, LSTMState(h, c), reset_BT=reset, lengths_B=torch.tensor([4, 3]))
        return y, *after

    assert torch.autograd.gradcheck(function, [t.requires_grad_() for t in (x, w, u, b, *state)])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("K", [8, 4])
def test_a_step_is_the_definition(K, dtype):
    """Dense and in blocks: as accurate as torch's kernel, against the definition in float64."""
    x, w, _, b, state = make(3, 1, 6, 8, dtype=dtype)
    u = torch.randn(32, K).to(dtype)
    state = LSTMState(*(t.float() for t in state))
    exact_state = LSTMState(*(t.double() for t in state))
    want, last = lstm(*(t.double() for t in (x, w, u, b)), exact_state, backend="recurrent")
    torch.testing.assert_close(lstm(*(t.double() for t in (x, w, u, b)), exact_state, backend="fused")[0], want)
    with torch.no_grad(), recorded() as choices:
        y, after = lstm(x, w, u, b, state)
    why = "a single step needs no kernel"
    assert choices[0] == Choice("lstm", "recurrent", f"not numba: {why}; not fused: {why}")
    # what is read as few rows is read as it is stored
    assert {c.backend for c in choices[1:]} == {"numba"}
    for got, exact in zip((y, *after), (want, *last), strict=True):
        torch.testing.assert_close(got, exact.to(got.dtype), rtol=1e-5, atol=1e-5)


def test_cuts():
    reset = torch.zeros(2, 6, dtype=torch.bool)
    assert borders(6, None, None) == [0, 6]
    reset[1, 2] = reset[0, 0] = True
    assert borders(6, reset, torch.tensor([9, 4])) == [0, 2, 4, 6]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_computed_wide(dtype):
    """bfloat16 goes in and comes out; in between everything is float32, as if the rounded input were."""
    x, w, u, b, state = make(dtype=dtype)
    wide = torch.promote_types(dtype, torch.float32)
    state = LSTMState(*(t.to(wide) for t in state))
    y, after = lstm(x, w, u, b, state)
    assert y.dtype == dtype
    assert {t.dtype for t in after} == {wide}
    want, _ = by_torch(*(t.to(wide) for t in (x, w, u, b)), state)
    torch.testing.assert_close(y, want.to(dtype), rtol=1e-6, atol=1e-6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(lstm(x, w, u, b, state)[0], y, rtol=0, atol=0)
