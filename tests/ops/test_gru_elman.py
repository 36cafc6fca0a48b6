"""The GRU and the Elman net against torch.nn.GRU and torch.nn.RNN, one sequence at a time."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from exlstm.ops.elman import ElmanState, elman
from exlstm.ops.fused import dense_recurrence
from exlstm.ops.gru import GRUState, gru

GATES = {"gru": 3, "elman": 1}
every = pytest.mark.parametrize("name", GATES)


def make(name, B=3, T=9, D=4, V=6, K=6, *, seed=0, dtype=torch.float64):
    """x, the weights W, U and b, with c of the GRU, and h. K: units of a head."""
    generator = torch.Generator().manual_seed(seed)
    G = GATES[name] * V
    shapes = [(B, T, D), (G, D), (G, K), (G,), *([(V,)] if name == "gru" else []), (B, V)]
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]


def run(name, *x, **options):
    op, state = (gru, GRUState) if name == "gru" else (elman, ElmanState)
    return op(*x[:-1], state(x[-1]), **options)


def by_torch(name, x, w, u, b, *rest):
    """torch's own layer, with c in its second bias."""
    *c, h = rest
    V, D = h.shape[1], w.shape[1]
    layer = (torch.nn.GRU if name == "gru" else torch.nn.RNN)(D, V, batch_first=True, dtype=x.dtype)
    inner = torch.cat([torch.zeros(2 * V, dtype=b.dtype), *c]) if c else torch.zeros_like(b)
    with torch.no_grad():
        values = w, dense_recurrence(u, GATES[name]), b, inner
        for parameter, value in zip(layer.parameters(), values, strict=True):
            parameter.copy_(value)
        y, last = layer(x, h[None])
    return y, last[0]


@every
@settings(max_examples=30)
@given(
    lengths=st.none() | st.lists(st.integers(0, 9), min_size=3, max_size=3),
    share=st.sampled_from([None, 0.2, 1.0]),
    seed=st.integers(0, 2**31),
    backend=st.sampled_from(["fused", "recurrent"]),
    K=st.sampled_from([6, 3, 2]),
)
def test_resets_and_lengths_are_separate_sequences(name, lengths, share, seed, backend, K):
    x, *weights, h = make(name, K=K, seed=seed)
    reset = None if share is None else torch.rand(3, 9, generator=torch.Generator().manual_seed(seed)) < share
    ends = [9, 9, 9] if lengths is None else lengths
    rows = {"reset_BT": reset, "lengths_B": None if lengths is None else torch.tensor(lengths)}
    y, (after,) = run(name, x, *weights, h, **rows, backend=backend)
    for row, length in enumerate(ends):
        one = h[row : row + 1]
        assert not y[row, length:].any()
        starts = [0, *(t for t in range(1, length) if reset is not None and reset[row, t]), length]
        for start, end in itertools.pairwise(starts):
            if end > start:
                if reset is not None and reset[row, start]:
                    one = torch.zeros_like(one)
                want, one = by_torch(name, x[row : row + 1, start:end], *weights, one)
                torch.testing.assert_close(y[row : row + 1, start:end], want, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(after[row : row + 1], one, rtol=1e-10, atol=1e-12)


@every
@pytest.mark.parametrize("backend", ["fused", "recurrent"])
def test_gradients(name, backend):
    x = make(name, 2, 4, 2, 4, 2)
    reset = torch.tensor([[False, False, True, False], [False] * 4])

    def function(*x):
        y, state = run(name, *x, reset_BT=reset, lengths_B=torch.tensor([4, 3]), backend=backend)
        return y, *state

    assert torch.autograd.gradcheck(function, [t.requires_grad_() for t in x])


@every
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("T", [1, 9])
def test_computed_wide(name, T, dtype):
    """bfloat16 goes in and comes out; in between everything is float32, as if the rounded input were."""
    *x, h = make(name, T=T, K=3, dtype=dtype)
    wide = torch.promote_types(dtype, torch.float32)
    with torch.no_grad():
        y, (after,) = run(name, *x, h.to(wide))
    assert y.dtype == dtype
    assert after.dtype == wide
    want, last = by_torch(name, *(t.to(wide) for t in (*x, h)))
    torch.testing.assert_close(y, want.to(dtype), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(after, last, rtol=1e-5, atol=1e-5)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        torch.testing.assert_close(run(name, *x, h.to(wide))[0], y, rtol=0, atol=0)
