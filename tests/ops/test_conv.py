"""The causal convolution against torch's Conv1d on a padded input; `test_conv_numba` has what is the kernel's alone."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import conv1d, pad, silu

from exlstm.ops.conv import ConvState, causal_conv
from exlstm.runtime.backend import recorded


def make(B=2, T=10, D=3, W=4, *, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    shapes = [(B, T, D), (D, W), (D,), (B, W - 1, D)]
    x, w, b, past = (torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes)
    return x, w, b, ConvState(past)


def by_torch(x, w, b, past):
    """The convolution of the past and x, as Conv1d would do it; `past` may be empty."""
    seen = pad(torch.cat([past, x], dim=1), (0, 0, w.shape[1] - 1 - past.shape[1], 0))
    return conv1d(seen.mT, w[:, None], b, groups=w.shape[0]).mT


@given(T=st.integers(1, 9), W=st.integers(1, 5), seed=st.integers(0, 2**31))
def test_against_conv1d(T, W, seed):
    x, w, b, state = make(T=T, W=W, seed=seed)
    y, after = causal_conv(x, w, b, state)
    torch.testing.assert_close(y, by_torch(x, w, b, state.past_BSD), rtol=1e-12, atol=1e-12)
    seen = torch.cat([state.past_BSD, x], dim=1)
    assert torch.equal(after.past_BSD, seen[:, T:])


def test_gradients():
    x, w, b, state = make(1, 4, 2)
    inputs = [t.requires_grad_() for t in (x, w, b, state.past_BSD)]
    reset_BT, lengths_B = torch.tensor([[False, True, False, False]]), torch.tensor([3])

    def function(x, w, b, past):
        y, after = causal_conv(x, w, b, ConvState(past), reset_BT=reset_BT, lengths_B=lengths_B)
        return y, after.past_BSD

    assert torch.autograd.gradcheck(function, inputs)


@given(cut=st.integers(1, 9), W=st.integers(1, 5), seed=st.integers(0, 2**31))
def test_cutting_time_changes_nothing(cut, W, seed):
    x, w, b, state = make(W=W, seed=seed)
    reset_BT = torch.rand(2, 10, generator=torch.Generator().manual_seed(seed)) < 0.2
    y, after = causal_conv(x, w, b, state, reset_BT=reset_BT)
    y1, middle = causal_conv(x[:, :cut], w, b, state, reset_BT=reset_BT[:, :cut])
    y2, end = causal_conv(x[:, cut:], w, b, middle, reset_BT=reset_BT[:, cut:])
    torch.testing.assert_close(torch.cat([y1, y2], dim=1), y, rtol=1e-12, atol=1e-12)
    assert torch.equal(end.past_BSD, after.past_BSD)


@given(
    lengths=st.lists(st.integers(0, 10), min_size=3, max_size=3), W=st.integers(1, 5), seed=st.integers(0, 2**31),
    share=st.sampled_from([0.0, 0.2, 1.0]),
)  # fmt: skip
def test_resets_and_lengths_are_separate_sequences(lengths, W, seed, share):
    """Each row, cut at its resets and its end, is a run of its own; the state is that of its last piece."""
    x, w, b, state = make(B=3, W=W, seed=seed)
    reset_BT = torch.rand(3, 10, generator=torch.Generator().manual_seed(seed)) < share
    y, after = causal_conv(x, w, b, state, reset_BT=reset_BT, lengths_B=torch.tensor(lengths))
    for row, length in enumerate(lengths):
        past = state.past_BSD[row : row + 1]
        borders = [0, *(t for t in range(1, length) if reset_BT[row, t]), length]
        for start, end in itertools.pairwise(borders):
            if end > start:
                piece = x[row : row + 1, start:end]
                past = past * 0 if reset_BT[row, start] else past
                torch.testing.assert_close(
                    y[row : row + 1, start:end], by_torch(piece, w, b, past), rtol=1e-12, atol=1e-12
                )
                past = pad(torch.cat([past, piece], dim=1), (0, 0, W, 0))[:, W + end - start :]
        assert torch.equal(after.past_BSD[row : row + 1], past)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_dtypes(dtype):
    """The output is like x; the state is float32 or wider, and going through it loses no digit."""
    x, w, b, _ = make(dtype=dtype)
    wide = torch.promote_types(dtype, torch.float32)
    zeros = ConvState(torch.zeros(2, 3, 3, dtype=wide))
    y, after = causal_conv(x, w, b, zeros)
    assert y.dtype == dtype
    assert after.past_BSD.dtype == wide
    _, middle = causal_conv(x[:, :6], w, b, zeros)
    assert torch.equal(causal_conv(x[:, 6:], w, b, middle)[0], y[:, 6:])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("options", [{}, {"reset_BT": torch.ones(2, 10, dtype=torch.bool)}])
def test_inputs_are_left_as_they_were(options, dtype):
    x, w, b, state = make(dtype=dtype)
    before = [t.clone() for t in (x, w, b, *state)]
    y, after = causal_conv(x, w, b, state, **options)
    y.fill_(7.0)
    assert all(torch.equal(a, c) for a, c in zip((x, w, b, *state), before, strict=True))
    assert not (after.past_BSD == 7).any()


@pytest.mark.parametrize("T", [1, 10])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_activation(dtype, T):
    """silu of the output, rounded to its dtype before and after, and of nothing else."""
    x, w, b, state = make(T=T, dtype=dtype)
    plain, after = causal_conv(x, w, b, state)
    y, same = causal_conv(x, w, b, state, activation="silu")
    assert torch.equal(y, silu(plain))
    assert torch.equal(same.past_BSD, after.past_BSD)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_nan_in_padding_stays_there(dtype):
    """Steps beyond the end give zero and get no gradient; nothing else knows what is there."""
    x, w, b, state = make(dtype=dtype)
    lengths_B, dy = torch.tensor([6, 0]), torch.randn(2, 10, 3, dtype=dtype)
    found = []
    for padding in (0.0, torch.nan):
        inputs = [t.clone().requires_grad_() for t in (x, w, b, state.past_BSD)]
        with torch.no_grad():
            inputs[0][0, 6:], inputs[0][1] = padding, padding
        y, after = causal_conv(*inputs[:3], ConvState(inputs[3]), lengths_B=lengths_B, activation="silu")
        assert (y[0, 6:] == 0).all()
        assert (y[1] == 0).all()
        found.append(
            [y, after.past_BSD, *torch.autograd.grad([y, after.past_BSD], inputs, [dy, torch.ones(2, 3, 3).to(dtype)])]
        )
    for got, want in zip(*found, strict=True):
        assert torch.equal(got, want)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_what_a_reset_cuts_off_may_be_anything(dtype):
    x, w, b, state = make(dtype=dtype)
    reset_BT = torch.zeros(2, 10, dtype=torch.bool).index_fill(1, torch.tensor([8]), True)
    want, end = causal_conv(x, w, b, state, reset_BT=reset_BT)
    x[:, :8] = torch.inf
    got, same = causal_conv(x, w, b, state, reset_BT=reset_BT)
    assert torch.equal(got[:, 8:], want[:, 8:])
    assert torch.equal(same.past_BSD, end.past_BSD)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"w": (4, 4)}, r"w is torch.float32 of shape \(4, 4\) on cpu; .* of shape \(3, 4\) on cpu\.$"),
        ({"b": (1,)}, r"b is torch.float32 of shape \(1,\) on cpu; .* of shape \(3,\)"),
        (
            {"past": (2, 2, 3)},
            r"past_BSD of the state is torch.float32 of shape \(2, 2, 3\) on cpu; .* of shape \(2, 3, 3\)",
        ),
        ({"reset_BT": (2, 9)}, r"reset_BT is torch.bool of shape \(2, 9\) on cpu; .* torch.bool of shape \(2, 10\)"),
        ({"lengths_B": (1,)}, r"lengths_B is torch.int64 of shape \(1,\) on cpu; .* torch.int64 of shape \(2,\)"),
    ],
)
def test_shapes_that_do_not_fit(change, message):
    """The kernel goes by addresses: what is too small would be read beyond its end."""
    shapes = {"w": (3, 4), "b": (3,), "past": (2, 3, 3)} | change
    dtypes = {"reset_BT": torch.bool, "lengths_B": torch.int64}
    tensors = {name: torch.zeros(shape, dtype=dtypes.get(name)) for name, shape in shapes.items()}
    w, b, past = (tensors.pop(name) for name in ("w", "b", "past"))
    with pytest.raises(ValueError, match=message):
        causal_conv(torch.zeros(2, 10, 3), w, b, ConvState(past), **tensors)


def test_an_activation_there_is_not():
    with pytest.raises(ValueError, match=r"^activation is 'gelu'; it must be 'none' or 'silu'\.$"):
        causal_conv(*make(), activation="gelu")


def test_backends():
    """Float32 on a CPU goes to Numba, with and without gradients, and all else to torch, which says why."""
    with recorded() as choices:
        for dtype in (torch.float32, torch.bfloat16):
            causal_conv(*make(dtype=dtype))
    assert [(c.op, c.backend) for c in choices] == [("conv", "numba"), ("conv", "torch")]
    assert choices[1].why == "not numba: it computes in float32 and there is bfloat16 in the input"
    with pytest.raises(ValueError, match="'numba' of conv cannot run: it computes in float32 and there is float64"):
        causal_conv(*make(), backend="numba")
    with pytest.raises(ValueError, match="conv has no backend 'triton'"):
        causal_conv(*make(), backend="triton")
