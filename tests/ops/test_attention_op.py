"""Attention against a plain loop over rows, steps and heads that keeps its memory in Python lists."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import scaled_dot_product_attention

from exlstm.ops.attention import attention, empty_window
from exlstm.ops.rope import rope


def make(B=2, T=12, H=4, G=2, K=4, *, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(B, T, heads, K, generator=generator, dtype=torch.float64).to(dtype) for heads in (H, G, G)]


def by_loop(q, k, v, reset, lengths, window):
    """One row and one step after another: a list of what has been seen since the last reset."""
    B, T, H, K = q.shape
    h = torch.zeros_like(q)
    for b in range(B):
        seen = []
        for t in range(int(lengths[b])):
            if reset[b, t]:
                seen = []
            position = torch.tensor([[len(seen)]])
            seen.append((rope(k[b : b + 1, t : t + 1], position)[0, 0], v[b, t]))
            turned = rope(q[b : b + 1, t : t + 1], position)[0, 0]
            keys = torch.stack([key for key, _ in seen[-(window or T) :]])
            values = torch.stack([value for _, value in seen[-(window or T) :]])
            for head in range(H):
                group = head // (H // k.shape[2])
                weight = torch.softmax(keys[:, group] @ turned[head] / K**0.5, dim=0)
                h[b, t, head] = weight @ values[:, group]
    return h


@settings(max_examples=40)
@given(
    T=st.integers(1, 12), window=st.none() | st.integers(1, 14), share=st.sampled_from([0.0, 0.2, 1.0]),
    lengths=st.none() | st.lists(st.integers(0, 12), min_size=3, max_size=3),
    cuts=st.lists(st.integers(1, 11), max_size=3), seed=st.integers(0, 2**31),
)  # fmt: skip
def test_against_the_loop(T, window, share, lengths, cuts, seed):
    """Any cuts, resets, lengths and windows. With lengths, the end of the last piece is ragged."""
    x = make(3, T, seed=seed)
    reset = torch.rand(3, T, generator=torch.Generator().manual_seed(seed)) < share
    ends = torch.full((3,), T) if lengths is None else torch.tensor(lengths).clamp(max=T)
    want = by_loop(*x, reset, ends, window)
    borders = sorted({0, T, *(cut for cut in cuts if cut < T)})
    state, h = None, []
    for start, end in itertools.pairwise(borders):
        piece = slice(start, end)
        part, state = attention(
            *(t[:, piece] for t in x), state,
            reset_BT=reset[:, piece] if share else None,
            lengths_B=None if lengths is None else (ends - start).clamp(0, end - start), window=window,
        )  # fmt: skip
        h.append(part)
    torch.testing.assert_close(torch.cat(h, dim=1), want, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("window", [1, 2, 5, 30])
def test_a_window_has_a_state_of_one_size(window):
    """window - 1 entries at any length, newest last: the next step itself is the last of the window."""
    q, k, v = make(1, 12)
    _, state = attention(q, k, v, window=window)
    seen = min(12, window - 1)
    assert state.next_B.tolist() == [12]
    assert torch.equal(state.v_BSGK[:, window - 1 - seen :], v[:, 12 - seen :])
    assert not state.v_BSGK[:, : window - 1 - seen].any()
    assert [x.shape for x in state] == [x.shape for x in empty_window(k, window)]


def test_without_a_window_the_state_grows():
    q, k, v = make(1, 12)
    _, state = attention(q, k, v)
    assert state.position_BS[0].tolist() == list(range(12))
    assert state.next_B.tolist() == [12]
    assert torch.equal(state.v_BSGK, v)


def test_positions_restart_at_a_reset():
    """After a reset the state is that of a fresh sequence: keys turned by the steps since the reset."""
    q, k, v = make(1, 8)
    reset = torch.zeros(1, 8, dtype=torch.bool)
    reset[0, 5] = True
    _, state = attention(q, k, v, reset_BT=reset)
    _, fresh = attention(q[:, 5:], k[:, 5:], v[:, 5:])
    assert state.next_B.tolist() == fresh.next_B.tolist() == [3]
    assert state.position_BS[0].tolist() == [-1] * 5 + [0, 1, 2]
    torch.testing.assert_close(state.k_BSGK[:, 5:], fresh.k_BSGK, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("H", "G", "K", "window"), [(4, 2, 6, 5), (3, 3, 8, 1), (6, 1, 16, 40)])
@pytest.mark.parametrize("rope_share", [1.0, 0.5, None])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@torch.no_grad()
def test_steps_of_the_kernel(dtype, H, G, K, window, rope_share):
    """Past the window, with resets and rows that pause; what a row has not seen may be anything."""
    steps = 60
    (q, k, v), tolerance = make(4, steps, H, G, K, dtype=dtype), 1e-5 if dtype is torch.float32 else 0.02
    turned = {"rope_base": 100.0, "rope_share": rope_share} if rope_share and K != 6 else {"rope_base": None}
    reset_BT = torch.rand(4, steps, generator=torch.Generator().manual_seed(1)) < 0.03
    fast = plain = None
    for t in range(steps):
        inputs = q[:, t : t + 1], k[:, t : t + 1], v[:, t : t + 1]
        rows = {"reset_BT": reset_BT[:, t : t + 1], "lengths_B": torch.tensor([1, t % 3, 1, 1])}
        options = {"window": window, **turned, **(rows if t % 2 else {})}
        got, fast = attention(*inputs, fast, backend="numba", **options)
        want, plain = attention(*(x.double() for x in inputs), plain, backend="torch", **options)
        assert {x.dtype for x in (got, *fast[:2])} == {dtype}
        torch.testing.assert_close(got.double(), want, rtol=tolerance, atol=tolerance)
        assert torch.equal(fast.next_B, plain.next_B)
        for a, b in zip(fast[:2], plain[:2], strict=True):
            torch.testing.assert_close(a.double(), b, rtol=tolerance / 4, atol=tolerance / 4)
        unseen = torch.arange(window - 1) < window - 1 - fast.next_B[:, None]
        noise = [x.masked_fill(unseen[..., None, None], torch.nan) for x in fast[:2]]
        fast = type(fast)(*noise, fast.next_B)


def test_one_kernel_where_nothing_is_special():
    """The call without state, resets and lengths is torch's own causal attention."""
    q, k, v = make()
    position = torch.arange(12).expand(2, 12)
    want = scaled_dot_product_attention(
        rope(q, position).transpose(1, 2), rope(k, position).transpose(1, 2).repeat_interleave(2, 1),
        v.transpose(1, 2).repeat_interleave(2, 1), is_causal=True,
    ).transpose(1, 2)  # fmt: skip
    torch.testing.assert_close(attention(q, k, v)[0], want, rtol=1e-10, atol=1e-10)


