"""The GRU mixer is torch.nn.GRU, in float64 and parameter by parameter."""

import pytest
import torch

from exlstm.mixers.gru import GRUConfig
from exlstm.ops.fused import dense_recurrence

WIDTH = 12


@pytest.mark.parametrize("heads", [1, 3])
def test_gru(heads):
    torch.manual_seed(0)
    mixer, theirs = GRUConfig(heads=heads).build(WIDTH).double(), torch.nn.GRU(WIDTH, WIDTH, batch_first=True).double()
    inner_G = torch.cat([torch.zeros(2 * WIDTH), mixer.c_D])
    with torch.no_grad():
        values = mixer.w_GD, dense_recurrence(mixer.u_GV, 3), mixer.b_G, inner_G
        for parameter, value in zip(theirs.parameters(), values, strict=True):
            parameter.copy_(value)
    x = torch.randn(3, 20, WIDTH, dtype=torch.float64)
    for backend in ("auto", "recurrent"):
        mixer.backend = backend
        y, state = mixer(x)
        want, last = theirs(x)
        torch.testing.assert_close(y, want, rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(state.h_BV, last[0], rtol=1e-12, atol=1e-14)


def test_count_and_initial_values():
    """6 d^2 + 4 d: torch has 6 d, since two of its biases are added to two others. All are uniform, as torch's."""
    d = 64
    parameters = dict(GRUConfig().build(d).named_parameters())
    assert sum(p.numel() for p in parameters.values()) == 6 * d**2 + 4 * d
    for p in parameters.values():
        assert 0.9 * d**-0.5 < p.abs().max() <= d**-0.5
