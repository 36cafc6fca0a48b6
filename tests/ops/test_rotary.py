"""Rotary embedding by counted positions: against `rope`, cut anywhere, with resets and lengths, one step at a time."""

import pytest
import torch

from exlstm.ops.rope import rope
from exlstm.ops.rotary import AngleState, PositionState, rotary, turned

B, T, H, K = 3, 9, 2, 6


def inputs(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(B, T, H, K, generator=generator, dtype=torch.float64).to(dtype) for _ in range(2)]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_positions_are_counted(dtype):
    """From where the state says, and again from 0 after a reset; not beyond a row's length."""
    q, k = inputs(dtype)
    reset_BT, lengths_B = torch.zeros(B, T, dtype=torch.bool), torch.tensor([9, 0, 5])
    reset_BT[0, 4] = reset_BT[2, 7] = True
    start = torch.tensor([100, 7, 0])
    positions = torch.stack([n + torch.arange(T) for n in start])
    positions[0, 4:] = torch.arange(5)
    got_q, got_k, state = rotary(q, k, PositionState(start), base=100.0, reset_BT=reset_BT, lengths_B=lengths_B)
    assert state.next_B.tolist() == [5, 7, 5]
    assert got_q.dtype == got_k.dtype == dtype
    room = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 0.02}[dtype]
    for got, x in ((got_q, q), (got_k, k)):
        want = rope(x.double(), positions, base=100.0)
        for row, length in enumerate(lengths_B):
            torch.testing.assert_close(got[row, :length].double(), want[row, :length], rtol=room, atol=room)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_one_step_at_a_time(dtype):
    q, k = inputs(dtype)
    reset_BT = torch.rand(B, T, generator=torch.Generator().manual_seed(1)) < 0.3
    lengths_B, zero = torch.tensor([9, 0, 5]), PositionState(torch.zeros(B, dtype=torch.int64))
    want_q, want_k, after = rotary(q, k, zero, reset_BT=reset_BT, lengths_B=lengths_B)
    state = zero
    for t in range(T):
        now, left = slice(t, t + 1), (lengths_B - t).clamp(min=0)
        got_q, got_k, state = rotary(
            q[:, now], k[:, now], state, reset_BT=reset_BT[:, now], lengths_B=left, backend="numba"
        )
        for got, want in ((got_q, want_q), (got_k, want_k)):
            seen = left > 0
            room = 1e-6 if dtype is torch.float32 else 0.02
            torch.testing.assert_close(got[seen], want[:, now][seen], rtol=room, atol=room)
    assert torch.equal(state.next_B, after.next_B)
    assert not zero.next_B.any()


def test_far_positions_keep_their_digits():
    """A million steps in: angles are float64."""
    q, k = inputs()
    far = PositionState(torch.full((B,), 1_000_000))
    with torch.no_grad():
        one, _, _ = rotary(q[:, :1], k[:, :1], far, backend="numba")
    want = rope(q[:, :1].double(), far.next_B[:, None])
    torch.testing.assert_close(one.double(), want, rtol=1e-6, atol=1e-6)


J = 2


def turns(dtype=torch.float32):
    generator = torch.Generator().manual_seed(5)
    turn = torch.rand(B, T, H, J, generator=generator, dtype=torch.float64)
    return turn.to(dtype), AngleState(6 * torch.rand(B, H, J, generator=generator))


def test_turns_add_up():
    """Complex numbers that are multiplied; gradients of the turns too; later channels stay."""
    q, k = inputs(torch.float64)
    turn, state = turns(torch.float64)
    start = state.angle_BHJ.double()
    reset_BT, lengths_B = torch.zeros(B, T, dtype=torch.bool), torch.tensor([9, 0, 5])
    reset_BT[0, 4] = reset_BT[2, 7] = True

    def plain(q, turn, start):
        angle = start[:, None] + turn.cumsum(1)
        since = torch.cat([angle[:1, :4], turn[:1, 4:].cumsum(1)], dim=1)
        angle = torch.cat([since, angle[1:]])
        pairs = torch.view_as_complex(q[..., : 2 * J].unflatten(-1, (J, 2)).contiguous())
        rotated = torch.view_as_real(pairs * torch.polar(torch.ones_like(angle), angle)).flatten(-2)
        return torch.cat([rotated, q[..., 2 * J :]], dim=-1), angle

    leaves = [t.clone().requires_grad_() for t in (q, turn, start)]
    rows = {"reset_BT": reset_BT, "lengths_B": lengths_B}
    got, _, after = turned(leaves[0], k, leaves[1], AngleState(leaves[2]), **rows)
    others = [t.clone().requires_grad_() for t in (q, turn, start)]
    want, angle = plain(*others)
    ends = torch.stack([angle[0, 8], start[1], angle[2, 4]]) % (2 * torch.pi)
    torch.testing.assert_close(after.angle_BHJ, ends)
    seen = (torch.arange(T) < lengths_B[:, None])[..., None, None]
    torch.testing.assert_close(got * seen, want * seen)
    weights = torch.randn_like(got) * seen
    for x in (got, want):
        (x * weights).sum().backward()
    for mine, theirs in zip(leaves, others, strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_one_turn_at_a_time(dtype):
    (q, k), (turn, zero) = inputs(dtype), turns()
    reset_BT = torch.rand(B, T, generator=torch.Generator().manual_seed(1)) < 0.3
    lengths_B, state, room = torch.tensor([9, 0, 5]), zero, 1e-5 if dtype is torch.float32 else 0.02
    turn = turn if dtype is torch.float32 else turn.to(dtype)
    want_q, want_k, after = turned(q, k, turn, zero, reset_BT=reset_BT, lengths_B=lengths_B)
    for t in range(T):
        now, left = slice(t, t + 1), (lengths_B - t).clamp(min=0)
        rows = {"reset_BT": reset_BT[:, now], "lengths_B": left, "backend": "numba"}
        got_q, got_k, state = turned(q[:, now], k[:, now], turn[:, now], state, **rows)
        for got, want in ((got_q, want_q), (got_k, want_k)):
            torch.testing.assert_close(got[left > 0], want[:, now][left > 0], rtol=room, atol=room)
    torch.testing.assert_close(state.angle_BHJ, after.angle_BHJ, rtol=1e-5, atol=1e-5)


def test_errors():
    q, k = inputs()
    for position_B in (torch.zeros(B), torch.zeros(2, dtype=torch.int64), torch.zeros(B, dtype=torch.int32)):
        with pytest.raises(ValueError, match="next_B of the state is"):
            rotary(q, k, PositionState(position_B))
    with pytest.raises(ValueError, match="the state is a tuple"):
        rotary(q, k, (torch.zeros(B),))
    with pytest.raises(ValueError, match="one step without gradients"):
        rotary(q, k, PositionState(torch.zeros(B, dtype=torch.int64)), backend="numba")


def test_errors_of_turns():
    (q, k), (turn, state) = inputs(), turns()
    for wrong in (turn[:, :, :, :1], turn[:, :, :1], turn.repeat(1, 1, 1, 2)):
        with pytest.raises(ValueError, match=r"(turn|angle_BHJ of the state) is torch\.float32"):
            turned(q, k, wrong, state)
    with pytest.raises(ValueError, match="the state is a PositionState"):
        turned(q, k, turn, PositionState(torch.zeros(B, dtype=torch.int64)))
