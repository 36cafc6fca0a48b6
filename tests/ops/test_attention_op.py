"""Attention against a plain loop over rows, steps and heads that keeps its memory in Python lists."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import scaled_dot_product_attention

from exlstm.ops.attention import attention, zero_state
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


@pytest.mark.parametrize("window", [1, 2, 5, None])
def test_the_state_holds_what_can_still_be_seen(window):
    """window - 1 entries at most: the next step itself is the last of the window."""
    q, k, v = make(1, 12)
    _, state = attention(q, k, v, window=window)
    kept = 12 if window is None else min(12, window - 1)
    assert state.k_BSGK.shape[1] == state.v_BSGK.shape[1] == state.position_BS.shape[1] == kept
    assert state.position_BS[0].tolist() == list(range(12 - kept, 12))
    assert state.next_B.tolist() == [12]
    assert torch.equal(state.v_BSGK, v[:, 12 - kept :])


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
    fresh = zero_state(k)
    assert [t.dtype for t in fresh] == [t.dtype for t in state]


@pytest.mark.parametrize("window", [None, 3])
def test_inputs_are_left_as_they_were(window):
    x = make()
    _, state = attention(*x, window=window)
    before = [t.clone() for t in (*x, *state)]
    attention(*x, state, window=window, reset_BT=torch.ones(2, 12, dtype=torch.bool), lengths_B=torch.tensor([3, 0]))
    assert all(torch.equal(a, b) for a, b in zip((*x, *state), before, strict=True))
