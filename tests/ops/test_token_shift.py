"""The token shift: the step before, across calls, resets and padding."""

import pytest
import torch

from exlstm.ops.token_shift import TokenShiftState, token_shift


def test_the_step_before():
    x, first = torch.randn(2, 5, 3), torch.randn(2, 3)
    before, state = token_shift(x, TokenShiftState(first))
    assert torch.equal(before, torch.cat([first[:, None], x[:, :-1]], dim=1))
    assert torch.equal(state.x_BD, x[:, -1])


def test_resets_and_lengths():
    x, first = torch.randn(3, 4, 2), torch.randn(3, 2)
    x[1, 2:], x[2] = torch.nan, torch.nan
    reset = torch.zeros(3, 4, dtype=torch.bool)
    reset[0, 2] = reset[1, 3] = True
    before, state = token_shift(x, TokenShiftState(first), reset_BT=reset, lengths_B=torch.tensor([4, 2, 0]))
    zero = torch.zeros(2)
    assert torch.equal(before[0], torch.stack([first[0], x[0, 0], zero, x[0, 2]]))
    assert torch.equal(before[1], torch.stack([first[1], x[1, 0], zero, zero]))
    assert not before[2].any()
    assert torch.equal(state.x_BD, torch.stack([x[0, 3], x[1, 1], first[2]]))


def test_a_state_stays_wide():
    """bfloat16 in and out, float32 between calls; a state of another shape is refused."""
    x = torch.randn(2, 3, 4).bfloat16()
    before, state = token_shift(x, TokenShiftState(torch.zeros(2, 4)))
    assert before.dtype == torch.bfloat16
    assert state.x_BD.dtype == torch.float32
    with pytest.raises(ValueError, match=r"x_BD of the state is .* must be torch.float32 of shape \(2, 4\)"):
        token_shift(x, TokenShiftState(torch.zeros(2, 5)))
