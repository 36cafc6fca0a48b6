"""The state of a drop-in as one vector per row: there and back, as a reset, and what is refused."""

import pytest
import torch
from rnn_cases import NETS, close, random_hidden, with_large_weights

import exlstm
from exlstm.rnn.arguments import ShapeError

kinds = pytest.mark.parametrize("kind", NETS)


def build(kind, **options):
    return with_large_weights(NETS[kind](4, 16, num_layers=2, batch_first=True, dtype=torch.float64, **options))


@kinds
@pytest.mark.parametrize("bidirectional", [False, True])
def test_flat_states(kind, bidirectional):
    """The same numbers with rows first; zeros are the empty state."""
    net = build(kind, bidirectional=bidirectional)
    state = random_hidden(net, 3)
    flat_BW = exlstm.flat_state(net, state)
    assert flat_BW.shape == (3, len(net.names) * (16 + net.state_size))
    assert flat_BW.shape[1] * flat_BW.itemsize == net.state_bytes()
    again = exlstm.unflat_state(net, flat_BW)
    assert all(map(torch.equal, again, state))
    assert all(part.is_contiguous() for part in again)
    assert not exlstm.flat_state(net, net.zero_state(3)).any()
    # a row of the vector is a row of the batch
    picked = tuple(part[:, [2, 0]] for part in state)
    assert torch.equal(exlstm.flat_state(net, picked), flat_BW[[2, 0]])


@kinds
def test_a_row_times_zero_is_a_reset(kind):
    net, x_BTD = build(kind), torch.randn(3, 5, 4, dtype=torch.float64)
    state = random_hidden(net, 3)
    keep_B1 = torch.tensor([[1.0], [0.0], [1.0]], dtype=torch.float64)
    reset_BT = torch.zeros(3, 5, dtype=torch.bool)
    reset_BT[1, 0] = True
    cleared = exlstm.unflat_state(net, keep_B1 * exlstm.flat_state(net, state))
    close(net(x_BTD, cleared)[0], net(x_BTD, state, reset=reset_BT)[0])


def test_narrow_weights_have_a_wide_flat_state_and_gradients_pass():
    net = exlstm.SLSTM(4, 16, dtype=torch.bfloat16)
    assert exlstm.flat_state(net, net.zero_state(2)).dtype is torch.float32
    net = exlstm.SLSTM(4, 16)
    flat_BW = torch.zeros(2, 64, requires_grad=True)
    exlstm.unflat_state(net, flat_BW)[1].sum().backward()
    assert flat_BW.grad.sum() == 2 * 48


WRONG = [
    (lambda net: exlstm.flat_state(net, None), "hx is a NoneType; it must be the pair"),
    (lambda net: exlstm.flat_state(net, (torch.zeros(1, 2, 16), torch.zeros(1, 2, 16))), r"Expected hidden\[1\] size"),
    (lambda net: exlstm.flat_state(net, (torch.zeros(1, 2, 16), torch.zeros(1, 3, 48))), r"Expected hidden\[1\] size"),
]


@pytest.mark.parametrize(("call", "message"), WRONG, ids=[message for _, message in WRONG])
def test_wrong_states(call, message):
    with pytest.raises(ShapeError, match=message):
        call(exlstm.SLSTM(4, 16))


def test_wrong_flat_states():
    with pytest.raises(ValueError, match=r"has shape \(2, 3\); this model takes \[batch, 64\]"):
        exlstm.unflat_state(exlstm.SLSTM(4, 16), torch.zeros(2, 3))
