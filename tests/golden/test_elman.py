"""The Elman mixer is torch.nn.RNN, in float64."""

import pytest
import torch

from exlstm.mixers.elman import ElmanConfig
from exlstm.ops.fused import dense_recurrence

WIDTH = 12


@pytest.mark.parametrize("heads", [1, 3])
def test_elman(heads):
    torch.manual_seed(0)
    mixer = ElmanConfig(heads=heads).build(WIDTH).double()
    theirs = torch.nn.RNN(WIDTH, WIDTH, batch_first=True).double()
    with torch.no_grad():
        values = mixer.w_DD, dense_recurrence(mixer.u_DV, 1), mixer.b_D, torch.zeros(WIDTH)
        for parameter, value in zip(theirs.parameters(), values, strict=True):
            parameter.copy_(value)
    x = torch.randn(3, 20, WIDTH, dtype=torch.float64)
    for backend in ("auto", "recurrent"):
        mixer.backend = backend
        y, state = mixer(x)
        want, last = theirs(x)
        torch.testing.assert_close(y, want, rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(state.h_BV, last[0], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("heads", [1, 4])
def test_count_and_initial_values(heads):
    """2 d^2 + d when dense. U keeps lengths but for the factor 0.9, in each head."""
    d = 64
    mixer = ElmanConfig(heads=heads).build(d)
    assert sum(p.numel() for p in mixer.parameters()) == d**2 + d**2 // heads + d
    u_DD = dense_recurrence(mixer.u_DV, 1)
    torch.testing.assert_close(u_DD @ u_DD.T, 0.81 * torch.eye(d))
    assert mixer.w_DD.abs().max() <= d**-0.5
