"""Ragged rows, packed or not, resets inside them, and sequences that are cut into calls."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rnn_cases import NETS, Stack, close, random_hidden, with_large_weights
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

kinds = pytest.mark.parametrize("kind", NETS)


shapes = {
    "layers": st.integers(1, 2),
    "bidirectional": st.booleans(),
    "lengths": st.lists(st.integers(1, 7), min_size=1, max_size=4),
    "with_state": st.booleans(),
    "projected": st.booleans(),
    "seed": st.integers(0, 10**6),
}


def check_rows(kind, layers, bidirectional, lengths, with_state, projected, seed):
    """Packed, with lengths=, and each sequence alone: outputs, states, gradients, with resets anywhere."""
    torch.manual_seed(seed)
    # a projected h recurs in one head
    options = {} if kind == "lstm" else {"num_heads": 1 if projected else 2}
    net = with_large_weights(NETS[kind](
        3, 4, layers, batch_first=True, bidirectional=bidirectional, proj_size=2 * projected, dtype=torch.float64,
        **options,
    ))  # fmt: skip
    B, T = len(lengths), max(lengths)
    x = torch.randn(B, T, 3, dtype=torch.float64)
    padding = torch.arange(T) >= torch.tensor(lengths)[:, None]
    x[padding] = torch.nan
    reset = torch.rand(B, T) < 0.25
    hidden = random_hidden(net, B) if with_state else None
    found = []
    for form in ("alone", "lengths", "packed"):
        rows = x.clone().requires_grad_()
        hx = None if hidden is None else tuple(part.clone().requires_grad_() for part in hidden)
        if form == "alone":
            outputs, state = Stack(net)(rows, lengths, reset, hx)
        elif form == "lengths":
            y, state = net(rows, hx, lengths=torch.tensor(lengths), reset=reset)
            assert (y[padding] == 0).all()
            outputs = [y[b, :n] for b, n in enumerate(lengths)]
        else:
            packed = pack_padded_sequence(rows, lengths, batch_first=True, enforce_sorted=False)
            y, state = net(packed, hx, reset=reset)
            assert torch.equal(y.batch_sizes, packed.batch_sizes)
            assert torch.equal(y.sorted_indices, packed.sorted_indices)
            padded, _ = pad_packed_sequence(y, batch_first=True)
            outputs = [padded[b, :n] for b, n in enumerate(lengths)]
        loss = sum((y * torch.arange(y.numel()).view_as(y)).sum() for y in outputs) + (state[0] ** 2).sum()
        loss = loss + (state[1] * torch.arange(state[1].shape[-1])).sum()
        inputs = [rows, *([] if hx is None else hx), *net.parameters()]
        gradients = torch.autograd.grad(loss, inputs, allow_unused=True, materialize_grads=True)
        assert (gradients[0][padding] == 0).all()
        found.append([*outputs, *state, *gradients])
    for mine in found[1:]:
        for one, other in zip(mine, found[0], strict=True):
            scale = other.abs().max().clamp(min=1).item() if other.numel() else 1
            close(one, other, 1e-11 * scale)


@kinds
@settings(max_examples=8)
@given(**shapes)
def test_packed_and_lengths_are_each_sequence_alone(kind, **case):
    check_rows(kind, **case)


@pytest.mark.slow
@kinds
@settings(max_examples=60)
@given(**shapes)
def test_packed_and_lengths_are_each_sequence_alone_widely(kind, **case):
    check_rows(kind, **case)


def in_parts(net, x, reset):
    """Outputs and last state of a sequence that is cut into calls."""
    parts, hx = [], None
    for first, last in ((0, 1), (1, 20), (20, 21), (21, 40)):
        y, hx = net(x[:, first:last], hx, reset=reset[:, first:last])
        parts.append(y)
    return [torch.cat(parts, dim=1), *hx]


@kinds
def test_cuts_change_nothing(kind):
    """In float32 a cut result may be twice as far from the exact one as the result of one call."""
    exact = NETS[kind](5, 32, 2, batch_first=True, dtype=torch.float64)
    x, reset = torch.randn(3, 40, 5, dtype=torch.float64), torch.rand(3, 40) < 0.1
    narrow = copy.deepcopy(exact).float()
    exact.load_state_dict(narrow.state_dict())
    x = x.float().double()
    y, state = exact(x, reset=reset)
    once, narrow_state = narrow(x.float(), reset=reset)
    for cut, want in zip(in_parts(exact, x, reset), (y, *state), strict=True):
        close(cut, want, 1e-12 * max(1, want.abs().max().item()))
    for cut, whole, want in zip(in_parts(narrow, x.float(), reset), (once, *narrow_state), (y, *state), strict=True):
        error, allowed = ((found.double() - want).abs().max().item() for found in (cut, whole))
        assert error <= 2 * allowed + 1e-6 * want.abs().max().item()


@kinds
def test_states_of_narrow_weights_lose_nothing_at_a_cut(kind):
    """h is kept as it recurs, not as it is given out."""
    net = NETS[kind](5, 32, dtype=torch.bfloat16)
    x = torch.randn(12, 2, 5, dtype=torch.bfloat16)
    y, state = net(x)
    assert y.dtype is torch.bfloat16
    assert {part.dtype for part in state} == {torch.float32}
    hx = None
    for t in range(12):
        _, hx = net(x[t : t + 1], hx)
    if kind == "mlstm":  # a chunk sums its steps in another order
        close(hx[1], state[1], 1e-2 * state[1].abs().max().item())
    else:
        close(hx[1], state[1], 1e-5 * state[1].abs().max().item())


@kinds
@pytest.mark.parametrize("packed", [False, True])
def test_a_state_times_zero_is_a_reset(kind, packed):
    """Bit for bit, as actors of reinforcement learning do it."""
    net = NETS[kind](5, 32, 2)
    x, done = torch.randn(6, 3, 5), torch.tensor([True, False, True])
    hx = random_hidden(net, 3)
    reset = torch.zeros(6, 3, dtype=torch.bool)
    reset[0] = done
    alive = (1 - done.float()).view(1, -1, 1)
    given = pack_padded_sequence(x, [6, 4, 2]) if packed else x
    ours, state = net(given, hx, reset=reset)
    by_mask, masked = net(given, (alive * hx[0], alive * hx[1]))
    assert torch.equal(ours.data, by_mask.data)
    for mine, other in zip(state, masked, strict=True):
        assert torch.equal(mine, other)