def test_gradients_through_the_state():
    x = make(1, 5, 2, 1, 2)

    def function(q, k, v):
        h1, state = attention(q[:, :3], k[:, :3], v[:, :3], window=3)
        h2, _ = attention(q[:, 3:], k[:, 3:], v[:, 3:], state, window=3)
        return torch.cat([h1, h2], dim=1)

    assert torch.autograd.gradcheck(function, [t.requires_grad_() for t in x])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_the_state_keeps_its_dtype(dtype):
    q, k, v = make(dtype=dtype)
    h, state = attention(q, k, v, window=4)
    _, state = attention(q, k, v, state, window=4)
    assert {h.dtype, state.k_BSGK.dtype, state.v_BSGK.dtype} == {dtype}
    fresh = empty_window(k, 4)
    assert [t.dtype for t in fresh] == [t.dtype for t in state]


@pytest.mark.parametrize("window", [None, 3])
def test_inputs_are_left_as_they_were(window):
    x = make()
    _, state = attention(*x, window=window)
    before = [t.clone() for t in (*x, *state)]
    attention(*x, state, window=window, reset_BT=torch.ones(2, 12, dtype=torch.bool), lengths_B=torch.tensor([3, 0]))
    assert all(torch.equal(a, b) for a, b in zip((*x, *state), before, strict=True))


@pytest.mark.parametrize("T", [1, 3])
def test_a_cache_with_room_is_that_without(T):
    """Rows of unlike lengths, one of which has forgotten its beginning; the numbers are those of a cache that grows."""
    q, k, v = make(3, 7, dtype=torch.float64)
    reset_BT = torch.zeros(3, 7, dtype=torch.bool)
    reset_BT[1, 4] = True
    _, state = attention(q, k, v, reset_BT=reset_BT, lengths_B=torch.tensor([7, 7, 2]))
    more = make(3, T, dtype=torch.float64, seed=5)
    want, after = attention(*more, state)
    for size in (7 + T, 30):
        roomy = state.with_room(size)
        assert roomy.k_BSGK.shape[1] == size
        got, roomy = attention(*more, roomy)
        torch.testing.assert_close(got, want)
        back, trimmed = roomy.without_room(), after.trimmed()
        assert torch.equal(back.next_B, trimmed.next_B)
        h, _ = attention(*more, back)
        torch.testing.assert_close(h, attention(*more, trimmed)[0])
    short, _ = attention(*more, state.with_room(4))  # a row has read seven: four of them are seen
    assert not torch.allclose(short[0], want[0])
    torch.testing.assert_close(short[2], want[2])


def test_errors():
    q, k, v = make(2, 3, dtype=torch.float32)
    _, state = attention(q, k, v, window=4)
    _, grown = attention(q, k, v)
    with pytest.raises(ValueError, match="the state is a AttentionState; it must be the WindowState of an earlier"):
        attention(q, k, v, grown, window=4)
    with pytest.raises(ValueError, match=r"k_BSGK of the state is .* must be .* of shape \(2, 5, 2, 4\)"):
        attention(q, k, v, state, window=6)
    with pytest.raises(ValueError, match="backend 'numba' of attention cannot run: there is no window"):
        attention(q, k, v, backend="numba")
